"""Fréchet distance of a validation: references kept, computed every time, and by torchmetrics."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchmetrics.image.fid import FrechetInceptionDistance

from benchmarks.device import DEVICE, now
from benchmarks.ours import OURS
from benchmarks.results import Row
from benchmarks.timing import Timings
from ldm_lightning.metrics.features import InceptionExtractor
from ldm_lightning.metrics.frechet import FrechetDistance
from ldm_lightning.utils.image import to_uint8
from ldm_lightning.utils.pretrained import WEIGHT_FILES

PART = "validation"
NUM_IMAGES = 64
REPORTED_IMAGES = 1000
BATCH_SIZE = 32
WITHOUT, TORCHMETRICS = "ours, nothing kept", "torchmetrics"


def write_random_inception(folder: Path) -> Path:
    """The weight file of Inception-v3, with random weights: the cost is that of published ones."""
    path = folder / WEIGHT_FILES["inception"]
    torch.manual_seed(0)
    torch.save({}, path)
    with mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict"):
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path)
        )
    torch.save(network.state_dict(), path)
    return path


@dataclass(frozen=True)
class Measured:
    """One pass over images and references.

    Attributes:
        seconds: What it takes for ``REPORTED_IMAGES`` images, from the time of ``NUM_IMAGES``.
        distance: The Fréchet distance.
    """

    seconds: float
    distance: float


def measure(update: Callable[[], None], compute: Callable[[], float]) -> Measured:
    """Time updates, which cost by the image, and the final computation, which does not."""
    start = now()
    update()
    updated = now()
    distance = compute()
    per_image = (updated - start) / NUM_IMAGES
    return Measured(per_image * REPORTED_IMAGES + now() - updated, distance)


def rows(*, quick: bool) -> list[Row]:
    """Every comparison of this part."""
    generator = torch.Generator().manual_seed(0)
    size = (NUM_IMAGES, 3, 64, 64)
    images = (torch.rand(size, generator=generator) * 2 - 1).to(DEVICE)
    changed = images + 0.3 * torch.randn(size, generator=generator).to(DEVICE)
    references, measured = to_uint8(images), to_uint8(changed)
    with tempfile.TemporaryDirectory() as folder:
        path = write_random_inception(Path(folder))
        extractor = InceptionExtractor(weights_dir=folder).to(DEVICE)
        theirs = FrechetInceptionDistance(
            feature_extractor_weights_path=str(path), antialias=False
        ).to(DEVICE)
    protocol: dict[str, str | int | float] = {"data": "noise", "num_images": NUM_IMAGES}
    kept = FrechetDistance(extractor, reference_protocol=protocol).to(DEVICE)
    anew = FrechetDistance(extractor).to(DEVICE)
    ways = {
        OURS: lambda: of_ours(kept, references, measured),
        WITHOUT: lambda: of_ours(anew, references, measured),
        TORCHMETRICS: lambda: of_theirs(theirs, references, measured),
    }
    passes: dict[str, list[Measured]] = {way: [] for way in ways}
    for number in range(1 + (2 if quick else 3)):  # the first pass computes what is kept
        for way, run in ways.items():
            result = run()
            if number:
                passes[way].append(result)
    distances = {way: results[-1].distance for way, results in passes.items()}
    for distance in distances.values():
        assert abs(distance / distances[TORCHMETRICS] - 1) < 1e-4, distances
    timings = Timings({way: [each.seconds for each in results] for way, results in passes.items()})
    return [
        Row(
            part=PART,
            what=f"Fréchet distance, statistics of references kept / {other}",
            setting=f"Inception, {REPORTED_IMAGES} images of 64 px",
            value=timings.ratio(OURS, other),
            num_rounds=timings.num_rounds,
            goal=0.52,
            seconds={way: timings.spread(way).median for way in (OURS, other)},
            facts={"distances": distances, "images_timed": NUM_IMAGES},
        )
        for other in (WITHOUT, TORCHMETRICS)
    ]


def of_ours(metric: FrechetDistance, references: Tensor, images: Tensor) -> Measured:
    """One pass of our metric."""

    def update() -> None:
        for batch in references.split(BATCH_SIZE):
            metric.update_references(batch)
        for batch in images.split(BATCH_SIZE):
            metric.update(batch)

    def compute() -> float:
        result = metric.compute()
        assert result is not None
        return result.distance

    metric.reset()
    return measure(update, compute)


def of_theirs(metric: FrechetInceptionDistance, references: Tensor, images: Tensor) -> Measured:
    """One pass of torchmetrics'."""

    def update() -> None:
        for real, batches in ((True, references), (False, images)):
            for batch in batches.split(BATCH_SIZE):
                metric.update(batch, real=real)

    metric.reset()
    return measure(update, lambda: float(metric.compute()))
