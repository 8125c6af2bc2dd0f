"""Say what a training run will cost before it starts: operations, memory, disk, hours.

    python -m ldm_lightning.plan experiment=kl_f8 scale=paper resolution=512

Takes the words of ``ldm_lightning.train``. What is counted needs neither memory nor data; what is
measured are a few updates on random images.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from ldm_lightning.checks.keys import check_keys
from ldm_lightning.cli import handle_user_errors, quiet_lightning, run_entry_point
from ldm_lightning.config import CONF_DIR, check_values, discriminator_start

if TYPE_CHECKING:
    from ldm_lightning.builders.hardware import Hardware
    from ldm_lightning.data.module import MapDataModule
    from ldm_lightning.planning.cost import RunCost

log = logging.getLogger(__name__)

OWN_KEYS = ("measure", "output", "plan")

MAX_MEMORY_FRACTION = 0.8
"""A trial is tried where the counted memory is no more of what is free: allocators add to it."""

MAX_UPDATE_SECONDS = 30.0
"""A trial is tried where one update should take no longer; it then ends within a minute."""


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="plan")
def _plan(cfg: DictConfig) -> None:
    with handle_user_errors():
        plan(cfg, HydraConfig.get())


def plan(cfg: DictConfig, runtime: HydraConf) -> dict[str, Any]:
    """Count, measure and print.

    Args:
        cfg: The composed configuration.
        runtime: Hydra's own configuration of this job, for the group choices.

    Returns:
        Every figure, as ``output`` gets them: bytes, operations and seconds.

    Raises:
        ValueError: On words that ``train`` would refuse.
    """
    quiet_lightning()
    choices = runtime.runtime.choices
    check_keys(cfg, choices, command="plan")
    own = {key: cfg[key] for key in OWN_KEYS}
    with open_dict(cfg):
        for key in OWN_KEYS:
            del cfg[key]
    cfg.dry_run = True  # data and first stage may be missing
    for alarm in check_values(cfg):
        log.warning(alarm)
    num_images = own["plan"].num_images
    output = None if own["output"] is None else Path(own["output"])
    if output is not None and not output.absolute().parent.is_dir():
        raise ValueError(f"output={output}: the folder {output.absolute().parent} does not exist.")

    facts = _facts(cfg, choices, num_images=num_images, measure=own["measure"])
    from ldm_lightning.planning.table import print_plan

    print_plan(facts)
    if output is not None:
        output.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        log.info("All figures: %s", output)
    return facts


def _facts(
    cfg: DictConfig, choices: Mapping[str, str], *, num_images: int | None, measure: bool
) -> dict[str, Any]:
    """Every figure."""
    from ldm_lightning.builders.data import build_data
    from ldm_lightning.builders.hardware import choose_hardware
    from ldm_lightning.builders.meta_networks import networks_without_memory
    from ldm_lightning.builders.second_stage import resolve_condition
    from ldm_lightning.planning.facts import (
        counted_facts,
        disk_facts,
        latent_cache_facts,
        memory_facts,
    )
    from ldm_lightning.planning.first_stage import first_stage_cost
    from ldm_lightning.planning.second_stage import first_stage_description, second_stage_cost

    hardware = choose_hardware(cfg)
    data = None if OmegaConf.missing_keys(cfg.data) else build_data(cfg)
    encodes, description = choices["data"] != "latents", None
    if cfg.stage == "first":
        cost = first_stage_cost(cfg, hardware, networks_without_memory(cfg))
    else:
        if data is not None:
            resolve_condition(cfg, num_classes=data.num_classes)
        description = first_stage_description(cfg, choices)
        cost = second_stage_cost(
            cfg,
            hardware,
            networks_without_memory(cfg),
            first_stage=description,
            encodes=encodes,
        )
    facts = counted_facts(cfg, choices, hardware, cost)
    facts["memory"] = memory_facts(cfg, hardware, cost)
    if cfg.stage == "second":
        facts["latent_cache"] = latent_cache_facts(cost, data, num_images)
    facts["disk"] = disk_facts(cost.state)
    facts["time"] = {"not_measured": "measure=false"}
    if measure:
        run = _Run(cfg, hardware, cost, description, encodes, data)
        facts["time"] = _time(run, facts)
    return facts


@dataclass(frozen=True)
class _Run:
    """Inputs of a trial."""

    cfg: DictConfig
    hardware: Hardware
    cost: RunCost
    first_stage: dict[str, Any] | None
    encodes: bool
    data: MapDataModule | None


def _time(run: _Run, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Time a few updates, unless they would take too much memory or too long; say so then."""
    from ldm_lightning.planning.facts import time_facts
    from ldm_lightning.planning.trial import Trial, probe_speed, time_updates
    from ldm_lightning.utils.memory import keep_freed_memory

    cfg, cost = run.cfg, run.cost
    keep_freed_memory()  # as training does
    speed = probe_speed(run.hardware)
    expected = cost.update.flops * cfg.accumulate_batches / speed
    available = facts["memory"]["available"]
    reason = None
    if available is not None and facts["memory"]["sum"] > MAX_MEMORY_FRACTION * available:
        reason = "too much memory for what is free"
    elif expected > MAX_UPDATE_SECONDS:
        reason = f"an update would take about {expected:.0f} s"
    if reason is None:
        log.info("Timing updates on random images, for half a minute at most ...")
        trial = time_updates(cfg, run.hardware, first_stage=run.first_stage, encodes=run.encodes)
    else:
        trial = Trial(num_updates=0, seconds_per_update=expected, peak_bytes=0)
    return {
        "measured_probe_flops_per_s": speed,
        "not_measured": reason,
        **time_facts(
            facts,
            cost,
            trial=trial,
            steps_before_discriminator=_quiet_steps(cfg),
            num_validations=math.ceil(cfg.max_steps / cfg.validation.every_steps),
            validation_flops=_validation_flops(run),
        ),
    }


def _quiet_steps(cfg: DictConfig) -> int:
    """Updates before the discriminator learns."""
    if cfg.stage == "second" or not cfg.discriminator._target_:
        return 0
    return max(0, discriminator_start(cfg) - cfg.loss.discriminator_warmup_steps)


def _validation_flops(run: _Run) -> int | None:
    """Of one validation without the metrics' feature networks; None where images are unknown."""
    cfg, flops = run.cfg, run.cost.forward_flops
    most = cfg.data.max_val_images
    num_images = most if run.data is None else len(run.data.val_indices)
    if num_images is None:
        return None
    if cfg.stage == "first":
        return num_images * (flops["encoder"] + flops["decoder"])
    from ldm_lightning.planning.second_stage import calls_per_sample

    measured = num_images * (flops["denoiser"] + (flops["encoder"] if run.encodes else 0))
    sample = calls_per_sample(cfg) * flops["denoiser"] + flops["decoder"]
    return measured + cfg.validation.num_samples * sample


def main() -> None:
    """Entry point of ``ldm-plan`` and ``python -m ldm_lightning.plan``."""
    run_entry_point(_plan)


if __name__ == "__main__":
    main()
