"""Images that do not divide among processes, or are fewer than these, are counted once each."""

import pytest
import torch

from tests.cli.second_stage import trained_first_stage
from tests.distributed.test_ddp import free_port
from tests.distributed.uneven_validation import NUM_SAMPLES, SCENARIOS, measured, work
from tests.processes import run_processes

NUM_PROCESSES = 3


@pytest.fixture(scope="module")
def one_and_three(tmp_path_factory):
    """What one process measures in every scenario, and each of three."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("first", "one", "three")}
    first_stage = trained_first_stage(
        folders["first"], "vae_f8", max_steps=1, validation__every_steps=1
    )
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    place["WORLD_SIZE"] = str(NUM_PROCESSES)
    run_processes(work, str(folders["three"]), str(first_stage), place, number=NUM_PROCESSES)
    one = {
        scenario: measured(scenario, folders["one"], first_stage, num_processes=1)
        for scenario in SCENARIOS
    }
    three = [
        torch.load(folders["three"] / f"{rank}.pt", weights_only=True)
        for rank in range(NUM_PROCESSES)
    ]
    return one, three


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_three_processes_validate_what_one_does(one_and_three):
    """One test, so that the processes start once."""
    one, three = one_and_three
    for scenario in SCENARIOS:
        passes = zip(one[scenario], *(each[scenario] for each in three), strict=True)
        for expected, *others in passes:
            for other in others:
                compare(scenario, expected, other)


def compare(scenario: str, expected: dict, other: dict) -> None:
    """A pass of one process and of one of three over the images of a scenario."""
    num_images = int(scenario.split()[1])
    assert other["num_images"] == expected["num_images"] == num_images
    assert ("val/loss" in expected["scalars"]) == scenario.startswith("second")
    assert other["scalars"].keys() == expected["scalars"].keys()
    for name, value in expected["scalars"].items():
        # Generated images pass through the feature network in float32.
        tolerance = 1e-6 if name.startswith("gen/") else 1e-10
        close = pytest.approx(value, rel=tolerance, abs=tolerance, nan_ok=True)
        assert other["scalars"][name] == close, (scenario, name)
    for name, count in other["counts"].items():
        wanted = NUM_SAMPLES if name.startswith("gen/") else num_images
        assert count == expected["counts"][name] == wanted, (scenario, name)
    if "histogram" in expected:
        assert torch.equal(other["histogram"], expected["histogram"])
        assert other["histogram"].sum() == num_images * 4 * 4
