import logging
import math

import pytest
import torch
from torch import nn
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from ldm_lightning.evaluation.folders import compare_sets
from ldm_lightning.metrics.features import (
    FeatureSet,
    InceptionExtractor,
    TinyExtractor,
    tiny_features,
)
from ldm_lightning.metrics.frechet import FrechetDistance
from ldm_lightning.metrics.generation import GenerationMetrics
from ldm_lightning.metrics.names import METRICS
from ldm_lightning.utils.image import to_uint8

NAMES = {"fd_tiny", "kd_tiny", "precision_tiny", "recall_tiny"}
PROTOCOL = {"data": "pictures", "split": "val", "num_images": 40}


class Network(nn.Module):
    """The embedded network as torchmetrics wants one."""

    num_features = TinyExtractor().feature_dim

    def __init__(self):
        super().__init__()
        self.extractor = TinyExtractor()

    def forward(self, images):
        return self.extractor(images)


@pytest.fixture(scope="module")
def sets(pictures):
    """Real pictures, and others that are noisier."""
    noise = torch.randn(30, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    return (pictures(30, seed=3) + 0.2 * noise).clamp(-1, 1), pictures(40, seed=1)


def measured(samples, real, *, metrics=None, batch_size=16):
    metrics = metrics or GenerationMetrics(tiny_features())
    metrics.reset()
    for batch in samples.split(batch_size):
        metrics.update(batch)
    for batch in real.split(batch_size):
        metrics.update_references(batch)
    return metrics.report()


class Counting:
    """An extractor that counts the images it is shown."""

    def __init__(self, extractor):
        self.extractor = extractor
        self.feature_network = extractor.feature_network
        self.feature_dim = extractor.feature_dim
        self.weights_hash = extractor.weights_hash
        self.num_images = 0

    def __call__(self, images):
        self.num_images += len(images)
        return self.extractor(images)

    def to(self, device, dtype=torch.float32):
        self.extractor.to(device, dtype)
        return self


def counted(folder, protocol=PROTOCOL):
    counting = Counting(TinyExtractor())
    features = FeatureSet(name="tiny", perceptual={}, frechet_name="rfd_tiny", extractor=counting)
    return counting, GenerationMetrics(features, protocol=protocol, cache_dir=folder)


def test_equals_torchmetrics_and_torch_fidelity_on_the_same_features(sets):
    samples, real = sets
    report = measured(samples, real)
    assert set(report.scalars) == set(report.protocol) == NAMES
    rounded, originals = to_uint8(samples), to_uint8(real)
    frechet = FrechetInceptionDistance(feature=Network(), normalize=False)
    frechet.update(originals, real=True)
    frechet.update(rounded, real=False)
    assert report.scalars["fd_tiny"] == pytest.approx(frechet.compute().item(), rel=1e-4)
    network = TinyExtractor()
    features = [network(images).double() for images in (rounded, originals)]
    statistics = [fid_features_to_statistics(rows) for rows in features]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert report.scalars["fd_tiny"] == pytest.approx(theirs, rel=1e-4)
    shares = prc_features_to_metric(
        *features, prc_neighborhood=3, prc_batch_size=999, save_cpu_ram=False, verbose=False
    )
    assert report.scalars["precision_tiny"] == pytest.approx(shares["precision"], abs=1e-6)
    assert report.scalars["recall_tiny"] == pytest.approx(shares["recall"], abs=1e-6)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`")
def test_kernel_distance_equals_torchmetrics_where_a_subset_is_the_whole_set(sets):
    samples, real = sets[0], sets[1][:30]
    theirs = KernelInceptionDistance(feature=Network(), subsets=1, subset_size=30)
    theirs.update(to_uint8(real), real=True)
    theirs.update(to_uint8(samples), real=False)
    mean, _ = theirs.compute()
    report = measured(samples, real)
    assert report.scalars["kd_tiny"] == pytest.approx(mean.item(), rel=1e-2)  # theirs is float32
    assert report.protocol["kd_tiny"]["num_subsets"] == 1


def test_windows_of_references_are_told_beside_the_number_of_samples(sets):
    protocol = {"num_windows": 40, "num_images": 10}
    report = measured(*sets, metrics=GenerationMetrics(tiny_features(), protocol=protocol))
    for entry in report.protocol.values():
        assert "num_windows" not in entry
        numbers = [entry[f"num_{name}"] for name in ("images", "references", "reference_images")]
        assert numbers == [30, 40, 10]


def test_protocol_says_how_each_figure_was_made(sets):
    report = measured(*sets, metrics=GenerationMetrics(tiny_features(), protocol=PROTOCOL))
    common = {
        **PROTOCOL,
        "num_images": 30,
        "num_references": 40,
        "feature_network": "tiny",
        "weights_hash": TinyExtractor().weights_hash,
    }
    assert report.num_images == 30
    assert report.protocol["fd_tiny"] == {**common, "small_sample": True}
    assert report.protocol["kd_tiny"] == {
        **common,
        "subset_size": 30,
        "num_subsets": 100,
        "subset_seed": 0,
    }
    assert report.protocol["recall_tiny"] == {**common, "nearest": 3}


def test_names_of_inception_are_the_standard_ones_and_no_others_are(inception_dir, sets):
    extractor = InceptionExtractor(weights_dir=inception_dir, feature_dim=64)
    features = FeatureSet(name="standard", perceptual={}, frechet_name="rfid", extractor=extractor)
    report = measured(sets[0][:5], sets[1][:5], metrics=GenerationMetrics(features))
    standard = {"fid", "kid", "precision", "recall"}
    assert set(report.scalars) == standard
    assert standard.isdisjoint(NAMES)
    assert standard | NAMES <= set(METRICS)


def test_neither_batches_nor_their_order_change_a_figure(sets):
    samples, real = sets
    metrics = GenerationMetrics(tiny_features()).to("cpu", torch.float64)
    expected = measured(samples, real, metrics=metrics).scalars
    for size, order in ((7, slice(None)), (1, torch.arange(29, -1, -1))):
        report = measured(samples[order], real, metrics=metrics, batch_size=size)
        assert report.scalars == pytest.approx(expected, rel=1e-9)


def test_images_are_measured_as_a_saved_file_would_hold_them(sets):
    samples, real = sets
    rounded = to_uint8(samples).float() / 127.5 - 1
    assert measured(samples * 1.0, real).scalars == measured(rounded, real).scalars
    wide = samples.clone()
    wide[samples == 1] = 3.0
    assert measured(wide, real).scalars == measured(samples, real).scalars


def test_inference_mode_and_autocast_do_not_change_a_figure(sets):
    expected = measured(*sets).scalars
    metrics = GenerationMetrics(tiny_features())
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        values = measured(*sets, metrics=metrics).scalars
    assert values == pytest.approx(expected, rel=1e-6)
    assert measured(*sets, metrics=metrics).scalars == values


def test_kept_references_are_not_needed_again(sets, tmp_path):
    samples, real = sets
    expected = measured(samples, real).scalars
    first, metrics = counted(tmp_path)
    assert measured(samples, real, metrics=metrics).scalars == expected
    assert first.num_images == 70
    assert not metrics.needs_references
    assert measured(samples, real, metrics=metrics).scalars == expected  # kept in memory
    assert first.num_images == 100
    second, metrics = counted(tmp_path)
    metrics.reset()
    assert not metrics.needs_references
    metrics.update(samples)
    assert metrics.compute() == pytest.approx(expected, rel=1e-6)  # kept on disk
    assert second.num_images == 30


def test_other_references_or_a_part_of_them_find_no_cache(sets, tmp_path):
    samples, real = sets
    _, metrics = counted(tmp_path)
    measured(samples, real[:39], metrics=metrics)
    assert metrics.needs_references
    assert list(tmp_path.iterdir()) == []
    measured(samples, real, metrics=metrics)
    assert [path.name.partition("_")[0] for path in tmp_path.iterdir()] == ["features"]
    _, metrics = counted(tmp_path, {**PROTOCOL, "split": "test"})
    metrics.reset()
    assert metrics.needs_references


def test_the_frechet_distance_is_that_of_streamed_statistics(sets):
    samples, real = sets
    streamed = FrechetDistance(TinyExtractor())
    streamed.update(to_uint8(samples))
    streamed.update_references(to_uint8(real))
    value = measured(samples, real).scalars["fd_tiny"]
    assert value == pytest.approx(streamed.compute().distance, rel=1e-6)


def test_worse_samples_have_worse_figures(pictures):
    real = pictures(60, seed=1)
    near, far = pictures(60, seed=5), torch.randn(60, 3, 32, 32).clamp(-1, 1)
    good, bad = measured(near, real).scalars, measured(far, real).scalars
    assert good["fd_tiny"] < bad["fd_tiny"]
    assert good["kd_tiny"] < bad["kd_tiny"]
    assert good["precision_tiny"] > bad["precision_tiny"]
    assert good["recall_tiny"] > bad["recall_tiny"]


def test_too_few_images_leave_figures_out(sets, caplog):
    samples, real = sets
    assert set(measured(samples[:3], real).scalars) == {"fd_tiny", "kd_tiny"}
    with caplog.at_level(logging.WARNING):
        report = measured(samples[:1], real)
    assert (report.scalars, report.num_images) == ({}, 1)
    assert "2 images" in caplog.text


def test_refuses_samples_that_are_not_finite_and_a_cache_without_a_protocol(sets, tmp_path):
    samples = sets[0][:2].clone()
    samples[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="Samples.*NaN"):
        GenerationMetrics(tiny_features()).update(samples)
    with pytest.raises(ValueError, match="cache_dir.*protocol"):
        GenerationMetrics(tiny_features(), cache_dir=tmp_path)
    with pytest.raises(ValueError, match=r"num_images.*\['data'\]"):
        GenerationMetrics(tiny_features(), protocol={"data": "x"})


def test_folders_are_compared_by_the_same_figures(sets):
    samples, real = sets
    report = compare_sets(
        samples.split(7), real.split(9), tiny_features(), protocol={"images": "a"}
    )
    assert report.scalars == pytest.approx(measured(samples, real).scalars, rel=1e-5)
    assert all(entry["images"] == "a" for entry in report.protocol.values())
