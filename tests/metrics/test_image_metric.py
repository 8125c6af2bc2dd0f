"""Metrics of a configuration: what they see, how they are joined, what is refused."""

import pytest
import torch
from omegaconf import OmegaConf

from ldm_lightning.bottleneck.base import BottleneckOutput
from ldm_lightning.builders.image_metrics import build_image_metrics
from ldm_lightning.metrics import names
from ldm_lightning.metrics.features import tiny_features
from ldm_lightning.metrics.first_stage import FirstStageMetrics
from ldm_lightning.metrics.image_metric import ImageMetric


class Difference(ImageMetric):
    meaning = "mean absolute error"
    higher_is_better = False

    def measure(self, images, reconstructions):
        return (images - reconstructions).abs().flatten(1).mean(1)


class OfTheBatch(Difference):
    def measure(self, images, reconstructions):
        return super().measure(images, reconstructions).mean()


class Mute(Difference):
    meaning = None


@pytest.fixture(autouse=True)
def _registry(monkeypatch):
    monkeypatch.setattr(names, "OWN", {})


def test_the_mean_over_images_of_8_bits_whatever_the_batches():
    images, reconstructions = torch.rand(2, 5, 3, 16, 16) * 2.4 - 1.2  # beyond what a file holds
    expected = [batch.clamp(-1, 1).add(1).mul(127.5).round() for batch in (images, reconstructions)]
    metrics = FirstStageMetrics(
        tiny_features(), latent_channels=4, protocol={"num_images": 5}, own={"error": Difference()}
    )
    latents = BottleneckOutput(torch.zeros(5, 4, 2, 2), torch.zeros(5, 4, 2, 2))
    for rows in ([0, 1, 2], [3], [4]):
        part = BottleneckOutput(latents.latents[rows], latents.continuous[rows])
        metrics.update(images[rows], reconstructions[rows], part)
    report = metrics.compute()
    error = (expected[0] - expected[1]).abs().mean() / 127.5
    assert report.scalars["error"] == pytest.approx(error.item(), rel=1e-6)
    assert report.protocol["error"] == {"num_images": 5}
    assert "error" in metrics.names(num_images=5, size=(16, 16))
    metrics.reset()
    assert int(metrics.own["error"].count) == 0


def test_building_makes_meaning_and_direction_known():
    target = f"{__name__}.Difference"
    built = build_image_metrics(OmegaConf.create({"metrics": {"own": {"_target_": target}}}))
    assert isinstance(built["own"], Difference)
    assert names.describe("val/own").meaning == names.meanings()["own"] == Difference.meaning
    assert names.directions()["own"] is False
    stored = names.own_meanings()
    names.OWN.clear()
    names.register_stored({**stored, "psnr": stored["own"], "<b>": stored["own"], "other": 3})
    assert {*names.OWN} == {"own"}


@pytest.mark.parametrize(
    ("name", "target", "named"),
    [
        ("psnr", f"{__name__}.Difference", "psnr"),
        ("A", f"{__name__}.Difference", "'A'"),
        ("own", f"{__name__}.Mute", r"metrics\.own.*meaning"),
        ("own", "torch.nn.Identity", r"metrics\.own.*Metric"),
    ],
)
def test_what_cannot_be_read_is_refused(name, target, named):
    with pytest.raises(ValueError, match=named):
        build_image_metrics(OmegaConf.create({"metrics": {name: {"_target_": target}}}))


def test_one_value_an_image_is_needed():
    with pytest.raises(ValueError, match=r"OfTheBatch.*\[2\]"):
        OfTheBatch().update(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4))
