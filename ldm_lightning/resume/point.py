"""Checkpoint that a run continues from, and the fate of newer ones.

A run that has got anywhere is never started anew in silence, and going back to an earlier
checkpoint loses no later one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ldm_lightning.checkpoints.checkpoint import remove_shards, stored_step
from ldm_lightning.checkpoints.sharded import link_checkpoint
from ldm_lightning.module.update_loop import check_length
from ldm_lightning.reporting.metrics_file import read_metrics
from ldm_lightning.resume.changes import check_changes
from ldm_lightning.runs.run_folder import RunFolder
from ldm_lightning.storage.small_files import read_yaml
from ldm_lightning.utils.errors import CheckpointError
from ldm_lightning.utils.launch import launched

log = logging.getLogger(__name__)


def resumed_from(cfg: DictConfig, run_folder: RunFolder) -> Path | None:
    """The checkpoint that a run goes on from, once what this command changes is known to apply.

    Raises:
        ValueError: Naming the key that cannot be changed, or the checkpoint that is not there.
    """
    log.info("Continuing the run in %s.", run_folder.path)
    stored = read_yaml(run_folder.config)  # checked before Hydra composed this command
    checkpoint = resume_point(run_folder, str(cfg.resume), first_save=_first_save(stored))
    if checkpoint is None:
        if launched().is_first:
            log.warning(
                "There is no checkpoint yet: the run starts anew, and rows of metrics.csv, up to "
                "update %d, are written again.",
                last_update(run_folder),
            )
        return None
    now = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(now, dict)
    check_changes(stored, {str(key): value for key, value in now.items()}, run_folder.path)
    check_length(cfg.max_steps, done=stored_step(checkpoint), path=checkpoint)
    return checkpoint


def _first_save(stored: Mapping[str, Any]) -> int:
    """Update after which a run has a checkpoint."""
    places = (("validation", "every_steps"), ("callbacks", "checkpointing", "every_num_steps"))
    updates = [stored.get("max_steps")]
    for place in places:
        value: Any = stored
        for name in place:
            value = value.get(name) if isinstance(value, Mapping) else None
        updates.append(value)
    return min((value for value in updates if isinstance(value, int)), default=0)


def resume_point(run_folder: RunFolder, resume: str, *, first_save: int) -> Path | None:
    """The checkpoint that a run is continued from; None where it has none yet and starts anew.

    Args:
        run_folder: Of the run.
        resume: Its folder, or one of its checkpoints.
        first_save: Update after which a run has a checkpoint.

    Raises:
        ValueError: If checkpoints are missing or damaged; names what to give instead.
    """
    last, best = (run_folder.checkpoints / f"{name}.ckpt" for name in ("last", "best"))
    others = [path for path in sorted(run_folder.checkpoints.glob("*.ckpt")) if path != last]
    given = Path(resume).absolute() if resume.endswith(".ckpt") else last
    if given.is_file():
        try:
            stored_step(given)
        except CheckpointError as error:
            raise CheckpointError(f"{error}{_instead(others, given)}") from error
        return given
    if given != last:
        raise ValueError(f"resume={resume} does not exist.{_instead([*others, last], given)}")
    logged = last_update(run_folder)
    if best.is_file() and stored_step(best) >= logged:
        log.warning("%s is missing; nothing is newer than %s, which goes on.", last, best)
        return best
    if others:
        raise ValueError(
            f"{last} is missing, and metrics.csv goes on to update "
            f"{logged}.{_instead(others, last)}"
        )
    if logged > first_save:
        raise ValueError(
            f"{run_folder.metrics} goes to update {logged}, but there is no checkpoint in "
            f"{run_folder.checkpoints}, where one was written by update {first_save}. Put it back, "
            "or start a new run."
        )
    return None


def _instead(checkpoints: list[Path], wrong: Path) -> str:
    """Words for the checkpoints that there are."""
    there = [path for path in checkpoints if path.is_file() and path != wrong]
    return f" Give resume={' or resume='.join(map(str, there))}." if there else ""


def last_update(run_folder: RunFolder) -> int:
    """The last update of which ``metrics.csv`` has a row; 0 where it has none."""
    if not run_folder.metrics.is_file():
        return 0
    return max((row[0] for row in read_metrics(run_folder.metrics)), default=0)


def go_back(run_folder: RunFolder, checkpoint: Path) -> None:
    """Make a checkpoint the run's last one; what is newer keeps its content under another name.

    One process does it, before the run goes on.
    """
    last, best = (run_folder.checkpoints / f"{name}.ckpt" for name in ("last", "best"))
    if checkpoint == last:
        return
    step = stored_step(checkpoint)
    for newer in (last, best):
        if newer == checkpoint or (at := _readable_step(newer)) is None or at <= step:
            continue
        kept = newer.with_name(f"{newer.stem}_of_update_{at}.ckpt")
        link_checkpoint(newer, kept)
        log.warning(
            "Going back from update %d to update %d; %s is kept as %s.", at, step, newer, kept
        )
        if newer == best:
            best.unlink()
            remove_shards(best)
    if (logged := last_update(run_folder)) > step:
        log.warning(
            "Rows of metrics.csv from update %d to %d are dropped, and written again.",
            step + 1,
            logged,
        )
    link_checkpoint(checkpoint, last)


def _readable_step(path: Path) -> int | None:
    """The update that a checkpoint holds; None where it is missing or damaged."""
    try:
        return stored_step(path)
    except CheckpointError:
        return None
