"""Checks of a run before anything is built."""

import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from ldm_lightning.runs.run_folder import RunFolder
from ldm_lightning.training.check import check_folder


@pytest.mark.parametrize("file", ["metrics.csv", "checkpoints/last.ckpt"])
def test_a_folder_that_holds_a_run_is_refused_and_continued(tmp_path, file):
    folder = RunFolder.create(tmp_path / "run")
    (folder.path / "config.yaml").touch()
    check_folder(OmegaConf.create({"resume": None}), folder)  # nothing was trained yet
    (folder.path / file).write_text("step,metric,value\n")
    with pytest.raises(ValueError, match=rf"resume={folder.path}"):
        check_folder(OmegaConf.create({"resume": None}), folder)
    for resume in ("auto", str(folder.path), str(folder.checkpoints / "last.ckpt")):
        check_folder(OmegaConf.create({"resume": resume}), folder)


def test_a_run_is_continued_in_its_own_folder_alone(tmp_path):
    folder, other = RunFolder.create(tmp_path / "run"), RunFolder.create(tmp_path / "other")
    (other.path / "config.yaml").touch()
    with pytest.raises(ValueError, match=rf"resume={other.path}.*output_dir"):
        check_folder(OmegaConf.create({"resume": str(other.path)}), folder)


def test_checking_does_not_import_torch():
    code = "import sys, ldm_lightning.training.check; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
