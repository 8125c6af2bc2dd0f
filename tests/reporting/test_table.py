import io

from rich.console import Console

from ldm_lightning.metrics.thresholds import Threshold, judge
from ldm_lightning.reporting.table import print_gate, print_metrics

METRICS = {"val/psnr": 21.4567, "val/rfd_tiny": 3.5, "val/kl": 12345.6, "val/ssim": None}
MEANINGS = {"psnr": "dB (mean)", "val/rfd_tiny": "Fréchet distance [tiny]"}


def shown(*, terminal):
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=100, color_system=None)
    counts = {"val/rfd_tiny": "512"}
    print_metrics(METRICS, MEANINGS, title="Run [kl_f4]", counts=counts, console=console)
    return file.getvalue()


def test_plain_output_is_aligned_and_complete():
    assert shown(terminal=False).splitlines() == [
        "Run [kl_f4]",
        "metric             value    N  meaning",
        "val/kl             12346",
        "val/psnr           21.46       dB (mean)",
        "val/rfd_tiny         3.5  512  Fréchet distance [tiny]",
        "val/ssim      not finite",
    ]


def test_plain_output_has_no_control_characters():
    assert "\x1b" not in shown(terminal=False)


def test_a_terminal_gets_the_same_content():
    text = shown(terminal=True)
    for part in (
        "Run [kl_f4]",
        "val/rfd_tiny",
        "512",
        "21.46",
        "not finite",
        "Fréchet distance [tiny]",
    ):
        assert part in text


def test_the_gate_shows_numbers_beside_their_thresholds():
    file = io.StringIO()
    thresholds = [Threshold("val/psnr", at_least=18), Threshold("latent/std", at_most=100)]
    print_gate(
        judge({"val/psnr": 9.5}, thresholds).rows,
        MEANINGS,
        title="gate",
        console=Console(file=file, force_terminal=False),
    )
    assert file.getvalue().splitlines() == [
        "gate",
        "metric           value  wanted               meaning",
        "val/psnr           9.5  at least 18  FAILED  dB (mean)",
        "latent/std  not finite  at most 100  FAILED",
    ]
