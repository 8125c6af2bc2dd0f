import logging

import pytest
import torch
import torch_fidelity
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchmetrics.image.fid import FrechetInceptionDistance

from ldm_lightning.metrics.accumulators import FeatureMoments
from ldm_lightning.metrics.features import InceptionExtractor
from ldm_lightning.metrics.frechet import (
    FrechetDistance,
    frechet_distance,
    reference_statistics,
)
from ldm_lightning.utils.image import to_uint8
from ldm_lightning.utils.pretrained import WEIGHT_FILES

PROTOCOL = {
    "data": "pictures",
    "split": "val",
    "num_images": 40,
    "resolution": 32,
    "crop": "center",
}


class Images(Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


def measure(metric, references, images, batch_size=16):
    metric.reset()
    for batch in references.split(batch_size):
        metric.update_references(batch)
    for batch in images.split(batch_size):
        metric.update(batch)
    return metric.compute()


@pytest.fixture
def sets(pictures):
    def make(count=40):
        references = pictures(count, seed=1)
        noise = 0.3 * torch.randn(references.shape, generator=torch.Generator().manual_seed(2))
        return to_uint8(references), to_uint8(references + noise)

    return make


def statistics_of(features):
    moments = FeatureMoments(features.shape[1])
    moments.update(features)
    return moments.compute()


def test_equals_torch_fidelity_and_torchmetrics_on_the_same_weights(inception_dir, sets):
    references, images = sets(12)
    metric = FrechetDistance(InceptionExtractor(weights_dir=inception_dir, feature_dim=192))
    value = measure(metric, references, images).distance
    weights = str(inception_dir / WEIGHT_FILES["inception"])
    expected = torch_fidelity.calculate_metrics(
        input1=Images(images),
        input2=Images(references),
        fid=True,
        feature_layer_fid="192",
        feature_extractor_weights_path=weights,
        cuda=False,
        batch_size=12,
        cache=False,
        verbose=False,
        num_workers=0,
        save_cpu_ram=True,
    )["frechet_inception_distance"]
    assert expected > 0
    assert value == pytest.approx(expected, rel=1e-4)
    theirs = FrechetInceptionDistance(
        feature=192, antialias=False, feature_extractor_weights_path=weights
    )
    theirs.update(references, real=True)
    theirs.update(images, real=False)
    assert value == pytest.approx(theirs.compute().item(), rel=1e-4)


def test_full_inception_features_equal_those_of_torch_fidelity(inception_dir, sets):
    _, images = sets(2)
    network = FeatureExtractorInceptionV3(
        "inception-v3-compat",
        ["2048"],
        feature_extractor_weights_path=str(inception_dir / WEIGHT_FILES["inception"]),
    )
    extractor = InceptionExtractor(weights_dir=inception_dir)
    features = extractor(images)
    assert features.shape == (2, extractor.feature_dim) == (2, 2048)
    torch.testing.assert_close(features, network(images)[0], rtol=1e-5, atol=1e-6)


def test_refuses_an_inception_file_with_code_or_of_another_network(tmp_path):
    path = tmp_path / WEIGHT_FILES["inception"]
    torch.save({"code": print}, path)
    with pytest.raises(ValueError, match=f"inception.*{path.name}"):
        InceptionExtractor(weights_dir=tmp_path)
    torch.save({"w": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="inception.*network"):
        InceptionExtractor(weights_dir=tmp_path)


def test_distance_of_diagonal_gaussians_has_its_closed_form():
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(basis - basis.mean(dim=0)).Q * (4000 - 1) ** 0.5  # covariance 1
    a = basis * torch.tensor([1.0, 2.0, 3.0])
    b = basis * torch.tensor([2.0, 2.0, 0.5]) + torch.tensor([0.0, 1.0, 0.0])
    expected = 1.0 + (1.0 - 2.0) ** 2 + (3.0 - 0.5) ** 2
    value = frechet_distance(statistics_of(b), reference_statistics(statistics_of(a)))
    assert value.item() == pytest.approx(expected, rel=1e-8)


def test_distance_of_a_set_to_itself_is_zero_also_with_fewer_images_than_features():
    features = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    statistics = statistics_of(features)
    distance = frechet_distance(statistics, reference_statistics(statistics))
    assert abs(distance.item()) < 1e-9 * statistics.covariance.trace().item()


def test_rounding_of_the_sums_does_not_show_with_fewer_images_than_features():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(30, 64, generator=generator), torch.rand(30, 64, generator=generator) + 5
    values = []
    for order in (range(30), reversed(range(30))):
        moments = FeatureMoments(64), FeatureMoments(64)
        for row in order:
            moments[0].update(a[[row]])
            moments[1].update(b[[row]])
        reference = reference_statistics(moments[0].compute())
        values.append(frechet_distance(moments[1].compute(), reference).item())
    assert values[0] == pytest.approx(values[1], rel=1e-10)


def test_features_that_hardly_vary_keep_their_digits_over_batches_and_processes():
    generator = torch.Generator().manual_seed(0)
    rows = 1 + 1e-6 * torch.rand(40, 8, generator=generator, dtype=torch.float64)
    exact = torch.cov(rows.T)
    batches, processes = FeatureMoments(8), [FeatureMoments(8), FeatureMoments(8)]
    for batch in rows.split(7):
        batches.update(batch)
    for process, share in zip(processes, rows.split([25, 15]), strict=True):
        process.update(share)
    gathered = FeatureMoments(8)
    for name in gathered.metric_state:  # as torchmetrics gathers them
        setattr(gathered, name, torch.stack([getattr(process, name) for process in processes]))
    for moments in (batches, gathered):
        statistics = FeatureMoments.compute(moments)
        assert statistics.num_images == 40
        torch.testing.assert_close(statistics.mean, rows.mean(dim=0), rtol=1e-14, atol=0.0)
        torch.testing.assert_close(statistics.covariance, exact, rtol=0.0, atol=1e-8 * exact.max())


def test_grows_with_distortion_and_says_how_many_images_stand_behind_it(extractor, pictures):
    references = pictures(40)
    noise = torch.randn(references.shape, generator=torch.Generator().manual_seed(3))
    results = [
        measure(FrechetDistance(extractor), to_uint8(references), to_uint8(references + s * noise))
        for s in (0.05, 0.2, 0.6)
    ]
    assert results[0].distance < results[1].distance < results[2].distance
    assert (results[0].num_images, results[0].num_references) == (40, 40)
    assert results[0].small_sample
    many = to_uint8(pictures(extractor.feature_dim))
    assert not measure(FrechetDistance(extractor), many, many).small_sample


def test_a_pass_of_one_image_has_no_distance(extractor, sets):
    references, images = sets()
    assert measure(FrechetDistance(extractor), references, images[:1]) is None
    assert measure(FrechetDistance(extractor), references[:1], images) is None


class Counting:
    """An extractor that counts the images it is shown."""

    def __init__(self, extractor, weights_hash=None):
        self.extractor = extractor
        self.feature_network = extractor.feature_network
        self.feature_dim = extractor.feature_dim
        self.weights_hash = weights_hash or extractor.weights_hash
        self.num_images = 0

    def __call__(self, images):
        self.num_images += len(images)
        return self.extractor(images)


def cached(extractor, folder, protocol=PROTOCOL, weights_hash=None):
    counting = Counting(extractor, weights_hash)
    return counting, FrechetDistance(counting, reference_protocol=protocol, cache_dir=folder)


def test_cached_references_give_the_same_value_and_are_not_computed_again(
    extractor, tmp_path, sets
):
    references, images = sets()
    plain = measure(FrechetDistance(extractor), references, images)
    first, metric = cached(extractor, tmp_path)
    assert measure(metric, references, images) == plain
    assert first.num_images == 80
    assert measure(metric, references, images) == plain  # kept in memory
    assert first.num_images == 120
    second, metric = cached(extractor, tmp_path)
    assert measure(metric, references, images) == plain  # kept on disk
    assert second.num_images == 40
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


@pytest.mark.parametrize("change", [*PROTOCOL, "weights_hash"])
def test_anything_else_in_the_protocol_finds_no_cache(extractor, tmp_path, change, sets):
    references, images = sets()
    _, metric = cached(extractor, tmp_path)
    measure(metric, references, images)
    weights_hash = "other" if change == "weights_hash" else None
    protocol = PROTOCOL if weights_hash else {**PROTOCOL, change: 41}
    counting, metric = cached(extractor, tmp_path, protocol, weights_hash)
    measure(metric, references, images)
    assert counting.num_images == 80


@pytest.mark.parametrize("damage", ["cut", "changed", "foreign", "empty"])
def test_a_damaged_cache_is_computed_anew_with_a_warning(extractor, tmp_path, damage, caplog, sets):
    references, images = sets()
    _, metric = cached(extractor, tmp_path)
    expected = measure(metric, references, images)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:-100])
    elif damage == "changed":
        content[-1000] ^= 1
        path.write_bytes(content)
    elif damage == "empty":
        path.write_bytes(b"")
    else:  # the file of another key under this key's name
        other = {**PROTOCOL, "split": "test"}
        measure(cached(extractor, tmp_path, other)[1], references[:40] // 2, images)
        (foreign,) = (file for file in tmp_path.iterdir() if file != path)
        foreign.replace(path)
    counting, metric = cached(extractor, tmp_path)
    with caplog.at_level(logging.WARNING):
        assert measure(metric, references, images) == expected
    assert counting.num_images == 80
    assert ".safetensors" in caplog.text
    repaired, metric = cached(extractor, tmp_path)
    assert measure(metric, references, images) == expected
    assert repaired.num_images == 40


def test_a_partial_pass_is_never_kept(extractor, tmp_path, sets):
    references, images = sets()
    counting, metric = cached(extractor, tmp_path)
    measure(metric, references[:10], images[:10])
    assert list(tmp_path.iterdir()) == []
    assert measure(metric, references, images) == measure(
        FrechetDistance(extractor), references, images
    )
    assert counting.num_images == 20 + 80


def test_a_partial_pass_against_all_kept_references_is_warned_about(
    extractor, tmp_path, caplog, sets
):
    references, images = sets()
    _, metric = cached(extractor, tmp_path)
    measure(metric, references, images)
    with caplog.at_level(logging.WARNING):
        result = measure(metric, references[:10], images[:10])
    assert (result.num_images, result.num_references) == (10, 40)
    assert "10 images" in caplog.text
    assert "40 references" in caplog.text


def test_a_cache_that_cannot_be_written_costs_a_warning_alone(extractor, tmp_path, caplog, sets):
    references, images = sets()
    blocked = tmp_path / "file"
    blocked.write_text("")
    _, metric = cached(extractor, blocked)
    with caplog.at_level(logging.WARNING):
        assert measure(metric, references, images) is not None
    assert str(blocked) in caplog.text


def test_without_a_protocol_nothing_is_kept(extractor, sets):
    references, images = sets()
    counting = Counting(extractor)
    metric = FrechetDistance(counting)
    measure(metric, references, images)
    measure(metric, references, images)
    assert counting.num_images == 160


def test_refuses_a_cache_without_a_protocol_and_a_protocol_without_a_number(extractor, tmp_path):
    with pytest.raises(ValueError, match="reference_protocol"):
        FrechetDistance(extractor, cache_dir=tmp_path)
    with pytest.raises(ValueError, match=r"num_images.*\['data'\]"):
        FrechetDistance(extractor, reference_protocol={"data": "x"})
