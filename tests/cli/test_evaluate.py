import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_lightning.reporting.metrics_file import read_metrics
from tests.cli.run import (
    ROOT,
    command,
    environment_of,
    process,
    run_folder,
    summary_of,
    tiny,
    write_images,
)

MEASURED = (
    "psnr",
    "ssim",
    "high_frequency_deficit",
    *(f"power_ratio_octave_{octave}" for octave in (1, 2, 3)),
    "perceptual_tiny",
    "rfd_tiny",
)
OF_A_FIRST_STAGE = (*MEASURED, "color_explained", "block_edge_ratio")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run(runs):
    words = tiny("kl_f4", max_steps=6, validation__raw="true", optim__learning_rate=1e-2)
    ended = command("train", words, runs)
    assert ended.code == 0, ended.output
    return run_folder(runs, "kl_f4")


def step_of(checkpoint):
    return torch.load(checkpoint, weights_only=True)["global_step"]


def validated(run, step, prefix="val"):
    """What the run's own validation measured at an update."""
    rows = read_metrics(run / "metrics.csv")
    return {
        name.removeprefix(f"{prefix}/"): value
        for at, name, value in rows
        if at == step and name.startswith(f"{prefix}/")
    }


def evaluated(folder, *words):
    ended = command("evaluate", words, folder)
    assert ended.code == 0, ended.output
    return summary_of(run_folder(folder, "evaluate"))


def figures(summary, names):
    return {name: summary["metrics"][f"test/{name}"] for name in names}


def test_a_run_folder_is_evaluated_as_its_validation_did_at_its_best(run, tmp_path):
    step = step_of(run / "checkpoints" / "best.ckpt")
    expected = validated(run, step)
    floor = {name for name in expected if name.startswith("linear_floor_")}
    assert set(expected) == {*OF_A_FIRST_STAGE, "kl", *floor}
    summary = evaluated(tmp_path, f"checkpoint={run}")
    assert figures(summary, expected) == pytest.approx(expected, rel=1e-6)
    assert summary["state"] == "finished"
    entry = summary["protocol"]["test/psnr"]
    assert entry["weights"] == "ema"
    assert entry["checkpoint"] == str(run / "checkpoints" / "best.ckpt")
    assert entry["num_images"] == 10
    assert not any(name.startswith("val") for name in summary["metrics"])


def test_raw_weights_give_the_figures_of_the_raw_weights(run, tmp_path):
    last = run / "checkpoints" / "last.ckpt"
    raw, averaged = validated(run, 6, "val_raw"), validated(run, 6)
    assert abs(raw["psnr"] - averaged["psnr"]) > 1e-3
    summary = evaluated(tmp_path, f"checkpoint={last}", "weights=raw")
    assert figures(summary, OF_A_FIRST_STAGE) == pytest.approx(
        {n: raw[n] for n in OF_A_FIRST_STAGE}, rel=1e-6
    )
    assert summary["protocol"]["test/psnr"]["weights"] == "raw"


def evaluated_by_two(folder, *words):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = environment_of(folder) | {"PYTHONPATH": str(ROOT)}
    ended = process([*launch, "-m", "ldm_lightning.evaluate", *words], folder, env=environment)
    assert ended.code == 0, ended.output
    return summary_of(run_folder(folder, "evaluate"))  # there is one


@pytest.mark.slow
def test_two_processes_measure_a_checkpoint_as_one(run, tmp_path):
    words = (f"checkpoint={run}", "precision=64", "data.num_val_images=7")
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    one = evaluated(tmp_path / "one", *words, "data=shapes", "features=tiny")
    two = evaluated_by_two(tmp_path / "two", *words, "data=shapes", "features=tiny")
    assert set(figures(one, OF_A_FIRST_STAGE)) == set(OF_A_FIRST_STAGE)
    assert figures(two, OF_A_FIRST_STAGE) == pytest.approx(figures(one, OF_A_FIRST_STAGE), rel=1e-9)
    assert two["protocol"]["test/psnr"]["num_images"] == 7
    assert (run_folder(tmp_path / "two", "evaluate") / "images").is_dir()


@pytest.mark.slow
def test_two_processes_compare_folders_as_one(tmp_path):
    write_images(tmp_path / "left", 5, size=32)
    write_images(tmp_path / "right", 5, size=32, seed=1)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    words = (f"images={tmp_path / 'left'}", f"reference={tmp_path / 'right'}")
    one, two = (
        evaluate(tmp_path / folder, *words)["metrics"]
        for folder, evaluate in (("one", evaluated), ("two", evaluated_by_two))
    )
    assert two == pytest.approx(one, rel=1e-6, nan_ok=True)


def test_evaluation_says_what_the_autoencoder_costs(run, tmp_path):
    summary = evaluated(tmp_path, f"checkpoint={run}")
    metrics = summary["metrics"]
    assert metrics["test/compression_ratio"] == pytest.approx(3 * 32 * 32 / (4 * 8 * 8))
    assert metrics["perf/encode_images_per_s"] > 0
    assert metrics["perf/decode_images_per_s"] > 0
    assert summary["parameters"] == {
        "autoencoder": summary_of(run)["parameters"]["autoencoder"],
    }
    assert summary["memory"]["peak_host_mib"] > 100
    folder = run_folder(tmp_path, "evaluate")
    assert (folder / "images" / "reconstruction_latest.png").is_file()


