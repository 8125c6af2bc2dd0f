"""The first stage in use: rebuilt from its checkpoint, and left as it was (requirement D1)."""

import pytest
import torch
from torch import nn

from ldm_lightning.autoencoder.frozen import FrozenFirstStage
from ldm_lightning.autoencoder.normalizer import LatentNormalizer, NormalizerOrigin
from ldm_lightning.metrics.latents import frozen_moments, measure_statistics
from ldm_lightning.restore.first_stage import open_first_stage
from ldm_lightning.storage.hashing import hash_tensors
from tests.autoencoder.first_stages import autoencoder_of, frozen, write_checkpoint

KINDS = ("gaussian", "identity", "quantizer")


def images(count=5, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 16, 16, generator=generator) * 2 - 1


def normalized(first_stage):
    """The first stage with a normalizer that changes every channel."""
    statistics = measure_statistics(
        frozen_moments(first_stage, [images(), images(seed=1)]),
        num_channels=4,
        first_stage_hash=first_stage.weights_hash,
        protocol={},
    )
    first_stage.set_normalizer(LatentNormalizer.from_statistics(statistics, mode="channel"))
    return first_stage


class Owner(nn.Module):
    """Holds a first stage as the modules of the second stage do, and one as they must not."""

    def __init__(self, first_stage, *, registered):
        super().__init__()
        self.network = nn.Conv2d(4, 4, 1)
        self.hidden = (first_stage,)
        if registered:
            self.first_stage = first_stage


@pytest.mark.parametrize("kind", KINDS)
def test_training_on_its_latents_leaves_every_tensor_as_it_was(tmp_path, kind):
    first_stage = normalized(frozen(tmp_path, kind))
    before = {name: value.clone() for name, value in first_stage.state_dict().items()}
    owner = Owner(first_stage, registered=True).train()
    optimizer = torch.optim.SGD(owner.parameters(), lr=0.1, weight_decay=0.1)
    for step in range(3):
        latents = first_stage.encode(images(seed=step), torch.randn(5, 4, 4, 4))
        loss = (owner.network(latents) - first_stage.encode(images(seed=step))).square().mean()
        loss.backward()
        optimizer.step()
        first_stage.decode(owner.network(latents))
    assert before.keys() == first_stage.state_dict().keys()
    for name, value in first_stage.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert hash_tensors(first_stage.autoencoder.state_dict()) == first_stage.weights_hash
    assert all(parameter.grad is None for parameter in first_stage.parameters())


def test_it_stays_in_evaluation_mode_and_frozen(tmp_path):
    first_stage = frozen(tmp_path)
    Owner(first_stage, registered=True).train()
    first_stage.train(True)
    assert not any(module.training for module in first_stage.modules())
    assert not any(parameter.requires_grad for parameter in first_stage.parameters())


def test_hidden_in_a_tuple_it_is_no_part_of_its_owner(tmp_path):
    owner = Owner(frozen(tmp_path), registered=False)
    assert set(owner.state_dict()) == {"network.weight", "network.bias"}
    assert len(list(owner.parameters())) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_without_noise_encoding_gives_the_normalized_mean(tmp_path, kind):
    first_stage = normalized(frozen(tmp_path, kind))
    output = first_stage.autoencoder.encode(images())
    mean, variance = first_stage.moments(images())
    assert torch.equal(mean, output.continuous)
    assert (variance is None) == (kind != "gaussian")
    assert first_stage.is_stochastic == (kind == "gaussian")
    expected = first_stage.normalizer.normalize(mean)
    assert torch.equal(first_stage.encode(images()), expected)
    assert first_stage.latent_shape((5, 3, 16, 16)) == tuple(expected.shape)


def test_with_noise_encoding_gives_the_sample_of_the_autoencoder(tmp_path):
    first_stage = frozen(tmp_path).double()
    noise = torch.randn(5, 4, 4, 4, dtype=torch.float64)
    sampled = first_stage.autoencoder.encode(images().double(), noise).latents
    torch.testing.assert_close(first_stage.encode(images().double(), noise), sampled)


@pytest.mark.parametrize("kind", ["identity", "quantizer"])
def test_noise_changes_nothing_where_nothing_is_sampled(tmp_path, kind):
    first_stage = frozen(tmp_path, kind)
    noise = torch.randn(5, 4, 4, 4)
    assert torch.equal(first_stage.encode(images(), noise), first_stage.encode(images()))


