"""The code of docs/extending.md is a package of its own; it trains, is opened and measured."""

import os
import re
from pathlib import Path

import pytest
import torch
import yaml

from ldm_lightning.checkpoints.checkpoint import load_checkpoint
from ldm_lightning.checkpoints.targets import PART_PACKAGES, check_targets
from ldm_lightning.metrics.names import OWN, describe
from ldm_lightning.reporting.metrics_file import read_metrics
from tests.cli.run import ROOT, command, summary_of

BLOCK = re.compile(r"^```(?:python|yaml) (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EDGES = "test/edge_error"
TRUST = "trusted_packages=[mypackage]"
SMALL = [
    *("scale=cpu", "trainer=cpu", "trainer.precision=32", "page=false", "max_steps=2"),
    *("log_every_steps=1", "validation.every_steps=2", "optim.warmup_steps=0"),
    *("data.batch_size=4", "data.val_batch_size=4", "data.num_train_images=16"),
    *("data.num_val_images=6", "seed=3", "resolution=32"),
]
FIRST = [
    *("autoencoder.base_width=8", "discriminator.base_width=8", "loss.r1_weight=0.1"),
    *("loss.lecam_weight=0.1", "loss.discriminator_start_fraction=null"),
    *("loss.discriminator_start_steps=1", "loss.discriminator_warmup_steps=1"),
    "loss.discriminator_ramp_steps=0",
]
SECOND = [
    *("first_stage.checkpoint=first", "validation.num_samples=4", "sampler.num_steps=2"),
    *("denoiser.width=8", "gate.mode=warn", "validation.sample_batch_size=4"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The package of the document, installed, and a run of either stage."""
    folder = tmp_path_factory.mktemp("outside")
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    for name, content in BLOCK.findall(text):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    (folder / "mypackage" / "__init__.py").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        run(folder, "train", *own("my_first"), *SMALL, *FIRST, "output_dir=first")
        words = [*own("my_second"), *SMALL, *SECOND, "output_dir=second"]
        run(folder, "train", *words, TRUST)
        yield folder


def own(experiment):
    return ["--config-dir", "mypackage/conf", f"experiment={experiment}"]


def run(folder: Path, name: str, *words: str, code: int = 0) -> str:
    ended = command(name, list(words), folder)
    assert ended.code == code, ended.output
    return ended.said


def stored(folder, run_folder):
    return load_checkpoint(folder / run_folder / "checkpoints" / "last.ckpt")


def test_every_part_of_the_package_was_trained_with(folder):
    classes = {
        target
        for path in (folder / "mypackage").rglob("*.yaml")
        for target in re.findall(r"_target_: (mypackage[\w.]+)", path.read_text())
    }
    used = "".join((folder / name / "config.yaml").read_text() for name in ("first", "second"))
    assert classes == {target for target in classes if target in used}
    assert len(classes) == 10
    first, second = stored(folder, "first"), stored(folder, "second")
    assert [first["global_step"], second["global_step"]] == [2, 2]
    assert {*first["optimizer_states"][1]["state"][0]} == {"exp_avg"}
    assert any(name.startswith("discriminator.scales.1.") for name in first["state_dict"])
    assert first["first_stage"]["bottleneck"]["bound"] == 3.0


def test_the_loss_term_is_logged_with_its_weight_in_the_total(folder):
    rows = {(step, name): value for step, name, value in read_metrics(folder / "first/metrics.csv")}
    losses = {name.removeprefix("train/loss_"): v for (step, name), v in rows.items() if step == 1}
    # In the first update the generator does not see the discriminator yet.
    config = yaml.safe_load((folder / "first" / "config.yaml").read_text())["loss"]
    weights = {"perceptual": config["perceptual_weight"] * 3 * 32 * 32, "saturation": 0.01}
    total = losses["pixel"] + 100 * losses["haar"]
    total += sum(weight * losses[name] for name, weight in weights.items())
    assert losses["total"] == pytest.approx(total, rel=1e-5)
    assert losses["haar"] > 0
    assert {(2, "val/haar"), (2, "train/loss_lecam"), (2, "train/loss_r1")} <= rows.keys()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("evaluate", ["checkpoint=first", "output_dir=measured"]),
        ("encode", ["checkpoint=first", "output=latents"]),
        ("sample", ["checkpoint=second", "output=samples", "num_samples=2"]),
        ("train", ["resume=first", "max_steps=3"]),
    ],
)
def test_a_file_that_names_the_package_is_opened_where_it_is_trusted_alone(folder, name, words):
    options = ["--config-dir", "mypackage/conf"] if name == "train" else []
    said = run(folder, name, *options, *words, code=1)
    assert TRUST in said
    run(folder, name, *options, *words, TRUST)
    if name == "evaluate":
        assert summary_of(folder / "measured")["metrics"].keys() >= {"test/psnr", EDGES}
    if name == "sample":
        assert sorted(os.listdir(folder / "samples" / "images")) == ["000000.png", "000001.png"]
    if name == "train":
        assert stored(folder, "first")["global_step"] == 3


def test_trust_is_recorded_and_not_read_from_there(folder):
    config = yaml.safe_load((folder / "second" / "config.yaml").read_text())
    assert config["trusted_packages"] == ["mypackage"]
    with pytest.raises(ValueError, match=re.escape(TRUST)):
        check_targets(stored(folder, "second")["second_stage"]["denoiser"], allowed=PART_PACKAGES)


def test_the_metric_is_monitored_and_shown_wherever_metrics_are(folder):
    summary = summary_of(folder / "first")
    assert summary["metrics"].keys() >= {"val/edge_error", "val/haar"}
    assert summary["protocol"]["val/edge_error"]["num_images"] == 6
    monitored = stored(folder, "first")["callbacks"]["Checkpointing"]
    assert monitored["monitor"] == "val/edge_error"
    assert monitored["best_value"] == pytest.approx(summary["metrics"]["val/edge_error"])
    OWN.clear()  # a report is another process
    run(folder, "report", "runs=first", "output=report.html")
    meaning = summary["own_metrics"]["edge_error"]["meaning"]
    assert meaning in (folder / "report.html").read_text(encoding="utf-8")
    assert describe("val/edge_error").meaning == meaning
    assert describe("val/haar").higher_is_better is False


def test_a_plan_counts_parts_of_ones_own(folder):
    words = [*own("my_first"), *SMALL, *FIRST, "measure=false", "output=plan.json"]
    run(folder, "plan", *words)
    run(folder, "plan", *own("my_second"), *SMALL, *SECOND, "measure=false", TRUST)
    flops = yaml.safe_load((folder / "plan.json").read_text())["flops"]
    assert flops["forward"].keys() == {"encoder", "decoder", "perceptual", "haar", "discriminator"}
    assert "2 haar" in flops["formula"]


def test_an_argument_that_the_optimizer_does_not_take_is_refused_in_a_line(folder):
    (folder / "mypackage/conf/optim/wrong.yaml").write_text(
        "_target_: mypackage.optimizer.Lion\nbeta: [0.9, 0.99]\n"
    )
    said = run(folder, "train", *own("my_first"), *SMALL, *FIRST, "optim=wrong", code=1)
    assert re.search(r"optim\.beta:.*\bbetas\b", said)
    assert torch.is_grad_enabled()
