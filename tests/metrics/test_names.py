import pytest

from ldm_lightning.metrics.features import tiny_features
from ldm_lightning.metrics.first_stage import FirstStageMetrics
from ldm_lightning.metrics.names import METRICS, describe, directions
from ldm_lightning.metrics.power_spectrum import DEFICIT_NAME, OCTAVE_NAMES


def test_direction_of_the_deciding_metrics():
    higher_is_better = directions()
    assert higher_is_better["psnr"]
    assert higher_is_better["ssim"]
    for name in ("lpips", "lpips_vgg", "rfid", "rfd_tiny", "perceptual_tiny", DEFICIT_NAME):
        assert not higher_is_better[name]
    assert "kl" not in higher_is_better
    assert higher_is_better.keys().isdisjoint(OCTAVE_NAMES)  # one is best


def test_finds_a_metric_with_and_without_its_stage():
    assert describe("val/psnr") is describe("test/psnr") is METRICS["psnr"]
    assert describe("latent/std") is METRICS["latent/std"]
    with pytest.raises(KeyError, match="nonsense"):
        describe("val/nonsense")


def test_embedded_features_never_carry_a_standard_name():
    features = tiny_features()
    names = {*features.perceptual, features.frechet_name}
    assert names == {"perceptual_tiny", "rfd_tiny"}
    assert names.isdisjoint({"lpips", "lpips_vgg", "rfid", "fid"})
    assert names <= set(METRICS)


def test_every_metric_of_a_feature_set_has_a_meaning():
    metrics = FirstStageMetrics(tiny_features(), latent_channels=4)
    names = {
        "psnr",
        "ssim",
        DEFICIT_NAME,
        *OCTAVE_NAMES,
        *metrics.reconstruction.features.perceptual,
    }
    assert all(describe(f"val/{name}").meaning for name in names)
