import logging
import math

import pytest
import torch
from torch import nn

from ldm_lightning.evaluation.folders import ImagePair, compare_pairs, compare_sets
from ldm_lightning.metrics.features import FeatureSet, InceptionExtractor, tiny_features
from ldm_lightning.metrics.frechet import FrechetDistance
from ldm_lightning.metrics.pixels import peak_signal_to_noise_ratio, structural_similarity
from ldm_lightning.metrics.power_spectrum import DEFICIT_NAME, OCTAVE_NAMES, PowerSpectrum
from ldm_lightning.metrics.reconstruction import ReconstructionMetrics
from ldm_lightning.utils.image import from_uint8, to_uint8
from ldm_lightning.utils.metadata import count_told

PROTOCOL = {"data": "pictures", "split": "val", "num_images": 24, "resolution": 32}
SPECTRUM = {DEFICIT_NAME, *OCTAVE_NAMES}


@pytest.fixture
def pair(pictures):
    def make(count=24, *, strength=0.2, **options):
        images = pictures(count, **options)
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(7))
        return images, images + strength * noise

    return make


def measured(images, reconstructions, *, batch_size=8, dtype=torch.float32, metrics=None):
    metrics = metrics or ReconstructionMetrics(tiny_features())
    metrics.to("cpu", dtype)
    metrics.reset()
    for rows in torch.arange(len(images)).split(batch_size):
        metrics.update(images[rows], reconstructions[rows])
    return metrics.compute()


def test_values_are_means_over_images_of_the_single_metrics(pair):
    images, reconstructions = pair()
    values = measured(images, reconstructions)
    rounded, originals = to_uint8(reconstructions), to_uint8(images)
    features = tiny_features()
    distance = features.perceptual["perceptual_tiny"]
    frechet = FrechetDistance(features.extractor)
    frechet.update(rounded)
    frechet.update_references(originals)
    spectrum = PowerSpectrum()
    spectrum.update(rounded, originals)
    expected = {
        **spectrum.compute().scalars(),
        "psnr": peak_signal_to_noise_ratio(rounded, originals).mean().item(),
        "ssim": structural_similarity(rounded, originals).mean().item(),
        "perceptual_tiny": distance(from_uint8(rounded), from_uint8(originals)).mean().item(),
        "rfd_tiny": frechet.compute().distance,
    }
    assert values == pytest.approx(expected, rel=1e-4)


def test_clamped_and_rounded_reconstructions_give_the_same_values(pair):
    images, reconstructions = pair(strength=0.8)
    assert reconstructions.abs().max() > 2
    values = measured(images, reconstructions)
    assert values == measured(images, reconstructions.clamp(-1, 1))
    assert values == measured(images, from_uint8(to_uint8(reconstructions)))


def test_values_do_not_depend_on_the_batch_size(pair):
    images, reconstructions = pair()
    expected = measured(images, reconstructions, batch_size=24)
    for batch_size in (1, 7):
        values = measured(images, reconstructions, batch_size=batch_size)
        assert values == pytest.approx(expected, rel=1e-4)
        assert values["psnr"] == pytest.approx(expected["psnr"], rel=1e-14)


def test_a_pass_begins_anew_after_reset(pair):
    images, reconstructions = pair()
    metrics = ReconstructionMetrics(tiny_features())
    first = measured(images, reconstructions, metrics=metrics)
    measured(images, -images, metrics=metrics)
    assert measured(images, reconstructions, metrics=metrics) == first


def test_perfect_reconstructions_stay_finite(pair):
    images, _ = pair()
    values = measured(images, images)
    assert values["psnr"] == 100.0
    assert values["ssim"] == pytest.approx(1.0)
    assert values["perceptual_tiny"] == 0.0
    assert values["rfd_tiny"] == pytest.approx(0.0, abs=1e-9)
    assert values["high_frequency_deficit"] == 0.0
    assert all(values[name] == 1.0 for name in OCTAVE_NAMES)


def test_equal_with_and_without_a_cache(tmp_path, pair):
    images, reconstructions = pair()
    expected = measured(images, reconstructions)
    for _ in range(2):
        metrics = ReconstructionMetrics(tiny_features(), protocol=PROTOCOL, cache_dir=tmp_path)
        assert measured(images, reconstructions, metrics=metrics) == expected
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_measures_images_that_are_not_rgb(channels, pair):
    images, reconstructions = pair(8, channels=channels)
    values = measured(images, reconstructions)
    assert set(values) == {"psnr", "ssim", "perceptual_tiny", "rfd_tiny", *SPECTRUM}
    assert all(math.isfinite(value) for value in values.values())
    if channels == 1:
        as_rgb = measured(images.expand(-1, 3, -1, -1), reconstructions.expand(-1, 3, -1, -1))
        assert values == pytest.approx(as_rgb, rel=1e-6)


def test_metrics_are_left_out_below_their_smallest_size(pair):
    images, reconstructions = pair(4, size=(15, 32))
    assert set(measured(images, reconstructions)) == {"psnr", "ssim", "perceptual_tiny", "rfd_tiny"}
    images, reconstructions = pair(4, size=(10, 32))
    assert set(measured(images, reconstructions)) == {"psnr", "perceptual_tiny", "rfd_tiny"}


