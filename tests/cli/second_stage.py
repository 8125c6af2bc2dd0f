"""A second stage cut down to seconds, and the first stage it needs."""

from pathlib import Path
from typing import Any

from tests.cli.run import command, run_folder, tiny


def trained_first_stage(parent: Path, experiment: str = "kl_f4", **changes: Any) -> Path:
    """Run folder of a first stage after two updates on shapes."""
    parent.mkdir(parents=True, exist_ok=True)
    ended = command("train", tiny(experiment, **({"max_steps": 2} | changes)), parent)
    assert ended.code == 0, ended.output
    return run_folder(parent, experiment)


def tiny_second(first_stage: Path, experiment: str = "ldm_kl_f4", **changes: Any) -> list[str]:
    """The command line of a second-stage experiment cut down to a second or two."""
    values: dict[str, Any] = {
        "experiment": experiment,
        "first_stage.checkpoint": first_stage,
        "trainer": "cpu",
        "page": "false",
        "trainer.precision": 64,
        "resolution": 32,
        "latent_channels": 4,
        "max_steps": 4,
        "log_every_steps": 1,
        "validation.every_steps": 2,
        "validation.num_samples": 4,
        "validation.sample_batch_size": 2,
        "sampler.num_steps": 2,
        "optim.warmup_steps": 0,
        "optim.decay_start_fraction": 1.0,
        "gate.mode": "skip",
        "data.batch_size": 4,
        "data.val_batch_size": 4,
        "data.num_workers": 0,
        "data.max_val_images": "null",
    }
    if changes.get("data", "shapes") == "shapes":
        values |= {"data.num_train_images": 22, "data.num_val_images": 10}
    if experiment == "ldm_dit_s":
        values |= {"denoiser.width": 16, "denoiser.num_blocks": 1, "denoiser.num_heads": 2}
    else:
        values |= {
            "denoiser.base_width": 32,
            "denoiser.width_multipliers": "[1,1]",
            "denoiser.num_res_blocks": 1,
            "denoiser.num_heads": "null",
            "denoiser.head_width": 32,
        }
    values |= {name.replace("__", "."): value for name, value in changes.items()}
    return [f"{name}={value}" for name, value in values.items()]
