"""Tests of the tiny feature network: its file, its distance, its embedding."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from ldm_lightning.nn.tiny_features import (
    RECORD_PATH,
    WEIGHTS_PATH,
    BlurPool,
    TinyClassifier,
    TinyFeatures,
    feature_distance,
)

TRAINING_SCRIPT = Path(__file__).parents[2] / "experiments" / "tiny_features" / "train.py"


@pytest.fixture(scope="module")
def features():
    return TinyFeatures.pretrained()


def textured_image(size=64, seed=0):
    """Gratings of several directions and frequencies, [1, 3, size, size] in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    image = torch.zeros(3, size, size)
    for _ in range(12):
        fy, fx, phase = torch.rand(3, generator=generator) * torch.tensor([2.0, 2.0, 6.28])
        color = torch.randn(3, generator=generator)
        image += color[:, None, None] * torch.sin(fy * y + fx * x + phase)
    return (image / 6).clamp(-1, 1)[None]


def blurred(image, sigma):
    radius = int(4 * sigma) + 1
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).view(1, 1, 1, -1).expand(3, 1, 1, -1)
    padded = F.pad(image, (radius,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, taps, groups=3), taps.transpose(2, 3), groups=3)


def distance(features, a, b):
    return feature_distance(features.stages(a), features.stages(b))


def test_record_describes_the_shipped_file(features):
    record = json.loads(RECORD_PATH.read_text())
    assert record["file_bytes"] == WEIGHTS_PATH.stat().st_size <= 3_000_000
    assert record["weights_hash"] == features.weights_hash
    assert record["num_parameters"] == sum(p.numel() for p in features.parameters())
    assert record["test_accuracy"] >= 0.85


def test_weights_hash_changes_with_a_single_weight(features):
    weights = load_file(WEIGHTS_PATH)
    weights["head.bias"][0] += 1
    assert TinyFeatures(weights).weights_hash != features.weights_hash


def test_no_parameter_requires_a_gradient_and_train_keeps_eval_mode(features):
    features.train()
    assert not any(module.training for module in features.modules())
    assert not any(parameter.requires_grad for parameter in features.parameters())


def test_weights_are_real_when_built_on_the_meta_device():
    with torch.device("meta"):
        built = TinyFeatures.pretrained()
    assert {parameter.device.type for parameter in built.parameters()} == {"cpu"}


def test_distance_is_zero_for_identical_images_and_symmetric(features):
    a, b = textured_image(seed=0), textured_image(seed=1)
    assert distance(features, a, a).item() == 0
    torch.testing.assert_close(distance(features, a, b), distance(features, b, a))
    assert distance(features, a, b).item() > 0.1


