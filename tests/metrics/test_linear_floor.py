"""The linear floor in a run: measured once, kept, equal to what evaluate finds."""

import re
from pathlib import Path

import pytest
import torch

from ldm_lightning.data.image_module import ImageDataModule
from ldm_lightning.metrics.thresholds import Threshold, judge
from ldm_lightning.reporting.metrics_file import read_metrics
from tests.cli.run import command, run_folder, summary_of, tiny

NAMES = ("psnr", "ssim", "perceptual_tiny", "rfd_tiny")


@pytest.fixture(scope="module", params=["kl_f4", "vq_f4"])
def run(request, tmp_path_factory):
    """A run of two validations, and what was said."""
    folder = tmp_path_factory.mktemp("floor")
    words = tiny(
        request.param,
        max_steps=4,
        validation__every_steps=2,
        validation__linear_floor="true",
        data__num_val_images=7,
    )
    ended = command("train", words, folder)
    assert ended.code == 0, ended.output
    return run_folder(folder, request.param), ended


def test_a_run_measures_it_once_and_shows_it_everywhere(run):
    folder, ended = run
    summary = summary_of(folder)
    floor = summary["linear_floor"]
    assert {*NAMES, "protocol"} == floor.keys()
    for name in NAMES:
        assert summary["metrics"][f"val/linear_floor_{name}"] == pytest.approx(floor[name])
    protocol = floor["protocol"]
    assert protocol["num_fitted"] == 2048
    assert protocol["images"] == summary["protocol"]["val/psnr"]["images"]
    assert ("num_codes" in protocol) == ("vq" in str(folder))
    logged = [
        value
        for _, name, value in read_metrics(folder / "metrics.csv")
        if name == "val/linear_floor_psnr"
    ]
    assert logged == [logged[0]] * 2
    found = re.search(r"\(([\d.]+) dB (above|below)", ended.output)
    psnrs = [value for _, name, value in read_metrics(folder / "metrics.csv") if name == "val/psnr"]
    assert (found[2] == "above") == (psnrs[0] >= logged[0])
    assert float(found[1]) == pytest.approx(abs(psnrs[0] - logged[0]), abs=0.06)


def test_evaluate_finds_the_same(run, tmp_path):
    folder, _ = run
    ended = command("evaluate", [f"checkpoint={folder}"], tmp_path)
    assert ended.code == 0, ended.output
    found, own = summary_of(run_folder(tmp_path, "evaluate")), summary_of(folder)
    for name in NAMES:
        assert found["linear_floor"][name] == pytest.approx(own["linear_floor"][name], rel=1e-6)
        assert found["metrics"][f"test/linear_floor_{name}"] == found["linear_floor"][name]
    assert (
        found["linear_floor"]["protocol"]["fitted_to"]
        == own["linear_floor"]["protocol"]["fitted_to"]
    )


def test_training_images_that_cannot_be_read_cost_the_floor_alone(run, tmp_path, monkeypatch):
    folder, _ = run

    def fail(self, num_images):
        raise ValueError("gone")

    monkeypatch.setattr(ImageDataModule, "training_sample", fail)
    ended = command("evaluate", [f"checkpoint={folder}"], tmp_path)
    assert ended.code == 0, ended.output
    assert "gone" in ended.output
    found = summary_of(run_folder(tmp_path, "evaluate"))
    assert "linear_floor" not in found
    assert "test/psnr" in found["metrics"]


def test_a_continued_run_keeps_it_and_a_switch_leaves_it_out(run, monkeypatch):
    folder, _ = run
    before = summary_of(folder)["linear_floor"]
    fits = []
    monkeypatch.setattr(
        ImageDataModule, "training_sample", lambda self, number: fits.append(number)
    )
    parent = folder.parents[2]
    ended = command("train", [f"resume={folder}", "max_steps=6"], parent)
    assert ended.code == 0, ended.output
    assert not fits
    assert summary_of(folder)["linear_floor"] == before
    assert summary_of(folder)["step"] == 6
    stored = torch.load(Path(folder, "checkpoints", "last.ckpt"), weights_only=True)
    assert stored["linear_floor"]["scalars"] == {name: before[name] for name in NAMES}
    words = tiny("kl_f4", max_steps=1, validation__linear_floor="false", name="without")
    assert command("train", words, parent).code == 0
    assert "linear_floor" not in summary_of(run_folder(parent, "without"))


@pytest.mark.parametrize(
    ("psnr", "perceptual", "passed"),
    [(20.0, 0.6, False), (20.0, 0.4, True), (24.0, 0.6, True), (24.0, 0.4, True)],
)
def test_untrained_is_what_is_worse_in_both(psnr, perceptual, passed):
    metrics = {
        "val/psnr": psnr,
        "val/perceptual_tiny": perceptual,
        "val/linear_floor_psnr": 23.0,
        "val/linear_floor_perceptual_tiny": 0.5,
    }
    verdict = judge(metrics, [Threshold("val/psnr", at_least=10.0)])
    assert verdict.passed == passed
    assert [cause.name for cause in verdict.causes] == ([] if passed else ["untrained"])
