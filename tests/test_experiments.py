"""The scripts of experiments/: each imports, and the judge of samples judges from shards on."""

import importlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.cifar10_ldm import judge
from tests.data.shards.test_webdataset import write_shard

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "experiments").rglob("*.py")
)
NUM_TRAIN, NUM_TEST = 40, 20


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_imports(script):
    assert importlib.import_module(script).__doc__


def jpeg(number: int) -> bytes:
    """An image of class ``number % 10``, which its color tells, and noise."""
    rng = np.random.default_rng(number)
    color = np.random.default_rng(100 + number % 10).integers(0, 256, 3)
    pixels = (color + rng.normal(0, 16, (32, 32, 3))).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def write_split(folder: Path, prefix: str, numbers: range) -> None:
    members = {}
    for number in numbers:
        members[f"{number:04d}.jpg"] = jpeg(number)
        members[f"{number:04d}.cls"] = str(number % 10).encode()
    write_shard(folder / f"{prefix}-0000.tar", members)


def write_samples(folder: Path, images: list[bytes], labels: list[int | None]) -> Path:
    """A folder as `ldm_lightning.sample` leaves it."""
    (folder / "images").mkdir(parents=True)
    for number, image in enumerate(images):
        (folder / "images" / f"{number:06d}.jpg").write_bytes(image)
    (folder / "labels.json").write_text(json.dumps({"labels": labels}))
    return folder


def run_judge(monkeypatch, command: str, **options: object) -> None:
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["judge.py", command, *words, "--threads", "1"])
    judge.main()


@pytest.mark.slow
def test_a_judge_that_was_trained_and_stored_judges_samples(tmp_path, monkeypatch):
    test = range(NUM_TRAIN, NUM_TRAIN + NUM_TEST)
    write_split(tmp_path / "data", "train", range(NUM_TRAIN))
    write_split(tmp_path / "data", "test", test)
    paths = {"data": tmp_path / "data", "weights": tmp_path / "made" / "judge.safetensors"}
    with pytest.raises(SystemExit, match=r"judge\.safetensors"):
        run_judge(monkeypatch, "measure", **paths, samples=tmp_path)

    settings = {"epochs": 15, "batch-size": 20, "learning-rate": 0.03, "max-steps": 28}
    run_judge(monkeypatch, "train", **paths, **settings)
    record = judge.load_judge(paths["weights"])[1]
    assert (record["num_train_images"], record["num_test_images"]) == (NUM_TRAIN, NUM_TEST)
    assert record["test_accuracy"] > 0.5  # chance is 0.1

    # The test images themselves, with their classes, and as many black ones without.
    classes = [number % 10 for number in test]
    samples = write_samples(tmp_path / "samples", [jpeg(number) for number in test], classes)
    black = io.BytesIO()
    Image.new("RGB", (32, 32)).save(black, "JPEG")
    prior = write_samples(tmp_path / "prior", [black.getvalue()] * NUM_TEST, [None] * NUM_TEST)
    out = tmp_path / "judge.json"
    run_judge(monkeypatch, "measure", **paths, samples=samples, prior=prior, out=out)

    written = json.loads(out.read_text())
    assert written["judge"] == record
    assert written["test_accuracy"] == record["test_accuracy"]
    found = written["sets"]
    assert all(found[name]["num_images"] == NUM_TEST for name in ("samples", "prior", "train"))
    assert found["samples"]["class_accuracy"]["accuracy"] == record["test_accuracy"]
    assert found["samples"]["fd_judge"] < 1e-4 * found["train"]["fd_judge"]
    assert found["prior"]["class_accuracy"] is None
    assert max(found["prior"]["read_shares"].values()) == 1  # all alike
    assert found["train"]["fd_judge"] < found["prior"]["fd_judge"]
