"""``python -m ldm_lightning.report``, on run folders that the tests write."""

import pytest

from tests.cli.run import command, process, run_folder, tiny
from tests.reporting.page.runs_on_disk import write_run


def test_writes_the_page_and_says_where(tmp_path):
    write_run(tmp_path / "outputs" / "kl_f8" / "one")
    ended = command("report", ["runs=outputs"], tmp_path)
    assert ended.code == 0, ended.output
    assert "Page: report.html" in ended.output
    assert sorted(path.name for path in tmp_path.glob("re*")) == ["report.html", "results.csv"]
    assert (tmp_path / "outputs" / "kl_f8" / "one" / "summary.json").is_file()


NO_TORCH = """
import sys
sys.modules["torch"] = None  # importing it fails from here on
from ldm_lightning.report import main
sys.argv[0] = "report"
main()
"""


def test_needs_no_torch(tmp_path):
    for weight in (1e-6, 1e-4):
        write_run(tmp_path / "outputs" / str(weight), kl_weight=weight)
    ended = process(["-c", NO_TORCH], tmp_path)
    assert ended.code == 0, ended.output
    assert "Runs: 2" in ended.output
    assert any((tmp_path / "figures").iterdir())


def test_takes_globs_and_lists(tmp_path):
    for name in ("a1", "a2", "b"):
        write_run(tmp_path / "runs" / name)
    ended = command("report", ["runs=[runs/a*,runs/b]", "output=all.html"], tmp_path)
    assert "Runs: 3" in ended.output, ended.output
    ended = command("report", ["runs=runs/a?", "output=a.html"], tmp_path)
    assert "Runs: 2" in ended.output, ended.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["runs=nowhere"], "runs=nowhere"),
        (["runs=."], "runs=."),
        (["runs=null"], "runs=null"),
        (["runs=[]"], "runs "),
        (["output=report.pdf"], ".html"),
        (["output=nowhere/report.html"], "nowhere"),
        (["pictured=true"], "pictured=true"),
        (["run=outputs"], "'runs'"),
        (["+run=outputs"], "'runs'"),
    ],
)
def test_bad_words_are_told_in_a_line(tmp_path, words, said):
    ended = command("report", words, tmp_path)
    assert ended.code == 1
    assert said in ended.said
    assert "Traceback" not in ended.output
    assert not any(tmp_path.glob("*.html"))


def test_results_of_something_else_are_not_replaced(tmp_path):
    write_run(tmp_path / "outputs" / "one")
    (tmp_path / "results.csv").write_text("variant,psnr\nL1,20\n")
    ended = command("report", ["runs=outputs"], tmp_path)
    assert ended.code == 1
    assert "results.csv" in ended.said
    assert (tmp_path / "results.csv").read_text() == "variant,psnr\nL1,20\n"
    assert not (tmp_path / "report.html").exists()


def test_a_run_ends_with_a_page_of_its_own(tmp_path):
    ended = command("train", tiny("ae_f8", page="true"), tmp_path)
    assert ended.code == 0, ended.output
    run = run_folder(tmp_path, "ae_f8")
    page = (run / "report.html").read_text()
    assert f"Page: {run / 'report.html'}" in ended.output
    assert "state <b>finished</b>" in page
    assert page.count('class="frame"') == 1
    assert any((run / "figures").glob("curve_train-loss-total*.svg"))
