"""GPUs and threads of a job."""

import re

import pytest

from ldm_lightning.jobs.sweep.resources import Resources, chosen_gpus, visible_gpus
from tests.figures import figures_of


def devices(number: int, **settings) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of so many places."""
    resources = Resources(number, 1, **settings)
    return [resources.environment(place).get("CUDA_VISIBLE_DEVICES") for place in range(number)]


def test_gpus_are_handed_out_in_turn():
    assert devices(2, gpus=("0", "1")) == ["0", "1"]
    assert devices(4, gpus=("2", "5")) == ["2", "5", "2", "5"]
    assert devices(2, gpus=("0", "1", "2", "3"), gpus_per_job=2) == ["0,1", "2,3"]
    assert devices(3, gpus=("0", "1", "2"), gpus_per_job=2) == ["0,1", "2,0", "1,2"]
    assert devices(2) == [None, None]  # nothing is known of any, so nothing is hidden
    assert devices(2, gpus=()) == ["", ""]
    assert "GPU" not in str(Resources(2, 1))
    assert figures_of(str(Resources(2, 1))) == [2, 1]  # jobs, threads
    assert re.search(r"GPUs 0, 3\b", str(Resources(1, 4, ("0", "3"))))
    assert figures_of(str(Resources(1, 4, ("0", "3")))) == [1, 4, 0, 3]
    assert "no GPU" in str(Resources(1, 4, ()))


def test_every_process_of_a_job_gets_its_threads():
    assert Resources(2, 3).environment(1) == {"OMP_NUM_THREADS": "3"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_jobs": 0, "threads": 1}, r"hydra\.launcher\.n_jobs\b.*\b0\b"),
        ({"n_jobs": 1, "threads": "two"}, r"hydra\.launcher\.threads\b.*'two'"),
        ({"n_jobs": 1, "threads": 1, "gpus": ("0",), "gpus_per_job": 2}, r"=2\b.*\b1 GPU"),
        ({"n_jobs": 1, "threads": 1, "gpus": (), "gpus_per_job": 2}, r"=2\b.*\b0 GPU"),
    ],
)
def test_resources_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Resources(**settings)


@pytest.mark.parametrize(
    ("named", "expected"),
    [("", ()), ("-1", ()), ("3", ("3",)), ("2, GPU-8f3a", ("2", "GPU-8f3a"))],
)
def test_the_gpus_that_the_environment_names_are_used(monkeypatch, named, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == expected
    assert chosen_gpus("auto") == (expected or None)
    assert chosen_gpus([]) == ()
    assert chosen_gpus([1, "GPU-8f3a"]) == ("1", "GPU-8f3a")


@pytest.mark.parametrize("gpus", ["10", 1, "all"])
def test_gpus_are_given_as_a_list(gpus):
    with pytest.raises(ValueError, match=rf"\bauto\b.*\[0,1\].*{gpus!r}"):
        chosen_gpus(gpus)


def test_else_the_driver_is_asked(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == ()
    tool = tmp_path / "nvidia-smi"
    lines = ["GPU 0: NVIDIA X (UUID: GPU-1)", "  MIG 1g.5gb Device 0: (UUID: MIG-1)", "GPU 1: Y"]
    echo = "\n".join(f"echo '{line}'" for line in lines)
    tool.write_text(f"#!/bin/sh\n{echo}\n")
    tool.chmod(0o755)
    assert visible_gpus() == ("0", "1")
    tool.write_text("#!/bin/sh\nexit 9\n")
    with pytest.raises(ValueError, match=r"hydra\.launcher\.gpus=\[0,1\]"):
        visible_gpus()
