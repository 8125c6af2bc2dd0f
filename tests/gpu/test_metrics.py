"""Metrics measured on the device are those measured on the CPU."""

import pytest
import torch

from ldm_lightning.bottleneck.base import BottleneckOutput
from ldm_lightning.metrics.features import tiny_features
from ldm_lightning.metrics.first_stage import FirstStageMetrics
from ldm_lightning.metrics.generation import GenerationMetrics
from tests.module.small import images

pytestmark = pytest.mark.gpu

TOLERANCE = {"rel": 1e-3, "abs": 1e-4}


def test_a_first_stages_report_is_that_of_the_cpu(device):
    real = images(16, size=32)
    fake = (0.9 * real + 0.05 * images(16, seed=2, size=32)).clamp(-1, 1)
    latents = torch.nn.functional.avg_pool2d(real, 4)
    codes = torch.arange(16 * 64).view(16, 8, 8) % 7
    reports = []
    for where in (torch.device("cpu"), device):
        metrics = FirstStageMetrics(tiny_features(), latent_channels=3, num_codes=8)
        metrics.to(where)
        for rows in (slice(0, 10), slice(10, 16)):
            output = BottleneckOutput(
                latents=latents[rows].to(where),
                continuous=latents[rows].to(where),
                indices=codes[rows].to(where),
            )
            metrics.update(real[rows].to(where), fake[rows].to(where), output)
        reports.append(metrics.compute())
    assert len(reports[0].scalars) > 5
    assert reports[1].scalars == pytest.approx(reports[0].scalars, **TOLERANCE)
    assert reports[1].latent_scalars == pytest.approx(reports[0].latent_scalars, **TOLERANCE)


def test_a_report_of_generated_images_is_that_of_the_cpu(device):
    reports = []
    for where in (torch.device("cpu"), device):
        metrics = GenerationMetrics(tiny_features())
        metrics.to(where)
        metrics.reset()
        metrics.update_references(images(24, size=32).to(where))
        metrics.update(images(24, seed=2, size=32).to(where))
        reports.append(metrics.compute())
    assert reports[1] == pytest.approx(reports[0], **TOLERANCE)
