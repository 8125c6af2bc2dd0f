"""Unit-variance latents from statistics of the whole set (requirement B6, B11)."""

import json

import numpy as np
import pytest
import torch

from ldm_lightning.autoencoder.frozen import Moments
from ldm_lightning.autoencoder.normalizer import LatentNormalizer, StoredStatistics
from ldm_lightning.metrics.latents import measure_statistics

PROTOCOL = {"data": "noise", "split": "train", "crop": "adm_center", "images": "0123"}


def moments(count=200, *, variance=True):
    """Channels with offsets and scales of their own, posterior variances of many sizes."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.5, 1.0, 3.0])[:, None, None]
    shift = torch.tensor([-1.0, 0.1, 2.0])[:, None, None]
    mean = torch.randn(count, 3, 4, 5, generator=generator) * scale + shift
    spread = torch.rand(count, 3, 4, 5, generator=generator) * scale
    return Moments(mean, spread if variance else None)


def batches(whole, size=7):
    variances = [None] * 1000 if whole.variance is None else whole.variance.split(size)
    return [
        Moments(mean, variance)
        for mean, variance in zip(whole.mean.split(size), variances, strict=False)
    ]


def statistics_of(whole, **changes):
    settings = {"num_channels": 3, "first_stage_hash": "aaa", "protocol": PROTOCOL}
    return measure_statistics(batches(whole), **(settings | changes))


@pytest.mark.parametrize("variance", [True, False])
def test_statistics_equal_numpy_over_all_latents_in_float64(variance):
    whole = moments(variance=variance)
    found = statistics_of(whole)
    values = whole.mean.double().numpy()
    extra = whole.variance.double().numpy() if variance else np.zeros_like(values)
    axes = (0, 2, 3)
    assert found.channel_means == pytest.approx(values.mean(axes), rel=1e-12)
    expected = np.sqrt(values.var(axes, ddof=1) + extra.mean(axes))
    assert found.channel_stds == pytest.approx(expected, rel=1e-12)
    assert found.mean == pytest.approx(values.mean(), rel=1e-12)
    assert found.std == pytest.approx(np.sqrt(values.var(ddof=1) + extra.mean()), rel=1e-12)
    assert found.num_images == 200
    assert (found.first_stage_hash, found.protocol) == ("aaa", PROTOCOL)


def samples(whole, count=50):
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(count, *whole.mean.shape, generator=generator)
    return (whole.mean + whole.variance.sqrt() * noise).flatten(0, 1)


def test_by_the_law_of_total_variance_posterior_samples_get_unit_variance():
    whole = moments()
    normalizer = LatentNormalizer.from_statistics(statistics_of(whole), mode="channel")
    normalized = normalizer.normalize(samples(whole)).transpose(0, 1).flatten(1)
    # 200,000 values a channel: the standard error of either is below 0.003
    assert normalized.mean(dim=1).tolist() == pytest.approx([0, 0, 0], abs=0.01)
    assert normalized.std(dim=1).tolist() == pytest.approx([1, 1, 1], abs=0.01)


def test_the_scalar_kind_is_the_published_one_over_all_values():
    whole = moments()
    normalizer = LatentNormalizer.from_statistics(statistics_of(whole), mode="scalar")
    assert normalizer.shift.tolist() == [0, 0, 0]
    assert len(set(normalizer.scale.tolist())) == 1
    drawn = samples(whole)
    assert normalizer.scale[0].item() == pytest.approx(1 / drawn.std().item(), rel=0.01)
    assert normalizer.normalize(drawn).std().item() == pytest.approx(1, abs=0.01)


def test_identity_changes_nothing():
    latents = moments().mean
    normalizer = LatentNormalizer.from_statistics(statistics_of(moments()), mode="identity")
    assert torch.equal(normalizer.normalize(latents), latents)
    assert torch.equal(LatentNormalizer.identity(3).denormalize(latents), latents)


@pytest.mark.parametrize("mode", ["identity", "scalar", "channel"])
def test_denormalizing_undoes_normalizing(mode):
    latents = moments().mean.double()
    normalizer = LatentNormalizer.from_statistics(statistics_of(moments()), mode=mode).double()
    back = normalizer.denormalize(normalizer.normalize(latents))
    torch.testing.assert_close(back, latents, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["identity", "scalar", "channel"])
def test_it_survives_json_to_the_bit(mode):
    normalizer = LatentNormalizer.from_statistics(statistics_of(moments()), mode=mode)
    again = LatentNormalizer.from_dict(json.loads(json.dumps(normalizer.to_dict())))
    assert torch.equal(again.shift, normalizer.shift)
    assert torch.equal(again.scale, normalizer.scale)
    assert again.origin == normalizer.origin
    assert again.origin.mode == mode


def test_statistics_survive_their_file_to_the_bit(tmp_path):
    statistics = statistics_of(moments())
    statistics.save(tmp_path / "statistics.json")
    assert StoredStatistics.load(tmp_path / "statistics.json") == statistics


def test_a_damaged_file_of_statistics_says_what_to_do(tmp_path):
    path = tmp_path / "statistics.json"
    statistics_of(moments()).save(path)
    path.write_text(path.read_text()[:60])
    with pytest.raises(ValueError, match=r"statistics\.json"):
        StoredStatistics.load(path)
    path.write_text('{"mean": 0}')
    with pytest.raises(ValueError, match="statistics.*KeyError"):
        StoredStatistics.load(path)


def test_other_weights_are_refused_with_both_hashes():
    normalizer = LatentNormalizer.from_statistics(statistics_of(moments()), mode="scalar")
    normalizer.check("aaa")
    with pytest.raises(ValueError, match=r"first_stage_hash is 'aaa'; expected .*='bbb'"):
        normalizer.check("bbb")
    LatentNormalizer.identity(3).check("bbb")


def test_other_data_are_refused_by_the_fact_that_differs():
    normalizer = LatentNormalizer.from_statistics(statistics_of(moments()), mode="scalar")
    normalizer.check("aaa", protocol={"images": "0123"})
    with pytest.raises(ValueError, match="'adm_center'.*crop='random'"):
        normalizer.check("aaa", protocol={"crop": "random", "images": "0123"})
    with pytest.raises(ValueError, match="flip=True"):
        normalizer.check("aaa", protocol={"flip": True})


def test_latents_that_do_not_vary_are_refused():
    dead = Moments(torch.ones(4, 3, 2, 2) * torch.tensor([0.0, 1, 2])[:, None, None], None)
    statistics = statistics_of(dead)
    with pytest.raises(ValueError, match=r"channel\(s\) 0, 1, 2 is 0 over 4 image"):
        LatentNormalizer.from_statistics(statistics, mode="channel")
    varies_between_channels = LatentNormalizer.from_statistics(statistics, mode="scalar")
    assert varies_between_channels.scale.isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_are_not_finite_are_refused(value):
    whole = moments()
    whole.mean[3, 1, 2, 2] = value
    with pytest.raises(ValueError, match=f"finite.*{value}"):
        statistics_of(whole)


def test_one_value_has_no_standard_deviation():
    with pytest.raises(ValueError, match=r"finite.*\b0 image"):
        measure_statistics([], num_channels=3, first_stage_hash="aaa", protocol={})


def test_values_that_cannot_be_used_are_refused():
    with pytest.raises(ValueError, match="identity, scalar, channel.*'std'"):
        LatentNormalizer.from_statistics(statistics_of(moments()), mode="std")
    with pytest.raises(ValueError, match=r"\[c\].*\[2\].*\[3\]"):
        LatentNormalizer(torch.zeros(2), torch.ones(3))
    with pytest.raises(ValueError, match=r"scales.*\[1\.0, 0\.0\]"):
        LatentNormalizer(torch.zeros(2), torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match=r"latents.*\[B, 2, h, w\].*\[1, 3, 4, 4\]"):
        LatentNormalizer.identity(2).normalize(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="normalizer.scale"):
        LatentNormalizer.from_dict({"shift": [0.0]})


def test_half_precision_latents_are_normalized_in_float32():
    normalizer = LatentNormalizer.from_statistics(statistics_of(moments()), mode="channel")
    assert normalizer.normalize(moments().mean.bfloat16()).dtype == torch.float32
