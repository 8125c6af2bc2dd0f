"""A folder that one command writes to is closed to every other."""

import os

import pytest

from ldm_lightning.runs.run_folder import RunFolder
from tests.cli.run import command, tiny, write_images

COMMANDS = {
    "train": [*tiny("ae_f8"), "output_dir=FOLDER"],
    "evaluate": ["images=images", "reference=images", "output_dir=FOLDER"],
    "encode": ["checkpoint=RUN", "output=FOLDER"],
    "sample": ["checkpoint=RUN", "output=FOLDER"],
    "pipeline": ["experiment=ldm_kl_f4", "output_dir=FOLDER"],
}


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".log"  # Hydra's own begins before ours
    }


@pytest.mark.parametrize("name", ["train", "evaluate", "encode", "sample", "pipeline"])
def test_a_folder_in_use_is_left_as_it_is(tmp_path, name):
    write_images(tmp_path / "images", 2)
    folder = RunFolder.create(tmp_path / "folder")
    folder.update_summary({"state": "finished"})
    words = [word.replace("FOLDER", str(folder.path)) for word in COMMANDS[name]]
    with folder.only_writer():
        before = contents(folder.path)
        ended = command(name, words, tmp_path)
        assert contents(folder.path) == before
    assert ended.code == 1
    for part in (str(os.getpid()), str(folder.path)):
        assert part in ended.said
    assert folder.writer() is None
