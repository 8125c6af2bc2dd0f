"""Check that a checkpoint holds all that continuing a run needs, before any of it is used.

torch and Lightning look at little of it: a state of another shape crashes the process in the fused
optimizer, a missing one trains on with fresh moments, and a counter that is text fails later.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from ldm_lightning.autoencoder.normalizer import LatentNormalizer
from ldm_lightning.checkpoints.checkpoint import check_fits, stored_content
from ldm_lightning.checkpoints.contents import (
    ANYTHING,
    CLASSES,
    COUNT,
    MAPPING,
    NUMBER,
    TEXT,
    Each,
    Leaf,
    ListOf,
    OrNone,
    check,
    check_tensors,
    like,
)
from ldm_lightning.module.autoencoder import AutoencoderModule
from ldm_lightning.module.diffusion import DiffusionModule
from ldm_lightning.module.optimizer_state import expected_state, state_of_stand_in
from ldm_lightning.module.updating import ManualOptimizationModule
from ldm_lightning.utils.errors import CheckpointError

VERSION = Leaf(
    "a version such as 2.6.6",
    lambda value: isinstance(value, str) and re.match(r"\d+\.\d+", value) is not None,
)

RUN = {
    "epoch": COUNT,
    "global_step": COUNT,
    "pytorch-lightning_version": VERSION,
    "state_dict": MAPPING,
    "loops": MAPPING,
    "callbacks": MAPPING,
    "optimizer_states": ListOf({"state": MAPPING, "param_groups": ListOf(MAPPING)}),
    "num_optimizer_states": ListOf(COUNT),
    "lr_schedulers": ListOf(MAPPING, 0),
}
"""What every checkpoint of a run holds."""

LOADER = {
    "epoch": COUNT,
    "seen": ListOf(ListOf(COUNT, 2)),
    "order": {"images": TEXT, "seed": COUNT},
}
"""Place in the training images; see ``data/position.py``."""

CALLBACKS = {
    "Ema": {"num_updates": COUNT},
    "CodebookAlarm": {"alarms": ListOf(TEXT), "num_low": COUNT},
    "StallStopping": {
        "best": Each(NUMBER),
        "stalled": Each(COUNT),
        "measured_as": Each(MAPPING),
    },
    "Throughput": {
        "waiting_s": NUMBER,
        "step_s": NUMBER,
        "validation_s": NUMBER,
        "after_validation_s": NUMBER,
        "num_images": COUNT,
        "num_batches": COUNT,
    },
    "Checkpointing": {
        "monitor": OrNone(TEXT),
        "best_value": OrNone(NUMBER),
        "best_step": OrNone(COUNT),
        "measured_as": OrNone(MAPPING),
    },
}
"""What callbacks keep, by the key that Lightning stores it under."""

ALWAYS = ("Throughput", "Checkpointing")
"""Callbacks that every run has. Others may be switched on when it is continued."""

LINEAR_FLOOR = {"scalars": Each(NUMBER), "protocol": MAPPING}

SECOND_STAGE = {
    "first_stage": {"path": TEXT, "hash": TEXT, "weights": TEXT},
    "normalizer": MAPPING,
}


def check_continues(
    path: Path, *, trainer: pl.Trainer, module: ManualOptimizationModule
) -> dict[str, Any]:
    """Refuse a checkpoint that the run cannot be continued from exactly; return what it holds.

    Args:
        path: The file; its shards are looked at too.
        trainer: Not fitted yet.
        module: Would receive it; is not changed.

    Returns:
        Its content, tensors on the meta device.

    Raises:
        CheckpointError: Naming the file, the key, what it holds and what belongs there.
    """
    content = stored_content(path)
    check_content(content, path, trainer=trainer, module=module)
    return content


def check_content(
    content: Mapping[str, Any], path: Path, *, trainer: pl.Trainer, module: ManualOptimizationModule
) -> None:
    """Refuse what a file holds; see ``check_continues``."""
    try:
        check(content, RUN, "")
        check_fits(module, content["state_dict"], path)
        _check_loops(content, trainer)
        _check_optimizers(content, module)
        _check_callbacks(content["callbacks"], trainer)
        _check_average(content, trainer, module)
        _check_scaler(content, trainer)
        _check_description(content, module)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(
            f"checkpoint={path} cannot be continued from: {error}. It was damaged or changed; "
            "continue from another one, such as resume=RUN/checkpoints/best.ckpt."
        ) from error


def _check_loops(content: Mapping[str, Any], trainer: pl.Trainer) -> None:
    """Refuse counters that Lightning or the data's loader could not continue from."""
    loop, place = content["loops"].get("fit_loop"), "loops.fit_loop"
    rule = like(trainer.fit_loop.state_dict(), integer=COUNT)
    rule["state_dict"] = {"combined_loader": ListOf(LOADER, 1)}
    for name in ("epoch_loop.val_loop", "validation_loop"):
        if f"{name}.state_dict" in rule:
            rule[f"{name}.state_dict"] = {"validated_step": OrNone(COUNT)}
    check(loop, rule, place)
    (position,) = loop["state_dict"]["combined_loader"]
    if content["global_step"] and not position["epoch"] and not position["seen"]:
        raise ValueError(f"{place}.state_dict.combined_loader[0].seen is empty")
    counted = loop["epoch_loop.manual_optimization.optim_step_progress"]["total"]["completed"]
    if counted != content["global_step"]:
        raise ValueError(
            f"global_step is {content['global_step']}, but {place} has counted {counted} updates"
        )


