import math

import pytest

from ldm_lightning.metrics.diagnosis import FirstStageFacts
from ldm_lightning.metrics.thresholds import Threshold, check_mode, judge, read_thresholds

THRESHOLDS = (
    Threshold("val/psnr", at_least=18.0),
    Threshold("val/perceptual_tiny", at_most=0.6),
    Threshold("latent/std", at_least=0.01, at_most=100.0),
)
GOOD = {"val/psnr": 20.3, "val/perceptual_tiny": 0.25, "latent/std": 9.5, "val/kl": 12196.0}


def test_a_first_stage_within_all_thresholds_passes_without_causes():
    verdict = judge(GOOD, THRESHOLDS)
    assert verdict.passed
    assert verdict.causes == verdict.failed == ()
    assert [row.value for row in verdict.rows] == [20.3, 0.25, 9.5]


@pytest.mark.parametrize(
    ("name", "value"),
    [("val/psnr", 17.9), ("val/perceptual_tiny", 0.61), ("latent/std", 0.009), ("latent/std", 101)],
)
def test_each_missed_threshold_fails_by_name(name, value):
    verdict = judge({**GOOD, name: value}, THRESHOLDS)
    assert not verdict.passed
    assert [row.threshold.metric for row in verdict.failed] == [name]
    assert f"{name} is {value:.4g} (wanted: " in str(verdict.failed[0])
    assert verdict.causes


def test_a_value_on_the_threshold_passes():
    verdict = judge({"val/psnr": 18.0, "val/perceptual_tiny": 0.6, "latent/std": 0.01}, THRESHOLDS)
    assert verdict.passed


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_what_is_missing_or_not_finite_fails_by_name(value):
    metrics = {**GOOD, "val/psnr": value}
    if value is None:
        del metrics["val/psnr"]
    verdict = judge(metrics, THRESHOLDS)
    assert not verdict.passed
    assert str(verdict.failed[0]).startswith("val/psnr")
    assert "finite" in str(verdict.failed[0])
    assert verdict.causes[0].name == "not_measured"
    assert "val/psnr" in str(verdict.causes[0])


def test_a_gate_without_thresholds_lets_nothing_pass_silently():
    with pytest.raises(ValueError, match=r"gate\.thresholds.*gate\.mode=skip"):
        judge(GOOD, ())


def test_facts_reach_the_diagnosis():
    metrics = {**GOOD, "val/psnr": 12.0}
    facts = FirstStageFacts(trained=GOOD, same_images=True)
    assert judge(metrics, THRESHOLDS, facts=facts).causes[0].name == "damaged_weights"
    assert judge(metrics, THRESHOLDS).causes[0].name == "poor_reconstruction"


@pytest.mark.parametrize(
    ("bounds", "text"),
    [
        ({"at_least": 18.0}, "at least 18"),
        ({"at_most": 0.6}, "at most 0.6"),
        ({"at_least": 0.01, "at_most": 100.0}, "0.01 to 100"),
    ],
)
def test_a_threshold_says_what_it_wants(bounds, text):
    assert str(Threshold("val/psnr", **bounds)) == text


@pytest.mark.parametrize(
    "bounds", [{}, {"at_least": math.nan}, {"at_most": math.inf}, {"at_least": 2, "at_most": 1}]
)
def test_refuses_thresholds_that_make_no_sense(bounds):
    with pytest.raises(ValueError, match="val/psnr.*at_least.*at_most"):
        Threshold("val/psnr", **bounds)


@pytest.mark.parametrize("mode", ["stop", "warn", "skip"])
def test_there_are_three_modes(mode):
    assert check_mode(mode) == mode


@pytest.mark.parametrize("mode", [False, True, None, "off", "Stop", 0])
def test_every_other_mode_is_refused(mode):
    with pytest.raises(ValueError, match=rf"gate\.mode.*{mode!r}") as caught:
        check_mode(mode)
    assert ("YAML" in str(caught.value)) == (mode is False)


def test_thresholds_are_read_where_their_condition_is_met():
    entries = {
        "psnr": {"metric": "val/psnr", "at_least": 18},
        "lpips": {"metric": "val/lpips", "at_most": 0.4, "when": "standard"},
        "usage": {"metric": "val/codebook_usage", "at_least": 0.1, "when": "codes"},
        "ssim": None,
    }
    read = [threshold.metric for threshold in read_thresholds(entries, conditions={"tiny"})]
    assert read == ["val/psnr"]
    read = [
        threshold.metric for threshold in read_thresholds(entries, conditions={"tiny", "codes"})
    ]
    assert read == ["val/psnr", "val/codebook_usage"]
    assert len(read_thresholds(entries)) == 3


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"at_least": 1}, r"gate\.thresholds\.x\b.*metric"),
        ({"metric": "val/psnr", "atleast": 1}, r"gate\.thresholds\.x\b.*metric"),
        ({"metric": "val/psnr", "at_least": "18"}, r"x\.at_least.*'18'"),
        ({"metric": "val/psnr", "at_least": True}, r"x\.at_least.*True"),
        ({"metric": "val/psnr", "at_least": 1, "when": "gpu"}, r"x\.when.*\btiny\b.*'gpu'"),
        ({"metric": "val/psnr"}, "val/psnr.*at_least"),
    ],
)
def test_a_mistyped_threshold_is_refused(entry, message):
    with pytest.raises(ValueError, match=message):
        read_thresholds({"x": entry})
