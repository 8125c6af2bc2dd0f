"""The studies: what their READMEs show is what their results.csv holds."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.study import as_text, fill, markdown_table, picked, spread, summary

FOLDER = Path(__file__).parent.parent / "experiments"
STUDIES = sorted(path.parent.name for path in FOLDER.glob("*/study.py"))


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"), dtype=np.float32)


@pytest.mark.parametrize(
    "study",
    [STUDIES[0], *(pytest.param(study, marks=pytest.mark.slow) for study in STUDIES[1:])],
)
def test_table_and_figures_follow_from_the_results(study, tmp_path, capsys):
    importlib.import_module(f"experiments.{study}.study").tell(tmp_path)
    kept = FOLDER / study
    assert (tmp_path / "README.md").read_text() == (kept / "README.md").read_text()
    drawn = list(tmp_path.glob("*.png"))
    assert len(drawn) >= 1
    for path in drawn:
        now, before = pixels(path), pixels(kept / path.name)
        assert now.shape == before.shape
        assert abs(now - before).mean() < 0.5, f"{path.name} is not what results.csv gives"
        assert now.std() > 5


def test_a_table_stands_between_its_marks():
    text = "a\n<!-- results -->\nold\n<!-- end of results -->\nb\n"
    table = markdown_table(("x", "y"), [("1", "2")])
    filled = fill(text, "results", table)
    assert filled == text.replace("old\n", "| x | y |\n| --- | --- |\n| 1 | 2 |\n")
    assert fill(filled, "results", table) == filled
    with pytest.raises(ValueError, match="'other'"):
        fill(text, "other", table)


def test_seeds_are_told_as_mean_and_half_their_distance():
    rows = [{"psnr": "20"}, {"psnr": "21"}, {"psnr": ""}]
    assert spread(rows, "psnr", digits=1) == "20.5 ± 0.5"
    assert spread(rows[:1], "psnr", digits=2) == "20.00"
    assert spread(rows[2:], "psnr", digits=2) == "-"


def test_a_row_holds_what_is_there():
    facts = {"metrics": {"val/psnr": 20.12345}, "step": 7}
    columns = {"psnr": "metrics > val/psnr", "step": "step", "kl": "metrics > val/kl > none"}
    assert picked(facts, columns) == {"psnr": "20.12", "step": "7", "kl": ""}
    assert as_text(123456.0) == "1.235e+05"


def test_only_finished_runs_make_a_study(tmp_path):
    (tmp_path / "summary.json").write_text('{"state": "failed"}')
    with pytest.raises(ValueError, match="failed.*finished"):
        summary(tmp_path)