def _check_optimizers(content: Mapping[str, Any], module: ManualOptimizationModule) -> None:
    """Refuse states that do not belong to the parameters, or are not all there."""
    factory, optimizers = module.optimization.optimizer, module.configure_optimizers()
    states, counts = content["optimizer_states"], content["num_optimizer_states"]
    for name, found in (("optimizer_states", states), ("num_optimizer_states", counts)):
        if len(found) != len(optimizers):
            raise ValueError(f"{name} has {len(found)} entries; expected {len(optimizers)}")
    keeps_state = bool(state_of_stand_in(factory))
    if content["global_step"] and keeps_state and not states[0]["state"]:
        raise ValueError("optimizer_states[0].state is empty")
    for number, (stored, optimizer) in enumerate(zip(states, optimizers, strict=True)):
        place = f"optimizer_states[{number}]"
        own = optimizer.state_dict()["param_groups"]
        check(stored["param_groups"], ListOf(MAPPING, len(own)), f"{place}.param_groups")
        for index, (group, expected) in enumerate(zip(stored["param_groups"], own, strict=True)):
            check(group, like(expected), f"{place}.param_groups[{index}]")
            if list(group["params"]) != expected["params"]:
                raise ValueError(f"{place}.param_groups[{index}].params are other parameters")
        if len(stored["state"]) != counts[number]:
            raise ValueError(
                f"{place}.state has {len(stored['state'])} entries; expected {counts[number]}"
            )
        parameters: list[tuple[Tensor, dict[str, Any]]] = []  # each with what is kept of it
        for group in optimizer.param_groups:
            kept = state_of_stand_in(factory, group)
            parameters += [(parameter, kept) for parameter in group["params"]]
        for key, state in stored["state"].items():
            if not isinstance(key, int) or not 0 <= key < len(parameters):
                raise ValueError(f"{place}.state.{key} belongs to no parameter")
            parameter, kept = parameters[key]
            expected = expected_state(kept, parameter)
            check(state, MAPPING, f"{place}.state.{key}")
            unknown = {name: state[name] for name in kept.keys() & state.keys() - expected.keys()}
            known = {name: value for name, value in state.items() if name not in unknown}
            check_tensors(known, expected, f"{place}.state.{key}")


def _check_callbacks(stored: Mapping[str, Any], trainer: pl.Trainer) -> None:
    """Refuse states that callbacks could not continue from."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        key, own = callback.state_key, callback.state_dict()
        if not own or (key not in stored and key not in ALWAYS):
            continue
        if key not in stored:
            raise ValueError(f"callbacks.{key} is missing")
        check(stored[key], CALLBACKS.get(key, like(own)), f"callbacks.{key}")
    best = stored.get("Checkpointing")
    if best and (best["best_value"] is None) != (best["best_step"] is None):
        raise ValueError("callbacks.Checkpointing holds one of best_value and best_step alone")


def _check_average(
    content: Mapping[str, Any], trainer: pl.Trainer, module: ManualOptimizationModule
) -> None:
    """Refuse half of a moving average, or one of other weights."""
    if ("ema" in content) != ("Ema" in content["callbacks"]):
        there, lacking = ("ema", "callbacks.Ema")[:: 1 if "ema" in content else -1]
        raise ValueError(f"{lacking} is missing, which belongs to {there}")
    if "ema" in content:
        check_tensors(content["ema"], module.averaged.state_dict(), "ema")


def _check_scaler(content: Mapping[str, Any], trainer: pl.Trainer) -> None:
    """Refuse a scale of fp16 losses that is none."""
    plugin = trainer.precision_plugin
    key, own = type(plugin).__qualname__, plugin.state_dict()
    if own and key in content:
        check(content[key], like(own), key)


def _check_description(content: Mapping[str, Any], module: ManualOptimizationModule) -> None:
    """Refuse a checkpoint of another stage, or one that does not say what it is."""
    key = "first_stage" if isinstance(module, AutoencoderModule) else "second_stage"
    rule = dict.fromkeys(module.stored_config, ANYTHING)
    if content.get("linear_floor"):  # empty before the first validation
        check(content["linear_floor"], LINEAR_FLOOR, "linear_floor")
    if key == "second_stage":
        rule |= SECOND_STAGE  # type: ignore[arg-type]
        if "classes" in rule:
            rule["classes"] = CLASSES  # type: ignore[assignment]
    check(content.get(key), rule, key)
    if isinstance(module, DiffusionModule):
        module.first_stage.check_weights(content[key]["first_stage"]["hash"])
        LatentNormalizer.from_dict(content[key]["normalizer"])