def test_frechet_distance_of_a_single_image_is_left_out_and_said_so(caplog, pair):
    images, reconstructions = pair(1)
    with caplog.at_level(logging.WARNING):
        values = measured(images, reconstructions)
    assert set(values) == {"psnr", "ssim", "perceptual_tiny", *SPECTRUM}
    assert "rfd_tiny" in caplog.text


def test_protocol_says_how_each_figure_was_made(pair):
    images, reconstructions = pair()
    features = tiny_features()
    metrics = ReconstructionMetrics(features, protocol=PROTOCOL)
    measured(images, reconstructions, metrics=metrics)
    report = metrics.report()
    assert report.num_images == 24
    assert set(report.protocol) == set(report.scalars)
    assert report.protocol["psnr"] == report.protocol["high_frequency_deficit"] == PROTOCOL
    assert report.protocol["rfd_tiny"] == {
        **PROTOCOL,
        "num_references": 24,
        "small_sample": True,
        "feature_network": "tiny",
        "weights_hash": features.extractor.weights_hash,
    }
    assert report.protocol["perceptual_tiny"]["weights_hash"] == features.extractor.weights_hash


def test_protocol_counts_the_images_that_were_seen(pair):
    images, reconstructions = pair(9)
    metrics = ReconstructionMetrics(tiny_features(), protocol=PROTOCOL)
    measured(images, reconstructions, metrics=metrics)
    report = metrics.report()
    assert {entry["num_images"] for entry in report.protocol.values()} == {9}


def test_windows_are_counted_as_windows(tmp_path, pair):
    protocol = {"num_windows": 8, "num_images": 2, "images": "abc"}
    images, reconstructions = pair(8)
    for _ in range(2):  # measured, then with the kept statistics of the references
        metrics = ReconstructionMetrics(tiny_features(), protocol=protocol, cache_dir=tmp_path)
        measured(images, reconstructions, metrics=metrics)
        for entry in metrics.report().protocol.values():
            assert (entry["num_windows"], entry["num_images"]) == (8, 2)
            assert count_told(entry) == "8 windows of 2 images"
    assert len(list(tmp_path.glob("**/*.safetensors"))) == 1


def test_nothing_enters_a_state_dict_or_an_optimizer(pair):
    class Owner(nn.Module):
        def __init__(self):
            super().__init__()
            self.metrics = ReconstructionMetrics(tiny_features())

    owner = Owner()
    measured(*pair(4), metrics=owner.metrics)
    assert owner.state_dict() == {}
    assert list(owner.parameters()) == []
    assert list(owner.modules()) == [owner]


def test_autocast_and_inference_mode_do_not_change_a_figure(pair):
    images, reconstructions = pair()
    expected = measured(images, reconstructions)
    metrics = ReconstructionMetrics(tiny_features())
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        values = measured(images, reconstructions, metrics=metrics)
    assert values == pytest.approx(expected, rel=1e-6)
    assert measured(images, reconstructions, metrics=metrics) == values  # after inference mode


def test_refuses_shapes_that_differ_and_values_that_are_not_finite(pair):
    images, reconstructions = pair(2)
    metrics = ReconstructionMetrics(tiny_features())
    with pytest.raises(ValueError, match="shape"):
        metrics.update(images, reconstructions[..., :-1])
    reconstructions[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        metrics.update(images, reconstructions)


def test_pairs_of_folders_measure_as_reconstructions_do(pair):
    images, reconstructions = pair()
    batches = [
        ImagePair(reconstructions[rows], images[rows]) for rows in torch.arange(24).split(10)
    ]
    report = compare_pairs(batches, tiny_features(), protocol={"images": "a", "reference": "b"})
    assert report.scalars == pytest.approx(measured(images, reconstructions), rel=1e-4)
    assert report.protocol["psnr"] == {"images": "a", "reference": "b", "num_images": 24}


def test_sets_of_folders_have_the_frechet_distance_of_their_images(pair):
    images, reconstructions = pair()
    report = compare_sets(reconstructions[:20].split(7), images.split(5), tiny_features())
    frechet = FrechetDistance(tiny_features().extractor)
    frechet.update(to_uint8(reconstructions[:20]))
    frechet.update_references(to_uint8(images))
    assert report.scalars["fd_tiny"] == pytest.approx(frechet.compute().distance, rel=1e-5)
    assert report.protocol["fd_tiny"]["num_images"] == 20
    assert report.protocol["fd_tiny"]["num_references"] == 24
    with pytest.raises(ValueError, match=r"\b2 images\b"):
        compare_sets([images[:1]], [images], tiny_features())


def test_inception_computes_in_float64_where_asked(inception_dir, pair):
    extractor = InceptionExtractor(weights_dir=inception_dir, feature_dim=64)
    features = FeatureSet(name="standard", perceptual={}, frechet_name="rfid", extractor=extractor)
    images, reconstructions = pair(4)
    single = measured(images, reconstructions, metrics=ReconstructionMetrics(features))
    double = measured(
        images, reconstructions, metrics=ReconstructionMetrics(features), dtype=torch.float64
    )
    assert double["rfid"] == pytest.approx(single["rfid"], rel=1e-3)
