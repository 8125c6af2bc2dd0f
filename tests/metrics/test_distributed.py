"""Four gloo processes measure what one process measures.

Also when all but one hold no images, and when only one of them finds cached reference statistics.
"""

import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ldm_lightning.bottleneck.base import BottleneckOutput
from ldm_lightning.metrics.features import tiny_features
from ldm_lightning.metrics.first_stage import FirstStageMetrics
from ldm_lightning.metrics.generation import GenerationMetrics
from tests.processes import join_gloo, run_processes

NUM_PROCESSES = 4
NUM_IMAGES = 13  # shares of 4, 3, 3 and 3
PROTOCOL = {"data": "noise", "split": "val", "num_images": NUM_IMAGES}


def batches(rank, num_processes):
    """Batches of this process's share: every ``num_processes``-th image, three at a time."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(NUM_IMAGES, 3, 32, 32, generator=generator, dtype=torch.float64) * 2 - 1
    noise = torch.randn(images.shape, generator=generator, dtype=torch.float64)
    latents = torch.randn(NUM_IMAGES, 4, 2, 2, generator=generator, dtype=torch.float64)
    indices = torch.randint(0, 8, (NUM_IMAGES, 2, 2), generator=generator)
    for rows in torch.arange(rank, NUM_IMAGES, num_processes).split(3):
        output = BottleneckOutput(
            latents=latents[rows],
            continuous=latents[rows],
            terms={"kl": latents[rows].square().sum(dim=(1, 2, 3))},
            indices=indices[rows],
        )
        yield images[rows], images[rows] + 0.2 * noise[rows], output


def measured(rank, num_processes, cache_dir, busy_rank=None):
    metrics = FirstStageMetrics(
        tiny_features(),
        latent_channels=4,
        num_codes=8,
        protocol=PROTOCOL if cache_dir else None,
        cache_dir=cache_dir,
    )
    metrics.to("cpu", torch.float64)
    reports = []
    for _ in range(2):  # the second pass uses the statistics that the first one kept
        metrics.reset()
        if busy_rank is None:
            shares = [(rank, num_processes)]
        else:  # one process takes everything
            shares = [(0, 1)] if rank == busy_rank else []
        for share in shares:
            for batch in batches(*share):
                metrics.update(*batch)
        reports.append(metrics.compute())
    return reports


def generated(rank, num_processes, cache_dir, busy_rank=None):
    """The same images as samples against their noisy versions, in two passes."""
    metrics = GenerationMetrics(
        tiny_features(), protocol=PROTOCOL if cache_dir else None, cache_dir=cache_dir
    ).to("cpu", torch.float64)
    passes = []
    for _ in range(2):
        metrics.reset()
        if busy_rank is None:
            shares = [(rank, num_processes)]
        else:
            shares = [(0, 1)] if rank == busy_rank else []
        for share in shares:
            for samples, images, _ in batches(*share):
                metrics.update(samples)
                metrics.update_references(images)
        report = metrics.report()
        assert {entry["num_images"] for entry in report.protocol.values()} == {NUM_IMAGES}
        passes.append(report.scalars)
    return passes


def work(rank, folder):
    """Measure every scenario in one process group, because starting processes takes seconds."""
    join_gloo(rank, folder, NUM_PROCESSES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reports = {
            "shared": measured(rank, NUM_PROCESSES, None),
            "idle": measured(rank, NUM_PROCESSES, None, busy_rank=2),
            "cached": measured(rank, NUM_PROCESSES, Path(folder) / f"cache{rank}"),
        }
        generation = {
            "shared": generated(rank, NUM_PROCESSES, None),
            "idle": generated(rank, NUM_PROCESSES, None, busy_rank=2),
            "cached": generated(rank, NUM_PROCESSES, Path(folder) / f"features{rank}"),
        }
    plain = {name: [vars(report) for report in passes] for name, passes in reports.items()}
    torch.save({"first_stage": plain, "generation": generation}, f"{folder}/report{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What one process measures; its cache lies where rank 0 will look and no other will."""
    folder = tmp_path_factory.mktemp("processes")
    report, _ = measured(0, 1, folder / "cache0")
    assert len(list((folder / "cache0").iterdir())) == 1
    scalars, _ = generated(0, 1, folder / "features0")
    assert len(list((folder / "features0").iterdir())) == 1
    return folder, report, scalars


@pytest.fixture(scope="module")
def processes(expected):
    folder, _, _ = expected
    run_processes(work, str(folder), number=NUM_PROCESSES)
    return [
        torch.load(folder / f"report{rank}.pt", weights_only=True) for rank in range(NUM_PROCESSES)
    ]


def assert_equal(report, expected):
    assert report["num_images"] == NUM_IMAGES
    assert report["scalars"] == pytest.approx(expected.scalars, rel=1e-10, abs=1e-10)
    assert report["latent_scalars"] == pytest.approx(expected.latent_scalars, rel=1e-10)
    for name, values in expected.per_channel.items():
        assert report["per_channel"][name] == pytest.approx(values, rel=1e-10)
    assert torch.equal(report["codebook_histogram"], expected.codebook_histogram)
    assert {name: entry["num_images"] for name, entry in report["protocol"].items()} == {
        name: NUM_IMAGES for name in expected.scalars
    }


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["shared", "idle", "cached"])
def test_four_processes_equal_one(scenario, processes, expected):
    _, report, _ = expected
    for reports in processes:
        for each in reports["first_stage"][scenario]:
            assert_equal(each, report)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["shared", "idle", "cached"])
def test_four_processes_measure_generated_images_as_one(scenario, processes, expected):
    _, _, scalars = expected
    assert len(scalars) == 4
    for reports in processes:
        for each in reports["generation"][scenario]:
            assert each == pytest.approx(scalars, rel=1e-9)
