import pytest

from ldm_lightning.reporting.page.charts import MAX_NAME_LETTERS, file_name, scale_of


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([4, 8, 16], "log"),
        ([1e-6, 1e-4, 1e-2], "log"),
        ([0.0, 1e-6, 1e-4], "symlog"),
        ([0.1, 0.2, 0.3], "linear"),
        ([4, 8], "linear"),
        ([1, 100], "log"),
        ([-1, 1, 100], "linear"),
        ([0, 1], "linear"),
    ],
)
def test_powers_and_wide_ranges_are_logarithmic(values, scale):
    assert scale_of(values) == scale


def test_what_comes_from_a_configuration_makes_a_harmless_file_name():
    assert file_name("../loss.kl weight\0") == "---loss-kl-weight-"
    assert len(file_name("k" * 300)) == MAX_NAME_LETTERS
