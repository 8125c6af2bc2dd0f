"""A continued run computes with the values of this command, not with those of its checkpoint."""

import shutil

import pytest
from omegaconf import OmegaConf

from ldm_lightning.checkpoints.checkpoint import load_checkpoint
from ldm_lightning.reporting.metrics_file import read_metrics
from ldm_lightning.training import steps
from tests.cli.run import command, tiny
from tests.cli.second_stage import tiny_second

CHANGES = {
    "max_steps": 4,
    "seed": 5,
    "log_every_steps": 2,
    "accumulate_batches": 2,
    "validation.every_steps": 3,
    "data.val_batch_size": 3,
    "optim.learning_rate": 0.002,
    "optim.weight_decay": 0.25,
    "optim.betas": [0.25, 0.75],
    "optim.clip_norm": 0.5,
    "optim.warmup_steps": 9,
    "optim.decay_start_fraction": 0.5,
    "optim.final_fraction": 0.25,
    "trainer.precision": 64,
    "callbacks.ema.decay": 0.5,
    "callbacks.ema.warm_up": False,
    "callbacks.checkpointing.every_num_steps": 7,
    "callbacks.progress.plain_every_seconds": 9,
    "callbacks.performance.every_num_steps": 3,
}
OF_STAGES = {
    "first": {
        "monitor": "val/psnr",
        "optim.discriminator_learning_rate_ratio": 0.5,
        "loss.kl_weight": 0.001,
        "loss.adversarial_weight": 0.125,
        "loss.r1_weight": 0.5,
        "loss.discriminator_start_steps": 3,
        "loss.discriminator_warmup_steps": 2,
        "loss.discriminator_ramp_steps": 4,
        "loss.perceptual_weight": 0.75,
        "callbacks.stall_stopping.patience": 3,
        "callbacks.codebook_alarm.patience": 5,
        "callbacks.reconstruction_grid.num_images": 2,
    },
    "second": {
        "monitor": "val/loss",
        "validation.num_samples": 5,
        "validation.sample_batch_size": 3,
        "sampler.num_steps": 3,
        "sampler.guidance_scale": 1.5,
        "conditioner.dropout": 0.75,
        "diffusion.distance": "l1",
    },
}


UNIMPORTANT = {".lock", "summary.json", "train.log", "failure_of_process_0.txt"}
"""Files of a run that may say that a command was refused."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One run of each stage after two updates."""
    folder = tmp_path_factory.mktemp("runs")
    words = [*tiny("kl_f4", max_steps=2), "output_dir=first"]
    assert command("train", words, folder).code == 0
    second = tiny_second("first", max_steps=2, conditioner="class_label", trainer__precision=32)
    ended = command("train", [*second, "output_dir=second"], folder)
    assert ended.code == 0, ended.output
    return folder


@pytest.fixture
def trained(monkeypatch):
    """The trainer of the last command."""
    made = []

    def build_trainer(cfg, run_folder, build_it=steps.build_trainer):
        made.append(build_it(cfg, run_folder))
        return made[-1]

    monkeypatch.setattr(steps, "build_trainer", build_trainer)
    return made