@pytest.mark.parametrize("precision", ["bf16", pytest.param("64", marks=pytest.mark.slow)])
def test_evaluation_computes_in_the_precision_of_the_run(tmp_path, precision):
    words = tiny("vq_f4", trainer__precision=precision, max_steps=2)
    assert command("train", words, tmp_path).code == 0
    run = run_folder(tmp_path, "vq_f4")
    expected = validated(run, 2)
    assert {"codebook_usage", "codebook_perplexity"} <= set(expected)
    summary = evaluated(tmp_path, f"checkpoint={run}")
    assert figures(summary, expected) == pytest.approx(expected, rel=1e-6)
    assert summary["protocol"]["test/psnr"]["precision"] == precision
    assert summary["metrics"]["test/bits_per_pixel"] == pytest.approx(4 / 16)  # 16 codes, f = 4


def test_a_checkpoint_outside_a_run_folder_needs_data_and_then_gives_the_same(run, tmp_path):
    moved = tmp_path / "elsewhere" / "moved.ckpt"
    moved.parent.mkdir()
    shutil.copy(run / "checkpoints" / "last.ckpt", moved)
    ended = command("evaluate", [f"checkpoint={moved}"], tmp_path)
    assert ended.code != 0
    assert "data=..." in ended.said
    assert "features=..." in ended.said
    shutil.rmtree(tmp_path / "outputs")
    data = ("data=shapes", "data.num_val_images=10", "data.val_batch_size=4", "features=tiny")
    expected = validated(run, 6)
    summary = evaluated(tmp_path, f"checkpoint={moved}", *data, "precision=32")
    assert figures(summary, OF_A_FIRST_STAGE) == pytest.approx(
        {n: expected[n] for n in OF_A_FIRST_STAGE}, rel=1e-6
    )


def test_a_first_stage_is_measured_on_other_images_and_another_size(run, tmp_path):
    write_images(tmp_path / "photos", 6, size=64)
    write_images(tmp_path / "more", 6, seed=1, size=64)
    summary = evaluated(
        tmp_path,
        f"checkpoint={run}",
        "data=image_folder",
        f"data.root={tmp_path / 'photos'}",
        f"data.val_root={tmp_path / 'more'}",
        "data.num_workers=0",
        "resolution=64",
        "eval_crop=center",
    )
    entry = summary["protocol"]["test/psnr"]
    assert (entry["data"], entry["num_images"], entry["resolution"]) == ("image_folder", 6, "64x64")
    assert entry["root"] == str(tmp_path / "more")


def test_another_size_of_the_runs_own_data_is_not_ignored(run, tmp_path):
    summary = evaluated(tmp_path, f"checkpoint={run}", "resolution=48")
    assert summary["protocol"]["test/psnr"]["resolution"] == "48x48"


def test_folders_with_the_same_names_are_compared_pair_by_pair(tmp_path):
    paths = write_images(tmp_path / "reference", 5)
    (tmp_path / "images").mkdir()
    errors = []
    random = np.random.default_rng(1)
    for path in paths:
        original = np.asarray(Image.open(path)).astype(int)
        noisy = np.clip(original + random.integers(-9, 10, original.shape), 0, 255)
        errors.append(((noisy - original) ** 2).mean())
        Image.fromarray(noisy.astype(np.uint8)).save(tmp_path / "images" / path.name)
    summary = evaluated(tmp_path, "images=images", "reference=reference")
    assert set(summary["metrics"]) == {f"test/{name}" for name in MEASURED}
    psnr = np.mean(10 * np.log10(255**2 / np.array(errors)))
    assert summary["metrics"]["test/psnr"] == pytest.approx(psnr, rel=1e-6)
    entry = summary["protocol"]["test/rfd_tiny"]
    assert (entry["measured"], entry["root"]) == ("images", "reference")
    assert entry["measured_images"] != entry["images"]
    assert entry["num_images"] == 5
    assert entry["small_sample"] is True


def test_other_folders_are_compared_as_sets_under_another_name(tmp_path):
    write_images(tmp_path / "images", 5, seed=1)
    write_images(tmp_path / "reference", 7)
    summary = evaluated(tmp_path, "images=images", "reference=reference")
    names = {"test/fd_tiny", "test/kd_tiny", "test/precision_tiny", "test/recall_tiny"}
    assert set(summary["metrics"]) == set(summary["protocol"]) == names
    for entry in summary["protocol"].values():
        assert (entry["num_images"], entry["num_references"]) == (5, 7)


def test_sizes_stand_in_the_protocol_and_different_ones_are_told(tmp_path):
    write_images(tmp_path / "images", 4, seed=1, size=32)
    write_images(tmp_path / "reference", 3, size=32)
    write_images(tmp_path / "reference" / "large", 2, size=48)
    ended = command("evaluate", ["images=images", "reference=reference"], tmp_path)
    assert ended.code == 0, ended.output
    assert "32x32 and 1 other size(s)" in ended.said
    for entry in summary_of(run_folder(tmp_path, "evaluate"))["protocol"].values():
        assert entry["measured_size"] == "32x32"
        assert entry["reference_size"] == "32x32 and 1 other size(s)"


def test_a_pair_of_two_sizes_is_refused_by_name(tmp_path):
    for folder, size in (("images", 32), ("reference", 48)):
        write_images(tmp_path / folder, 2, size=size)
    ended = command("evaluate", ["images=images", "reference=reference"], tmp_path)
    assert ended.code == 1
    assert "000.png" in ended.said
    assert "32x32" in ended.said
    assert "48x48" in ended.said


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["images=a"],
        ["checkpoint=x", "images=a", "reference=b"],
        ["checkpoint=x", "images=a"],
    ],
)
def test_there_is_either_a_checkpoint_or_two_folders(tmp_path, words):
    ended = command("evaluate", words, tmp_path)
    assert ended.code != 0
    assert re.search(r"checkpoint=\.\.\..*images=DIR.*reference=DIR", ended.said)
    assert "Traceback" not in ended.output
