"""Running a chain: what is skipped, how it ends, what it leaves behind."""

import json
import logging
import signal
from pathlib import Path

import pytest

from ldm_lightning.jobs.chain.running import Chain, exit_code, run_chain
from ldm_lightning.jobs.chain.steps import ImageFacts, Request, all_steps, trainings
from tests.cli.run import process, summary_of
from tests.jobs.chain.stand_in import StandIn

ALL = [
    *("first_stage", "first_stage_evaluation", "latents", "second_stage"),
    *("samples", "prior", "evaluation", "prior_evaluation"),
]

ONE_STEP = """
import sys
from pathlib import Path
from ldm_lightning.jobs.chain.step_process import run_command
from ldm_lightning.jobs.chain.steps import Step
Path("ldm_lightning").mkdir()  # found before the installed one: the process runs in this folder
Path("ldm_lightning/__init__.py").touch()
Path("ldm_lightning/step.py").write_text(sys.argv[1])
try:
    print("code", run_command(Step("step", "step", ("a b",)), Path.cwd()), flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""

SAVES_SLOWLY = """
import os, signal, sys, time
def stop(number, frame):
    time.sleep(0.5)
    print("saved", number, flush=True)
    sys.exit(3)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
os.kill(os.getppid(), {number})  # the parent alone
time.sleep(60)
"""


NAMES_WHO_STARTED_IT = """
import os
print(os.environ["LDM_LIGHTNING_COMMANDED_BY"] == str(os.getppid()), flush=True)
"""


@pytest.fixture
def chain(tmp_path):
    request = Request("ldm_kl_f4", "kl_f4", ())
    folder = tmp_path / "outputs" / "ldm_kl_f4_chain" / "now"
    first, second = trainings(request, folder)
    steps = all_steps(request, first, second, ImageFacts("shapes", "tiny", "crops", 3), folder)
    return Chain((), str(tmp_path), str(folder), steps)


@pytest.fixture(autouse=True)
def _messages(caplog):
    caplog.set_level(logging.INFO)


def test_every_command_is_said_before_it_runs(chain, caplog):
    said = []

    def run(step, working_folder):
        said.append(caplog.messages[-1])
        return stand_in(step, working_folder)

    stand_in = StandIn()
    assert run_chain(chain, run=run) == 0
    assert stand_in.names == ALL
    assert said == [
        f"{number}/8 {step.name}: {step.line}" for number, step in enumerate(chain.steps, 1)
    ]


def test_the_summary_gathers_states_seconds_and_figures(chain, capsys):
    assert run_chain(chain, run=StandIn({"first_stage": "early_stopped"})) == 0
    summary = summary_of(Path(chain.folder))
    assert (summary["state"], summary["name"]) == ("finished", "ldm_kl_f4_chain")
    assert list(summary["steps"]) == ALL
    assert summary["steps"]["first_stage"]["state"] == "early_stopped"
    assert all(step["seconds"] >= 0 for step in summary["steps"].values())
    assert summary["metrics"] == {
        "test/psnr": 20.0,
        "latent/std": 1.0,
        "gen/fd_tiny": 1.5,
        "prior/fd_tiny": 9.5,
    }
    table = capsys.readouterr().out
    assert "prior/fd_tiny" in table
    assert "gen/fd_tiny" in table
    assert "latent/std" not in table


def test_the_pictures_that_exist_are_named(chain, caplog, tmp_path):
    (tmp_path / "outputs/ldm_kl_f4_chain/now/samples").mkdir(parents=True)
    (tmp_path / "outputs/ldm_kl_f4_chain/now/samples/grid.png").touch()
    run_chain(chain, run=StandIn())
    assert f"Samples: {chain.folder}/samples/grid.png" in caplog.messages
    assert not any("ceiling" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("code", "expected", "state"),
    [
        (7, 7, "failed"),
        (-signal.SIGKILL, 137, "failed"),
        (-signal.SIGTERM, 143, "interrupted"),
        (143, 143, "interrupted"),
        (130, 130, "interrupted"),
    ],
)
def test_a_failing_step_stops_the_chain_and_a_restart_begins_there(
    chain, caplog, code, expected, state
):
    failing = StandIn({"second_stage": code})
    assert run_chain(chain, run=failing) == expected
    assert failing.names == ALL[:4]
    assert caplog.messages[-1].startswith("4/8 second_stage")
    assert f"code {code}" in caplog.messages[-1]
    assert caplog.messages[-1].endswith(f"python -m ldm_lightning.pipeline resume={chain.folder}")
    summary = summary_of(Path(chain.folder))
    assert summary["state"] == summary["steps"]["second_stage"]["state"] == state
    caplog.clear()
    again = StandIn()
    assert run_chain(chain, run=again) == 0
    assert again.names == ALL[3:]
    assert again.steps[0].overrides == (f"resume={chain.folder}/second_stage",)
    assert [m.split(":")[0] for m in caplog.messages if ": done already" in m] == [
        "1/8 first_stage",
        "2/8 first_stage_evaluation",
        "3/8 latents",
    ]
    assert summary_of(Path(chain.folder))["state"] == "finished"


def test_a_step_that_ends_well_without_being_finished_stops_the_chain(chain, caplog):
    stopped = StandIn({"latents": "interrupted"})
    assert run_chain(chain, run=stopped) == 1
    assert stopped.names[-1] == "latents"
    assert caplog.messages[-1].startswith("3/8 latents")


def test_ctrl_c_ends_the_chain_and_says_how_to_go_on(chain, caplog):
    assert run_chain(chain, run=StandIn({"latents": KeyboardInterrupt})) == 130
    assert caplog.messages[-1].endswith(f"python -m ldm_lightning.pipeline resume={chain.folder}")
    summary = summary_of(Path(chain.folder))
    assert summary["state"] == summary["steps"]["latents"]["state"] == "interrupted"


def test_a_chain_is_read_as_it_was_written(chain, tmp_path):
    path = tmp_path / "outputs/ldm_kl_f4_chain/now/chain.json"
    path.parent.mkdir(parents=True)
    chain.save(path)
    assert Chain.load(path) == chain
    moved = tmp_path / "chain.json"
    path.rename(moved)
    with pytest.raises(ValueError, match=f"{chain.folder}.*{tmp_path}"):
        Chain.load(moved)
    moved.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=str(moved)):
        Chain.load(moved)
    with pytest.raises(ValueError, match=r"nothing/chain\.json"):
        Chain.load(tmp_path / "nothing" / "chain.json")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ((0, "overrides", 0), "experiment=kl_f8"),
        ((2, "overrides", 1), "output=/tmp"),
        ((3, "overrides", 0), "hydra.run.dir=/tmp"),
        ((1, "command"), "sample"),
        ((1, "command"), "../../x"),
        ((1, "name"), "../other"),
        ((7, "name"), 3),
        ((0, "overrides", 0), None),
        ((1, "options"), ["--config-dir", "/tmp"]),
        ((1, "options"), ["-m"]),
    ],
)
def test_commands_that_do_not_follow_from_the_words_are_refused(chain, tmp_path, place, value):
    path = tmp_path / "outputs/ldm_kl_f4_chain/now/chain.json"
    path.parent.mkdir(parents=True)
    chain.save(path)

    def load_checked(path):
        loaded = Chain.load(path)
        loaded.check_options((), path)
        loaded.check_steps(chain.steps, path)

    load_checked(path)
    stored = json.loads(path.read_text())
    changed = stored["steps"]
    for key in place[:-1]:
        changed = changed[key]
    changed[place[-1]] = value
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=str(path)):
        load_checked(path)


def test_exit_codes_are_those_of_a_shell():
    assert [exit_code(code) for code in (0, 1, 130, -15)] == [0, 1, 130, 143]


def run_one_step(tmp_path, code):
    ended = process(["-c", ONE_STEP, code], tmp_path)
    assert ended.code == 0, ended.output
    return ended.output.split()


def test_a_step_is_a_process_that_writes_where_the_chain_does(tmp_path):
    code = "import sys; print(sys.argv[1:], flush=True); sys.exit(5)"
    assert run_one_step(tmp_path, code) == ["['a", "b']", "code", "5"]


def test_an_interrupted_step_is_waited_for_while_it_saves(tmp_path):
    code = SAVES_SLOWLY.format(number=int(signal.SIGINT))
    assert run_one_step(tmp_path, code) == ["saved", "2", "interrupted"]


def test_a_terminated_chain_takes_its_step_along(tmp_path):
    code = SAVES_SLOWLY.format(number=int(signal.SIGTERM))
    assert run_one_step(tmp_path, code) == ["saved", "15", "code", "3"]


def test_a_step_knows_whose_death_to_look_for(tmp_path):
    """It then saves and ends (ldm_lightning.distributed.processes.end_with_parent)."""
    ended = process(["-c", ONE_STEP, NAMES_WHO_STARTED_IT], tmp_path)
    assert ended.output.split() == ["True", "code", "0"]


def test_trust_reaches_every_step_and_no_file(chain, tmp_path):
    chain.save(tmp_path / "chain.json")
    stand_in = StandIn()
    assert run_chain(chain, run=stand_in, trusted_packages=["own"]) == 0
    assert {step.overrides[-1] for step in stand_in.steps} == {"trusted_packages=['own']"}
    stored = [
        step["overrides"] for step in json.loads((tmp_path / "chain.json").read_text())["steps"]
    ]
    assert [list(step.overrides[:-1]) for step in stand_in.steps] == stored