def test_distance_of_each_image_does_not_depend_on_its_batch(features):
    a = torch.cat([textured_image(seed=s) for s in range(3)])
    b = a.flip(0)
    alone = torch.cat([distance(features, a[i : i + 1], b[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(distance(features, a, b), alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("flat", [False, True], ids=["textured", "flat"])
def test_gradient_reaches_the_first_image_and_is_finite(features, flat):
    start = torch.zeros(1, 3, 32, 32) if flat else textured_image(32)
    image = start.clone().requires_grad_()
    distance(features, image, textured_image(32, seed=5)).sum().backward()
    assert image.grad.isfinite().all()
    assert image.grad.abs().max() > 0


def test_gradient_is_zero_and_finite_between_identical_images(features):
    image = textured_image(32).requires_grad_()
    distance(features, image, image.detach()).sum().backward()
    assert image.grad.abs().max() < 1e-6


def test_distance_rises_with_blur(features):
    image = textured_image()
    values = [distance(features, blurred(image, s), image).item() for s in (0.5, 0.8, 1.2, 2, 3)]
    assert values == sorted(values)
    assert values[0] > 0


def test_a_shift_by_one_pixel_is_closer_than_noise_of_the_same_squared_error(features):
    wide = textured_image(65)
    image, shifted = wide[..., :64, :64], wide[..., :64, 1:]
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    noise *= (shifted - image).square().mean().sqrt() / noise.square().mean().sqrt()
    assert distance(features, shifted, image) < distance(features, image + noise, image)


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (64, 64), (96, 64), (40, 100), (8, 64)])
def test_embedding_is_one_float32_vector_per_image_at_any_size(features, size):
    with torch.autocast("cpu", torch.bfloat16):
        vectors = features.embedding(torch.rand(2, 3, *size) * 2 - 1)
    assert vectors.shape == (2, TinyFeatures.feature_dim)
    assert vectors.dtype == torch.float32
    assert TinyFeatures.feature_dim <= 128


def test_float64_is_kept_throughout():
    features = TinyFeatures.pretrained().double()
    a, b = textured_image(seed=0).double(), textured_image(seed=1).double()
    distance = feature_distance(features.stages(a), features.stages(b))
    assert distance.dtype == features.embedding(a).dtype == torch.float64


def test_embedding_of_a_large_image_is_half_patches_and_half_the_reduced_whole(features):
    image = F.interpolate(textured_image(64), size=(64, 64))
    patches = [image[..., y : y + 32, x : x + 32] for y in (0, 32) for x in (0, 32)]
    mean = torch.stack([features.embedding(patch) for patch in patches]).mean(dim=0)
    whole = features.embedding(F.avg_pool2d(image, 2))
    torch.testing.assert_close(features.embedding(image), (mean + whole) / 2)


def test_stages_halve_the_resolution_at_native_scale(features):
    shapes = [tuple(stage.shape[2:]) for stage in features.stages(textured_image(96)[..., :64])]
    assert shapes == [(96 // 2**i, 64 // 2**i) for i in range(len(shapes))]


def test_blur_pool_removes_the_frequencies_that_alias_to_the_mean():
    wave = torch.cos(torch.arange(32) * torch.pi / 2).expand(1, 1, 32, 32)
    checkerboard = torch.cos(torch.arange(32) * torch.pi).expand(1, 1, 32, 32)
    for pattern in (wave, checkerboard, checkerboard * checkerboard.transpose(2, 3)):
        assert BlurPool()(pattern)[..., 1:-1, 1:-1].abs().max() < 1e-5
    torch.testing.assert_close(BlurPool()(torch.ones(1, 2, 9, 8)), torch.ones(1, 2, 4, 4))


@pytest.mark.parametrize("shape", [(1, 1, 32, 32), (3, 32, 32), (1, 3, 4, 32)])
def test_refuses_images_it_cannot_judge(features, shape):
    for function in (features.stages, features.embedding):
        with pytest.raises(ValueError, match=r"\[B, 3, H, W\].*" + re.escape(f"{[*shape]}")):
            function(torch.zeros(shape))


def test_loading_refuses_weights_of_another_network(tmp_path):
    weights = load_file(WEIGHTS_PATH)
    weights["head.weight"] = weights["head.weight"][:, :64].contiguous()
    del weights["stem.bias"]
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other.safetensors.*head\.weight: expected \(10, 128\)"):
        TinyFeatures.pretrained(tmp_path / "other.safetensors")


def test_loading_names_a_file_that_is_missing_or_broken(tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(WEIGHTS_PATH.read_bytes()[:1000])
    for path in (broken, tmp_path / "absent.safetensors"):
        with pytest.raises(ValueError, match=path.name):
            TinyFeatures.pretrained(path)


def test_folding_batch_norm_away_keeps_the_function():
    spec = importlib.util.spec_from_file_location("tiny_features_training", TRAINING_SCRIPT)
    training = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(training)
    torch.manual_seed(0)
    network = training.with_batch_norm(TinyClassifier()).train()
    images = torch.randn(16, 3, 32, 32)
    for _ in range(3):
        network(images)  # moves the running statistics
    network.eval()
    folded = TinyFeatures(training.folded_weights(network))
    torch.testing.assert_close(folded(images), network(images), rtol=1e-4, atol=1e-4)


def test_the_distance_compares_directions_of_features_summed_over_weighted_stages():
    """Length does not count, but for features near zero: 1e-3 is added to its square."""
    one = [torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)] * 4
    scaled = [10 * stage for stage in one]
    other = [torch.tensor([4.0, -3.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)] * 4
    assert feature_distance(one, scaled).item() == pytest.approx(0, abs=1e-6)
    assert feature_distance(one, other).item() == pytest.approx(2 * 25 / 25.001)  # right angles
    for stage, weight in enumerate((0.2, 0.2, 0.5, 0.1)):
        changed = [*one[:stage], other[stage], *one[stage + 1 :]]
        assert feature_distance(one, changed).item() == pytest.approx(weight * 2 * 25 / 25.001)
