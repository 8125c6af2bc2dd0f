import itertools
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from ldm_lightning.builders.meta_networks import count_parameters, networks_without_memory
from ldm_lightning.config import CONF_DIR, check_values, register_resolvers
from ldm_lightning.utils import pretrained
from tests.autoencoder.test_published_sizes import PUBLISHED
from tests.cli.run import (
    EXPERIMENTS,
    SECOND_STAGES,
    WITHOUT_DISCRIMINATOR,
    command,
    run_folder,
    summary_of,
)

DISCRIMINATOR = {2: 663_361, 3: 2_765_633}  # parameters by number of layers, as published


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a dry run asks for weights")

    monkeypatch.setattr(pretrained, "require_weights", refuse)


PUBLISHED_DENOISERS = {
    "ldm_celebahq": 274_056_163,
    "ldm_churches": 294_966_916,
    "ldm_imagenet_vq_f8": 394_984_196,
    "ldm_imagenet_vq_f4": 400_920_579,
}


def composed(folder: Path, *words: str) -> DictConfig:
    """What a command would check and build; the command itself composes three times."""
    register_resolvers()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("train", overrides=[*words, "dry_run=true", f"output_dir={folder}"])
    check_values(cfg)
    return cfg


def scales(experiments: list[str]) -> list[tuple[str, str]]:
    """Every experiment as published, and at one of the other scales by turns."""
    others = zip(experiments, itertools.cycle(("cpu", "gpu")), strict=False)
    return [*((name, "paper") for name in experiments), *others]


@pytest.mark.parametrize(("experiment", "scale"), scales(EXPERIMENTS))
def test_every_experiment_can_be_built(tmp_path, experiment, scale):
    cfg = composed(tmp_path, f"experiment={experiment}", f"scale={scale}")
    counts = count_parameters(networks_without_memory(cfg))
    assert ("discriminator" in counts) == (experiment not in WITHOUT_DISCRIMINATOR)
    assert 0 < counts["encoder"] + counts["decoder"] <= counts["autoencoder"]
    if scale == "paper" and experiment in PUBLISHED:
        *_, encoder, decoder, total = PUBLISHED[experiment]
        assert (counts["encoder"], counts["decoder"], counts["autoencoder"]) == (
            encoder,
            decoder,
            total,
        )
        num_layers = 2 if experiment in ("vq_f8", "vq_f16") else 3
        assert counts["discriminator"] == DISCRIMINATOR[num_layers]
        assert cfg.monitor == "val/rfid"


@pytest.mark.parametrize(("experiment", "scale"), scales(SECOND_STAGES))
def test_every_second_stage_can_be_built(tmp_path, experiment, scale):
    # Both conditioners are built of every experiment, but not at every scale.
    is_free = scale == "cpu" and not experiment.startswith("ldm_imagenet")
    condition = ["conditioner=none"] if is_free else ["conditioner=class_label"]
    classes = [] if is_free else ["conditioner.num_classes=1000"]
    words = [f"experiment={experiment}", f"scale={scale}", *condition, *classes]
    counts = count_parameters(networks_without_memory(composed(tmp_path, *words)))
    assert bool(counts["conditioner"]) == (not is_free)
    if scale == "paper" and experiment in PUBLISHED_DENOISERS:
        assert counts["denoiser"] == PUBLISHED_DENOISERS[experiment]


@pytest.mark.parametrize(("experiment", "scale"), [("kl_f4", "cpu"), ("ldm_kl_f4", "paper")])
def test_a_dry_run_tells_the_scale_and_counts_parameters(tmp_path, experiment, scale):
    words = [f"experiment={experiment}", f"scale={scale}", "dry_run=true"]
    ended = command("train", words, tmp_path)
    assert ended.code == 0, ended.output
    assert f"scale={scale} shrinks" in ended.output
    assert (f"experiment={experiment} scale=paper" in ended.output) == (scale != "paper")
    folder = run_folder(tmp_path, experiment)
    summary = summary_of(folder)
    assert summary["state"] == "dry_run"
    assert not list((folder / "checkpoints").iterdir())
    cfg = composed(tmp_path, *words)
    assert summary["parameters"] == count_parameters(networks_without_memory(cfg))
    for count in summary["parameters"].values():
        assert f"{count:,}" in ended.output


def test_the_published_experiments_are_all_there():
    assert {name for name in PUBLISHED if "_n" not in name and "_163" not in name} <= set(
        EXPERIMENTS
    )


def test_a_dry_run_needs_no_data(tmp_path):
    ended = command("train", ["data=image_folder", "dry_run=true"], tmp_path)
    assert ended.code == 0, ended.output
    words = ["data=image_folder", "data.root=nowhere", "dry_run=true", "name=second"]
    assert command("train", words, tmp_path).code == 0
    assert summary_of(run_folder(tmp_path, "second"))["state"] == "dry_run"


def test_a_dry_run_finds_what_would_stop_the_run(tmp_path):
    ended = command("train", ["resolution=60", "dry_run=true"], tmp_path)
    assert ended.code != 0
    assert "resolution=60" in ended.said
