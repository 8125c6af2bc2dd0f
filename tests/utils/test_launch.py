"""Which process this is, whatever an environment says."""

import os

import pytest

from ldm_lightning.builders.hardware import _environment
from ldm_lightning.utils.launch import Launch, check_environment, launched, slurm_step

NAMES = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "GROUP_RANK")


@pytest.fixture
def environment(monkeypatch):
    for name in tuple(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_")) or name in NAMES:
            monkeypatch.delenv(name)

    def set_all(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_all


SHELL = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}
TASK = {**SHELL, "SLURM_PROCID": "2", "SLURM_LOCALID": "1", "SLURM_NTASKS_PER_NODE": "4"}


@pytest.mark.parametrize(
    "variables",
    [
        {},
        SHELL,
        {**SHELL, "SLURM_JOB_NAME": "train"},
        {**SHELL, "SLURM_PROCID": "0"},
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "1"},
        {**TASK, "SLURM_JOB_NAME": "bash"},
        {"WORLD_SIZE": "1"},
        {"LOCAL_RANK": "0"},
        {"RANK": "0"},
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
    ],
)
def test_a_process_that_nobody_started_others_with_is_alone(environment, variables):
    environment(variables)
    check_environment()
    assert launched().is_alone
    assert slurm_step() is None
    assert type(_environment()[0]).__name__ == "LightningEnvironment"


@pytest.mark.parametrize(
    ("variables", "expected", "kind"),
    [
        (TASK, Launch(2, 4, 1), "SLURMEnvironment"),
        (
            {**TASK, "TORCHELASTIC_RUN_ID": "a", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"},
            Launch(1, 2, 1),
            "TorchElasticEnvironment",
        ),
        (
            {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"},
            Launch(3, 4, 1),
            "LightningEnvironment",
        ),
    ],
)
def test_a_process_among_others_knows_which_it_is(environment, variables, expected, kind):
    environment(variables)
    check_environment()
    assert launched() == expected
    assert type(_environment()[0]).__name__ == kind


def test_tasks_without_a_number_for_each_machine_are_refused_by_name(environment):
    environment({name: value for name, value in TASK.items() if name != "SLURM_NTASKS_PER_NODE"})
    with pytest.raises(ValueError, match=r"SLURM_NTASKS=4.*--ntasks-per-node"):
        _environment()


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE=abc"),
        ({"RANK": "x"}, "RANK=x"),
        ({"LOCAL_RANK": ""}, "LOCAL_RANK="),
        ({"NODE_RANK": "1.5"}, "NODE_RANK=1.5"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK=-1"),
        ({**TASK, "SLURM_PROCID": "two"}, "SLURM_PROCID=two"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2.*RANK"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK=1.*WORLD_SIZE"),
        ({"RANK": "1"}, "RANK=1.*WORLD_SIZE"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2, WORLD_SIZE=2"),
        ({"TORCHELASTIC_RUN_ID": "a", "RANK": "1"}, "RANK=1.*WORLD_SIZE"),
    ],
)
def test_half_an_environment_is_refused_by_name(environment, variables, named):
    environment(variables)
    with pytest.raises(ValueError, match=named):
        check_environment()
