import json
import re

import pytest

from tests.cli.run import EXPERIMENTS, ROOT, SECOND_STAGES, command, process

COMMANDS = ("train", "evaluate", "encode", "sample", "pipeline", "plan", "floor", "report")
PRINTED = {"help": ["--help"], "config": ["--cfg", "job"]}
CASES = [(name, "help") for name in COMMANDS] + [("train", "config"), ("report", "config")]

NO_TORCH = """
import contextlib, io, json, runpy, sys
sys.modules["torch"] = None  # importing it fails from here on
cases, printed = map(json.loads, sys.argv[1:])
ended = {}
for name, kind in cases:
    sys.argv = [name, *printed[kind]]
    output, code = io.StringIO(), 0
    with contextlib.redirect_stdout(output):
        try:
            runpy.run_module(f"ldm_lightning.{name}", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code or 0
    ended[f"{name} {kind}"] = [code, output.getvalue()]
print(json.dumps(ended))
"""


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory):
    """How ``python -m`` ends where torch cannot be imported; one process asks for everything."""
    folder = tmp_path_factory.mktemp("empty")
    words = ["-c", NO_TORCH, json.dumps(CASES), json.dumps(PRINTED)]
    ended = process(words, folder, env={"PYTHONWARNINGS": "ignore"})
    assert ended.code == 0, ended.output
    assert not any(folder.iterdir())
    return json.loads(ended.output.splitlines()[-1])


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_help_and_printed_configurations_do_not_import_torch(without_torch, name, kind):
    code, output = without_torch[f"{name} {kind}"]
    assert code == 0, output
    assert len(output) > 40
    if kind == "config":
        assert ("runs:" if name == "report" else "checkpoint:") in output
    if kind == "help" and name != "report":
        assert f"python -m ldm_lightning.{name} " in output


def test_help_lists_every_experiment_and_scale_and_how_to_begin(tmp_path):
    ended = command("train", ["--help"], tmp_path)
    assert ended.code == 0
    listed = dict(re.findall(r"^(\w+): (.+)$", ended.output, flags=re.MULTILINE))
    assert listed["experiment"].split(", ") == sorted(EXPERIMENTS + SECOND_STAGES)
    assert listed["scale"].split(", ") == ["cpu", "gpu", "paper"]
    assert "python -m ldm_lightning.train experiment=vqgan_f16" in ended.output


@pytest.mark.parametrize("name", EXPERIMENTS + SECOND_STAGES)
def test_an_experiment_opens_with_the_command_that_runs_it(name):
    text = (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
    opening = text.split("\ndefaults:")[0].split("\nname:")[0]
    rest = "[^#]*first_stage.checkpoint=" if name in SECOND_STAGES else "\n"
    assert re.search(rf"#   python -m ldm_lightning.train experiment={name}{rest}", opening)
