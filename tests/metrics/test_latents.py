import math

import pytest
import torch

from ldm_lightning.metrics.latents import LatentStatistics


def latents(count=50, offset=0.0):
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.5, 1.0, 3.0])[None, :, None, None]
    shift = torch.tensor([-1.0, 0.0, 2.0])[None, :, None, None]
    values = torch.randn(count, 3, 4, 5, generator=generator, dtype=torch.float64)
    return values * scale + shift + offset


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("batch_size", [1, 7, 50])
def test_equals_mean_and_std_of_all_latents_at_once(offset, batch_size):
    values = latents(offset=offset)
    metric = LatentStatistics(3)
    for batch in values.split(batch_size):
        metric.update(batch)
    result = metric.compute()
    channels = values.transpose(0, 1).flatten(1)
    assert result.mean == pytest.approx(values.mean().item(), rel=1e-9)
    assert result.std == pytest.approx(values.std().item(), rel=1e-6)
    assert result.channel_means == pytest.approx(channels.mean(dim=1).tolist(), rel=1e-9)
    assert result.channel_stds == pytest.approx(channels.std(dim=1).tolist(), rel=1e-6)


def test_float32_latents_far_from_zero_keep_their_standard_deviation():
    values = latents(offset=1000.0).float()
    metric = LatentStatistics(3)
    metric.update(values)
    expected = values.double().transpose(0, 1).flatten(1).std(dim=1)
    assert metric.compute().channel_stds == pytest.approx(expected.tolist(), rel=1e-7)


def test_means_with_their_variance_agree_with_samples():
    means = latents(count=4000)
    variance = torch.full_like(means, 4.0)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(means.shape, generator=generator, dtype=means.dtype)
    of_means, of_samples = LatentStatistics(3), LatentStatistics(3)
    of_means.update(means, variance)
    of_samples.update(means + 2 * noise)
    a, b = of_means.compute(), of_samples.compute()
    assert a.std == pytest.approx(b.std, rel=0.01)
    assert a.channel_stds == pytest.approx(b.channel_stds, rel=0.01)


def test_takes_any_spatial_size_in_one_pass():
    metric = LatentStatistics(1)
    parts = [torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 1, 4)]
    for part in parts:
        metric.update(part)
    assert metric.compute().mean == pytest.approx(0.5)


def test_statistics_of_nothing_are_nan():
    metric = LatentStatistics(2)
    metric.update(torch.empty(0, 2, 1, 1))
    result = metric.compute()
    assert math.isnan(result.mean)
    assert math.isnan(result.std)


def test_refuses_another_number_of_channels():
    with pytest.raises(ValueError, match=r"latents.*\[B, 3, h, w\].*\[1, 2, 4, 4\]"):
        LatentStatistics(3).update(torch.zeros(1, 2, 4, 4))


def test_sums_are_not_stored_in_checkpoints():
    assert LatentStatistics(3).state_dict() == {}
