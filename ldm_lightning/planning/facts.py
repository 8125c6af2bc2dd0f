"""The figures of a plan as plain values: bytes, operations, seconds; from counted costs and trials.

Keys say how a figure came about where it is not counted: ``measured_*``, ``estimated_*``.
"""

import math
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from ldm_lightning.builders.hardware import Hardware
from ldm_lightning.data.latents.module import LatentDataModule
from ldm_lightning.data.module import MapDataModule
from ldm_lightning.planning.cost import RunCost, StateBytes
from ldm_lightning.planning.trial import Trial
from ldm_lightning.utils.memory import available_memory

BYTES = {"float32": 4, "float16": 2}


def counted_facts(
    cfg: DictConfig, choices: Mapping[str, str], hardware: Hardware, cost: RunCost
) -> dict[str, Any]:
    """Figures that follow from the configuration alone."""
    facts: dict[str, Any] = {
        "name": cfg.name,
        "experiment": choices["experiment"],
        "scale": choices["scale"],
        "device": hardware.description,
        "precision": hardware.precision,
        "image_shape": list(cost.image_shape),
        "batch_size": cfg.data.batch_size,
        "accumulate_batches": cfg.accumulate_batches,
        "num_processes": hardware.num_processes,
        "images_per_update": cfg.data.batch_size * cfg.accumulate_batches * hardware.num_processes,
        "max_steps": cfg.max_steps,
        "parameters": dict(cost.parameters),
        "flops": {
            "forward": dict(cost.forward_flops),
            "formula": cost.formula,
            "update_by_formula": cost.formula_flops,
            "update": cost.update.flops // cfg.data.batch_size,
        },
        "latents": {
            "shape": list(cost.latent_shape),
            "numbers_of_an_image": math.prod(cost.image_shape),
            "numbers_of_its_latents": math.prod(cost.latent_shape),
            "compression": cost.compression,
            "bits_per_pixel": cost.bits_per_pixel,
        },
    }
    if cost.denoisers:
        facts["denoiser_in"] = {
            space: {
                "shape": list(one.shape),
                "numbers": math.prod(one.shape),
                "forward_flops": one.flops,
                "kept_bytes_float32": one.kept_bytes,
            }
            for space, one in cost.denoisers.items()
        }
    return facts


def memory_facts(cfg: DictConfig, hardware: Hardware, cost: RunCost) -> dict[str, Any]:
    """Memory of an update in one process against free memory, with advice where it does not fit."""
    state = cost.state
    buckets = state.trained if hardware.num_processes > 1 else 0
    held = state.resident + buckets
    facts: dict[str, Any] = {
        "weights": state.weights,
        "optimizer": state.optimizer,
        "average": state.average,
        "ddp_buckets": buckets,
        "gradients": state.trained,
        "kept_for_backward": cost.update.kept_bytes,
        "peak_of_update": cost.update.peak_bytes,
        "sum": held + cost.update.peak_bytes,
        "available": available_memory(hardware.device),
    }
    if cost.recomputed is not None:
        facts["gradient_checkpointing"] = {
            "kept_for_backward": cost.recomputed.kept_bytes,
            "peak_of_update": cost.recomputed.peak_bytes,
            "sum": held + cost.recomputed.peak_bytes,
            "flops": cost.recomputed.flops // cfg.data.batch_size,
        }
    facts["warning"] = _warning(facts, cfg, hardware.precision)
    return facts


def latent_cache_facts(
    cost: RunCost, data: MapDataModule | None, num_images: int | None
) -> dict[str, Any]:
    """Size of a cache of all training images, without mirrored copies; of one that is there, too.

    Args:
        cost: Knows the latents.
        data: None where it is not known.
        num_images: None takes those of the data.
    """
    if num_images is None and data is not None:
        num_images = len(data.train_dataset)
    numbers = math.prod(cost.latent_shape) * (2 if cost.is_stochastic else 1)
    facts: dict[str, Any] = {
        "num_images": num_images,
        "mean_and_variance": cost.is_stochastic,
        "bytes_per_image": {name: numbers * size for name, size in BYTES.items()},
    }
    if num_images is not None:
        facts["bytes"] = {name: numbers * size * num_images for name, size in BYTES.items()}
    if isinstance(data, LatentDataModule):
        facts["bytes_on_disk"] = sum(
            shard.num_bytes for shard in data.train_dataset.index.shards or ()
        )
    return facts


def time_facts(
    facts: Mapping[str, Any],
    cost: RunCost,
    *,
    trial: Trial,
    steps_before_discriminator: int,
    num_validations: int,
    validation_flops: int | None,
) -> dict[str, Any]:
    """Speed and duration that follow from timed updates.

    Args:
        facts: Of ``counted_facts``.
        cost: What the update costs, by which validations and updates without the discriminator
            are estimated.
        trial: Of one process; several are taken to be as fast each.
        steps_before_discriminator: Updates before the discriminator comes in.
        num_validations: Of the whole run.
        validation_flops: Of one, the metrics' feature networks left out; None where it is not known
            how many images there are.
    """
    seconds = trial.seconds_per_update
    quiet = min(steps_before_discriminator, facts["max_steps"])
    quiet_seconds = seconds * cost.quiet_flops / cost.formula_flops
    updates = (facts["max_steps"] - quiet) * seconds + quiet * quiet_seconds
    flops_per_second = cost.update.flops * facts["accumulate_batches"] / seconds
    validation = None
    if validation_flops is not None:
        validation = validation_flops / flops_per_second / facts["num_processes"]
    return {
        "measured_updates": trial.num_updates,
        "measured_seconds_per_update": seconds,
        "measured_images_per_s": facts["images_per_update"] / seconds,
        "measured_flops_per_s": flops_per_second,
        "measured_peak_bytes": trial.peak_bytes,
        "estimated_seconds_of_updates": updates,
        "num_validations": num_validations,
        "estimated_seconds_per_validation": validation,
        "estimated_seconds": updates + num_validations * (validation or 0.0),
    }


def disk_facts(state: StateBytes) -> dict[str, Any]:
    """Checkpoints of a finished run: the last and the best."""
    return {"checkpoint": state.checkpoint, "at_the_end": 2 * state.checkpoint}


def _warning(facts: Mapping[str, Any], cfg: DictConfig, precision: str) -> str | None:
    """Advice where an update needs more memory than there is; None where it fits."""
    part = "autoencoder" if cfg.stage == "first" else "denoiser"
    batch_size, accumulate = cfg.data.batch_size, cfg.accumulate_batches
    available = facts["available"]
    if available is None or facts["sum"] <= available:
        return None
    held = facts["sum"] - facts["peak_of_update"]
    # What does not shrink with the batch, at the most: gradients, and weights in a half type.
    fixed = facts["gradients"] + (facts["weights"] // 2 if precision in ("bf16", "fp16") else 0)
    remedies = []
    for number in range(batch_size - 1, 0, -1):
        if batch_size % number:
            continue
        if held + fixed + facts["peak_of_update"] * number / batch_size <= available:
            remedies.append(
                f"data.batch_size={number} accumulate_batches={accumulate * batch_size // number}"
            )
            break
    gradient_checkpointing = facts.get("gradient_checkpointing")
    if gradient_checkpointing is not None:
        fits = "" if gradient_checkpointing["sum"] <= available else " (not enough alone)"
        remedies.append(f"{part}.gradient_checkpointing=true{fits}")
    if precision in ("32", "64"):
        remedies.append("trainer.precision=bf16")
    advice = ", or ".join(remedies) if remedies else "a smaller network or resolution"
    return f"It does not fit. Try {advice}."