def effective_values(trainer):
    """What the objects of a run compute with, by key of the configuration."""
    module, data = trainer.lightning_module, trainer.datamodule
    callbacks = {type(callback).__name__: callback for callback in trainer.callbacks}
    optimizers = trainer.optimizers
    group, schedule = optimizers[0].param_groups[0], module.optimization.schedule
    values = {
        "max_steps": trainer.max_steps,
        "seed": module.seed,
        "log_every_steps": module.log_every_steps,
        "accumulate_batches": module.optimization.accumulate_batches,
        "data.val_batch_size": data.loading.val_batch_size,
        "optim.learning_rate": group["initial_lr"],
        "optim.weight_decay": group["weight_decay"],
        "optim.betas": list(group["betas"]),
        "optim.clip_norm": module.optimization.clip_norm,
        "optim.warmup_steps": schedule.warmup_steps,
        "optim.decay_start_fraction": schedule.decay_start_fraction,
        "optim.final_fraction": schedule.final_fraction,
        "trainer.precision": int(trainer.precision.partition("-")[0]),
        "callbacks.ema.decay": callbacks["Ema"].decay,
        "callbacks.ema.warm_up": callbacks["Ema"].warm_up,
        "callbacks.checkpointing.every_num_steps": callbacks["Checkpointing"].every_num_steps,
        "monitor": callbacks["Checkpointing"].monitor,
        "callbacks.progress.plain_every_seconds": callbacks["TrainingProgress"].plain_every_seconds,
        "callbacks.performance.every_num_steps": callbacks["Performance"].every_num_steps,
    }
    if hasattr(module, "autoencoder"):
        loss = module.adversary.loss
        ratio = optimizers[1].param_groups[0]["initial_lr"] / group["initial_lr"]
        return values | {
            "optim.discriminator_learning_rate_ratio": ratio,
            "loss.kl_weight": module.term_weights["kl"],
            "loss.adversarial_weight": loss.weight,
            "loss.r1_weight": loss.r1_weight,
            "loss.discriminator_start_steps": loss.schedule.start_step,
            "loss.discriminator_warmup_steps": loss.schedule.warmup_steps,
            "loss.discriminator_ramp_steps": loss.schedule.ramp_steps,
            "loss.perceptual_weight": module.reconstruction_loss.perceptual_weight,
            "callbacks.stall_stopping.patience": callbacks["StallStopping"].patience,
            "callbacks.codebook_alarm.patience": callbacks["CodebookAlarm"].patience,
            "callbacks.reconstruction_grid.num_images": callbacks["ReconstructionGrid"].num_images,
        }
    sampler = module.generation.image_sampler.sampler
    return values | {
        "validation.num_samples": module.generation.num_samples,
        "validation.sample_batch_size": module.generation.batch_size,
        "sampler.num_steps": sampler.num_steps,
        "sampler.guidance_scale": sampler.guidance_scale,
        "conditioner.dropout": module.model["conditioner"].dropout,
        "diffusion.distance": module.process.distance,
    }


@pytest.mark.parametrize("stage", ["first", "second"])
def test_every_object_has_the_value_that_the_command_gave(folder, trained, stage):
    wished = CHANGES | OF_STAGES[stage]
    words = [f"{key}={str(value).replace(' ', '')}" for key, value in wished.items()]
    run = folder / f"continued_{stage}"
    shutil.copytree(folder / stage, run)
    ended = command("train", [f"resume={run}", *words], folder)
    assert ended.code == 0, ended.output
    effective = effective_values(trained[-1])
    config = OmegaConf.load(run / "config.yaml")
    for key, value in wished.items():
        assert OmegaConf.select(config, key) == value, key
        if key != "validation.every_steps":
            assert effective[key] == value, key
    validated = {step for step, name, _ in read_metrics(run / "metrics.csv") if name[:4] == "val/"}
    assert validated == {2, 3, 4}
    stored = load_checkpoint(run / "checkpoints" / "last.ckpt")
    group = stored["optimizer_states"][0]["param_groups"][0]
    assert (group["initial_lr"], group["weight_decay"]) == (0.002, 0.25)
    best = stored["callbacks"]["Checkpointing"]
    assert (best["monitor"], best["best_step"] in (3, 4)) == (wished["monitor"], True)


def test_a_run_goes_back_to_a_named_checkpoint_and_keeps_the_newer_one(folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folder / "first", run)
    earlier = run / "checkpoints" / "earlier.ckpt"
    shutil.copy(run / "checkpoints" / "last.ckpt", earlier)
    step = load_checkpoint(earlier)["global_step"]
    ended = command("train", [f"resume={run}", f"max_steps={step + 1}"], tmp_path)
    assert ended.code == 0, ended.output
    rows = read_metrics(run / "metrics.csv")
    ended = command("train", [f"resume={earlier}"], tmp_path)
    assert ended.code == 0, ended.output
    assert read_metrics(run / "metrics.csv") == rows
    kept = run / "checkpoints" / f"last_of_update_{step + 1}.ckpt"
    assert load_checkpoint(kept)["global_step"] == step + 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["max_steps=1"], ("max_steps=1", "update")),
        (["autoencoder.latent_channels=8"], ("autoencoder.latent_channels=8", "=4")),
        (["dry_run=true"], ("dry_run", "resume=")),
        (["hydra.run.dir=elsewhere"], ("elsewhere",)),
    ],
)
def test_what_cannot_be_applied_is_refused_and_nothing_is_written(folder, words, told):
    before = {path: path.stat().st_mtime_ns for path in (folder / "first").rglob("*.*")}
    ended = command("train", ["resume=first", *words], folder)
    assert ended.code == 1
    for part in told:
        assert part in ended.said
    after = {path: path.stat().st_mtime_ns for path in before}
    assert {path.name for path in before if before[path] != after[path]} <= UNIMPORTANT