def test_with_codes_latents_are_continuous_and_decoding_quantizes_first(tmp_path):
    first_stage = normalized(frozen(tmp_path, "quantizer"))
    quantizer = first_stage.autoencoder.bottleneck
    latents = first_stage.normalizer.denormalize(first_stage.encode(images()))
    vectors = latents.movedim(1, -1).flatten(0, 2)
    assert torch.cdist(vectors, quantizer.codes()).min(dim=1).values.min() > 1e-3
    nearest = torch.cdist(vectors, quantizer.codes()).argmin(dim=1)
    codes = quantizer.codes()[nearest].view(5, 4, 4, 4).movedim(-1, 1)
    expected = first_stage.autoencoder.decode(codes).clamp(-1, 1)
    torch.testing.assert_close(first_stage.decode(first_stage.encode(images())), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_what_was_encoded_is_the_reconstruction(tmp_path, kind):
    first_stage = normalized(frozen(tmp_path, kind))
    expected = first_stage.autoencoder(images()).reconstructions.clamp(-1, 1)
    torch.testing.assert_close(
        first_stage.decode(first_stage.encode(images())), expected, rtol=1e-4, atol=1e-5
    )


def test_decoded_images_lie_in_range(tmp_path):
    decoded = frozen(tmp_path).decode(torch.randn(2, 4, 4, 4) * 1000)
    assert decoded.abs().max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_moments_are_float32_and_close(tmp_path, kind):
    first_stage = frozen(tmp_path, kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        moments = first_stage.moments(images())
    assert moments.mean.dtype == torch.float32
    torch.testing.assert_close(moments.mean, first_stage.moments(images()).mean, rtol=0, atol=0.1)


def test_double_reaches_the_normalizer_too(tmp_path):
    first_stage = normalized(frozen(tmp_path)).double()
    assert first_stage.normalizer.scale.dtype == torch.float64
    assert first_stage.encode(images().double()).dtype == torch.float64


# Its checkpoint


@pytest.mark.parametrize("weights", ["ema", "raw"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_checkpoint_alone_rebuilds_it(tmp_path, kind, weights):
    path = write_checkpoint(tmp_path / "checkpoints" / "best.ckpt", kind)
    first_stage = open_first_stage(tmp_path, weights=weights).frozen()  # a run folder
    stored = torch.load(path, weights_only=True)
    names = stored["ema"].keys()
    expected = {n: stored["state_dict"][f"autoencoder.{n}"] for n in names}
    expected = stored["ema"] if weights == "ema" else expected
    for name, value in first_stage.autoencoder.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert first_stage.path == path
    assert first_stage.weights_hash == hash_tensors(expected)


def test_the_hash_tells_weights_apart_and_not_places(tmp_path):
    first = frozen(tmp_path)
    same = open_first_stage(write_checkpoint(tmp_path / "moved" / "x.ckpt"), weights="ema").frozen()
    raw = open_first_stage(first.path, weights="raw").frozen()
    other = frozen(tmp_path, seed=1)
    assert first.weights_hash == same.weights_hash
    assert len({stage.weights_hash for stage in (first, raw, other)}) == 3
    same.check_weights(first.weights_hash)
    with pytest.raises(ValueError, match=r"first_stage_hash") as refused:
        other.check_weights(first.weights_hash)
    for part in (other.weights_hash, first.weights_hash, str(other.path), "weights=ema or raw"):
        assert part in str(refused.value)


def test_building_it_draws_nothing_from_the_runs_random_numbers(tmp_path):
    path = write_checkpoint(tmp_path / "x.ckpt")
    before = torch.random.get_rng_state()
    open_first_stage(path, weights="ema")
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("part", ["autoencoder", "bottleneck"])
def test_a_foreign_target_in_the_description_is_refused_and_not_called(tmp_path, part):
    path, sprung = write_checkpoint(tmp_path / "x.ckpt"), tmp_path / "sprung"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["first_stage"][part] = {"_target_": "os.mkdir", "path": str(sprung)}
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=r"'os.mkdir'.*refused"):
        open_first_stage(path, weights="ema")
    assert not sprung.exists()


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.ckpt"):
        open_first_stage(tmp_path / "gone.ckpt", weights="ema")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"best\.ckpt.*last\.ckpt"):
        open_first_stage(tmp_path / "empty", weights="ema")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other\.ckpt.*first stage"):
        open_first_stage(tmp_path / "other.ckpt", weights="ema")


def test_a_normalizer_of_other_weights_or_channels_is_refused(tmp_path):
    first_stage, other = frozen(tmp_path), frozen(tmp_path, seed=1)
    normalizer = normalized(other).normalizer
    with pytest.raises(ValueError, match=other.weights_hash):
        first_stage.set_normalizer(normalizer)
    with pytest.raises(ValueError, match=r"\b3 channels\b.*\b4\b"):
        first_stage.set_normalizer(LatentNormalizer.identity(3))


def test_a_normalizer_of_its_own_comes_along_from_the_start(tmp_path):
    origin = NormalizerOrigin("scalar", "abc", 10, {})
    normalizer = LatentNormalizer(torch.zeros(4), torch.full((4,), 0.18215), origin=origin)
    first_stage = FrozenFirstStage(
        autoencoder_of(), normalizer, weights_hash="abc", path=tmp_path / "x.ckpt", weights="raw"
    )
    latents = first_stage.moments(images()).mean
    torch.testing.assert_close(first_stage.encode(images()), latents * 0.18215)
