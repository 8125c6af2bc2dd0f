import pytest

from ldm_lightning.utils.units import format_bytes, format_flops, format_seconds


@pytest.mark.parametrize(
    ("function", "number", "text"),
    [
        (format_bytes, 0, "0 B"),
        (format_bytes, 512, "512 B"),
        (format_bytes, 1536, "1.50 KiB"),
        (format_bytes, 160 * 2**20 + 1, "160 MiB"),
        (format_bytes, 85 * 2**30, "85 GiB"),
        (format_bytes, 2**41, "2 TiB"),
        (format_flops, 999, "999 FLOP"),
        (format_flops, 894.91e9, "895 GFLOP"),
        (format_flops, 1.2345e12, "1.23 TFLOP"),
        (format_flops, 2e21, "2 ZFLOP"),
        (format_seconds, 0.0314, "0.031 s"),
        (format_seconds, 0.31, "0.31 s"),
        (format_seconds, 40, "40 s"),
        (format_seconds, 540, "9 min"),
        (format_seconds, 12_600, "3.5 h"),
        (format_seconds, 12 * 86400, "12 days"),
    ],
)
def test_numbers_are_read_in_the_unit_that_suits(function, number, text):
    assert function(number) == text
