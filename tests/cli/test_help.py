import re

import pytest

from tests.cli.run import EXPERIMENTS, ROOT, SECOND_STAGES, command, process

NO_TORCH = """
import sys
sys.modules["torch"] = None  # importing it fails from here on
from ldm_lightning.{name} import main
sys.argv[0] = "{name}"
main()
"""


@pytest.mark.parametrize("words", [["--help"], ["--cfg", "job"], ["--hydra-help"]])
@pytest.mark.parametrize(
    "name", ["train", "evaluate", "encode", "sample", "pipeline", "plan", "report"]
)
def test_help_and_printed_configurations_do_not_import_torch(tmp_path, name, words):
    ended = process(["-c", NO_TORCH.format(name=name), *words], tmp_path)
    assert ended.code == 0, ended.output
    assert len(ended.output) > 40
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["train", "evaluate", "encode", "sample", "pipeline", "plan"])
def test_the_module_runs_as_a_command(tmp_path, name):
    ended = process(["-m", f"ldm_lightning.{name}", "--cfg", "job"], tmp_path)
    assert ended.code == 0, ended.output
    assert "checkpoint:" in ended.output


def test_help_lists_every_experiment_and_scale_and_how_to_begin(tmp_path):
    ended = command("train", ["--help"], tmp_path)
    assert ended.code == 0
    listed = dict(re.findall(r"^(\w+): (.+)$", ended.output, flags=re.MULTILINE))
    assert listed["experiment"].split(", ") == sorted(EXPERIMENTS + SECOND_STAGES)
    assert listed["scale"] == "cpu, gpu, paper"
    assert "python -m ldm_lightning.train experiment=vqgan_f16" in ended.output


@pytest.mark.parametrize("name", EXPERIMENTS + SECOND_STAGES)
def test_an_experiment_opens_with_the_command_that_runs_it(name):
    text = (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
    opening = text.split("\ndefaults:")[0].split("\nname:")[0]
    rest = "[^#]*first_stage.checkpoint=" if name in SECOND_STAGES else "\n"
    assert re.search(rf"#   python -m ldm_lightning.train experiment={name}{rest}", opening)
