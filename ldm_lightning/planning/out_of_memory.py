"""Advice for a training that runs out of memory, by the numbers of ``plan``."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from omegaconf import DictConfig

from ldm_lightning.builders.hardware import choose_hardware
from ldm_lightning.builders.meta_networks import networks_without_memory
from ldm_lightning.planning.facts import memory_facts
from ldm_lightning.planning.first_stage import first_stage_cost
from ldm_lightning.planning.second_stage import first_stage_description, second_stage_cost
from ldm_lightning.utils.errors import OutOfMemory, is_out_of_memory
from ldm_lightning.utils.units import format_bytes

log = logging.getLogger(__name__)


@contextmanager
def explain_out_of_memory(cfg: DictConfig) -> Iterator[None]:
    """Turn torch's error into one line that names the keys to change.

    Args:
        cfg: The run's configuration.

    Raises:
        OutOfMemory: Instead of torch's error.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        # What was asked for and what there is; advice about torch's allocator follows there.
        sentences = str(error).splitlines()[0].rstrip(". ").split(". ")[:3]
        raise OutOfMemory(f"{'. '.join(sentences)}. {remedies(cfg)}") from error


def remedies(cfg: DictConfig) -> str:
    """The keys that lower memory, each with what ``plan`` counts for it."""
    try:
        counted = _counted(cfg)
    except Exception:  # any: the numbers are an addition to an error that is told in any case
        log.debug("The update could not be counted:", exc_info=True)
        counted = {}

    def told(name: str) -> str:
        return f" ({format_bytes(counted[name])})" if name in counted else ""

    part = "autoencoder" if cfg.stage == "first" else "denoiser"
    batch_size, accumulate = cfg.data.batch_size, cfg.accumulate_batches
    changes = []
    if batch_size > 1:
        half = batch_size // 2
        changes.append(
            f"data.batch_size={half} accumulate_batches={accumulate * 2}{told('half the batch')}"
        )
    if cfg[part].get("gradient_checkpointing") is False:
        changes.append(f"{part}.gradient_checkpointing=true{told('gradient_checkpointing')}")
    if str(cfg.trainer.precision) in ("32", "64", "auto"):
        changes.append("trainer.precision=bf16")
    need = f"By plan an update needs {format_bytes(counted['update'])}. " if counted else ""
    return (
        f"{need}Try {', or '.join([*changes, 'a smaller network or resolution'])}; in a validation "
        f"data.val_batch_size below {cfg.data.val_batch_size}."
    )


def _counted(cfg: DictConfig) -> dict[str, int]:
    """Bytes of one process in an update: as configured, and with changes."""
    cfg = cfg.copy()
    hardware, networks = choose_hardware(cfg), networks_without_memory(cfg)
    if cfg.stage == "first":
        cost = first_stage_cost(cfg, hardware, networks)
    else:
        cost = second_stage_cost(
            cfg,
            hardware,
            networks,
            first_stage=first_stage_description(cfg, {}),  # of its checkpoint
            encodes="latents" not in str(cfg.data._target_),
        )
    facts = memory_facts(cfg, hardware, cost)
    held, peak = facts["sum"] - facts["peak_of_update"], facts["peak_of_update"]
    fixed = min(facts["gradients"], peak)  # does not shrink with the batch
    counted = {"update": facts["sum"], "half the batch": held + fixed + (peak - fixed) // 2}
    if "gradient_checkpointing" in facts:
        counted["gradient_checkpointing"] = facts["gradient_checkpointing"]["sum"]
    return counted
