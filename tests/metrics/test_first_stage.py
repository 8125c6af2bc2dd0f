import pytest
import torch

from ldm_lightning.bottleneck.base import BottleneckOutput
from ldm_lightning.bottleneck.gaussian import GaussianBottleneck
from ldm_lightning.metrics.color_and_blocks import BLOCKS_NAME, COLOR_NAME
from ldm_lightning.metrics.features import tiny_features
from ldm_lightning.metrics.first_stage import FirstStageMetrics
from ldm_lightning.metrics.power_spectrum import DEFICIT_NAME, OCTAVE_NAMES

PROTOCOL = {"data": "pictures", "split": "val", "num_images": 6}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_gaussian_first_stage_reports_kl_and_latents(pictures):
    images = pictures(6)
    output = GaussianBottleneck()(random(6, 8, 4, 4))
    metrics = FirstStageMetrics(
        tiny_features(), latent_channels=4, downsampling_factor=4, protocol=PROTOCOL
    )
    metrics.reset()
    for rows in torch.arange(6).split(4):
        part = BottleneckOutput(
            latents=output.latents[rows],
            continuous=output.continuous[rows],
            terms={"kl": output.terms["kl"][rows]},
            variance=output.variance[rows],
        )
        metrics.update(images[rows], images[rows], part)
    report = metrics.compute()
    images_only = {"psnr", "ssim", "perceptual_tiny", "rfd_tiny", DEFICIT_NAME, *OCTAVE_NAMES}
    assert set(report.scalars) == {*images_only, "kl", COLOR_NAME, BLOCKS_NAME}
    assert report.scalars[COLOR_NAME] == 1.0
    assert set(report.protocol) == set(report.scalars)
    assert report.scalars["kl"] == pytest.approx(output.terms["kl"].mean().item(), rel=1e-6)
    assert report.num_images == 6
    assert report.codebook_histogram is None
    assert report.latent_scalars["latent/mean"] == pytest.approx(
        output.latents.mean().item(), abs=1e-6
    )
    total = (output.latents.var() + output.variance.mean()).sqrt()
    assert report.latent_scalars["latent/std"] == pytest.approx(total.item(), rel=1e-5)
    assert len(report.per_channel["latent/mean"]) == len(report.per_channel["latent/std"]) == 4


def test_a_first_stage_with_codes_reports_their_use(pictures):
    images = pictures(4)
    indices = torch.tensor([0, 1, 1, 3]).view(4, 1, 1).expand(4, 2, 2)
    latents = random(4, 3, 2, 2)
    terms = {"codebook": torch.tensor(0.1), "commitment": torch.zeros(4)}
    output = BottleneckOutput(latents=latents, continuous=latents, terms=terms, indices=indices)
    metrics = FirstStageMetrics(tiny_features(), latent_channels=3, num_codes=4, protocol=PROTOCOL)
    metrics.update(images, images, output)
    report = metrics.compute()
    assert report.scalars["codebook_usage"] == 0.75
    assert report.scalars["codebook_perplexity"] == pytest.approx(2**1.5)
    assert report.codebook_histogram.tolist() == [4, 8, 0, 4]
    assert report.protocol["codebook_usage"]["num_images"] == 4
    assert "kl" not in report.scalars


def test_a_kl_that_is_a_scalar_counts_once_an_image(pictures):
    images, latents = pictures(5), random(5, 2, 2, 2)
    metrics = FirstStageMetrics(tiny_features(), latent_channels=2)
    for rows, kl in ((slice(0, 4), 1.0), (slice(4, 5), 6.0)):
        output = BottleneckOutput(
            latents=latents[rows], continuous=latents[rows], terms={"kl": torch.tensor(kl)}
        )
        metrics.update(images[rows], images[rows], output)
    assert metrics.compute().scalars["kl"] == pytest.approx(2.0)


def test_reset_begins_a_new_pass(pictures):
    images, latents = pictures(4), random(4, 2, 2, 2)
    metrics = FirstStageMetrics(tiny_features(), latent_channels=2, num_codes=4)
    reports = []
    for code in (1, 2):
        metrics.reset()
        output = BottleneckOutput(
            latents=code * latents,
            continuous=latents,
            terms={"kl": torch.full((4,), float(code))},
            indices=torch.full((4, 2, 2), code),
        )
        metrics.update(images, images, output)
        reports.append(metrics.compute())
    assert reports[1].scalars["kl"] == 2.0
    assert reports[1].codebook_histogram.tolist() == [0, 0, 16, 0]
    ratio = reports[1].latent_scalars["latent/std"] / reports[0].latent_scalars["latent/std"]
    assert ratio == pytest.approx(2)


def test_codes_without_a_stated_codebook_are_refused(pictures):
    images, latents = pictures(2), random(2, 2, 2, 2)
    output = BottleneckOutput(
        latents=latents, continuous=latents, indices=torch.zeros(2, 2, 2, dtype=torch.int64)
    )
    with pytest.raises(ValueError, match="give num_codes"):
        FirstStageMetrics(tiny_features(), latent_channels=2).update(images, images, output)
