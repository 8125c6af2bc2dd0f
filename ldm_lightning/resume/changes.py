"""Values that may change when a run is continued.

Every key of conf/ has a rule, found by its longest prefix here; a test goes through all keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ONE_COMMAND = ("resume", "dry_run", "output_dir", "trusted_packages")
"""Keys that count for the command that gives them and are no part of a run."""

FIXED_GROUPS = (
    *("experiment", "stage", "scale", "scale/stage", "scale/denoiser", "scale/optim", "recipe"),
    *("features/stage", "optim/stage", "hparams_search"),
)
"""Groups whose files set values all over the configuration: fixed when a run begins."""

APPLIED = "applied"
SWITCH = "switch"  # may be another number, but not become 0 or stop being 0
STATE = "is part of what the checkpoint holds"
MEANING = "gives the run's figures and weights their meaning"
BEGINNING = "counts only when a run begins"

RULES = {
    "name": APPLIED,
    "seed": APPLIED,
    "max_steps": APPLIED,
    "accumulate_batches": APPLIED,
    "resolution": MEANING,
    "image_channels": STATE,
    "train_crop": APPLIED,
    "eval_crop": APPLIED,
    "monitor": APPLIED,
    "metrics": APPLIED,
    "sweep_name": BEGINNING,
    "run_group": APPLIED,
    "train": BEGINNING,
    "page": APPLIED,
    "log_every_steps": APPLIED,
    "scale_description": APPLIED,
    "cache_dir": APPLIED,
    "stage": STATE,
    "stall_monitors": APPLIED,
    "checkpoint": BEGINNING,
    "weights": BEGINNING,
    "validation": APPLIED,
    "optim": APPLIED,
    "optim._target_": STATE,
    "trainer": APPLIED,
    "logger": APPLIED,
    "features": APPLIED,
    "callbacks": APPLIED,
    "data": APPLIED,
    "data.resolution": MEANING,
    "data.image_channels": STATE,
    "autoencoder": STATE,
    "autoencoder.gradient_checkpointing": APPLIED,
    "bottleneck": STATE,
    "bottleneck.restart_every_steps": APPLIED,
    "bottleneck.quantize_start_step": SWITCH,
    "discriminator": STATE,
    "loss": APPLIED,
    "loss.pixel": MEANING,
    "loss.lecam_weight": SWITCH,
    "latent_channels": STATE,
    "downsampling_factor": STATE,
    "first_stage": STATE,
    "first_stage.experiment": BEGINNING,
    "first_stage.checkpoint": APPLIED,  # it may have moved; its weights are compared
    "denoiser": STATE,
    "denoiser.gradient_checkpointing": APPLIED,
    "denoiser.dropout": APPLIED,
    "conditioner": STATE,
    "conditioner.dropout": APPLIED,
    "diffusion": MEANING,
    "diffusion.distance": APPLIED,
    "diffusion.training_times": APPLIED,
    "diffusion.weighting": APPLIED,
    "sampler": APPLIED,
    "gate": APPLIED,
}


def rule_of(key: str) -> str:
    """The rule of a key such as ``optim.learning_rate``.

    Raises:
        KeyError: If there is none.
    """
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        if (prefix := ".".join(parts[:length])) in RULES:
            return RULES[prefix]
    raise KeyError(key)


def check_changes(stored: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Refuse a change that cannot be applied to a run that has begun.

    Args:
        stored: The run's configuration, plain and resolved.
        now: That of this command.
        folder: Of the run.

    Raises:
        ValueError: Naming the key, both values and what to do.
    """
    for key, was, value in differences(stored, now):
        if key.split(".")[0] in ONE_COMMAND:
            continue
        if key.startswith("data.") and None in (was, value):
            continue  # another kind of data has other keys
        rule = rule_of(key)
        if rule == APPLIED or (rule == SWITCH and bool(was) == bool(value)):
            continue
        why = "cannot become 0 or stop being 0" if rule == SWITCH else rule
        raise ValueError(
            f"{key}={value} cannot be applied to the run in {folder}, which has {key}={was}: it "
            f"{why}. Leave it out, or start a new run, from these weights with checkpoint={folder}."
        )


def differences(was: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Each place where two plain configurations differ, with both values; None for no value."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for name in [*was, *(name for name in now if name not in was)]:
            prefix = f"{key}.{name}" if key else str(name)
            yield from differences(was.get(name), now.get(name), prefix)
    elif was != now or isinstance(was, bool) != isinstance(now, bool):
        yield key, was, now
