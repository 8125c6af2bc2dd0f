"""Check a run before anything is built: its folder, its values, what it continues.

Nothing here imports torch unless a run is continued.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from hydra.conf import HydraConf
from omegaconf import DictConfig

from ldm_lightning.config import check_values
from ldm_lightning.restore.stored_config import Composition, read_composition
from ldm_lightning.resume.arguments import composition_of
from ldm_lightning.runs.folder_choice import resumed_folder
from ldm_lightning.runs.run_folder import RunFolder, has_begun

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckedRun:
    """A configuration whose values are known to go together.

    Attributes:
        cfg: The composed configuration.
        composition: File of each group, and keys that command lines gave.
        run_folder: Where the run writes.
        continues: The checkpoint that the run goes on from; None for a run from update 0.
    """

    cfg: DictConfig
    composition: Composition
    run_folder: RunFolder
    continues: Path | None


def check_folder(cfg: DictConfig, run_folder: RunFolder) -> None:
    """Refuse to overwrite a run, and to continue one in the folder of another.

    Raises:
        ValueError: Naming the folder and what to give instead.
    """
    if cfg.resume is None and has_begun(run_folder.path):
        raise ValueError(
            f"{run_folder.path} holds a run already. Continue it with resume={run_folder.path}, or "
            "choose another output_dir."
        )
    if cfg.resume not in (None, "auto"):
        folder = resumed_folder(str(cfg.resume))
        if folder.resolve() != run_folder.path.resolve():
            raise ValueError(
                f"resume={cfg.resume} goes on in its own folder, not in {run_folder.path}: leave "
                "output_dir and hydra.run.dir out."
            )


def check(cfg: DictConfig, runtime: HydraConf, run_folder: RunFolder) -> CheckedRun:
    """Check values against each other and against the run that is continued.

    Args:
        cfg: The composed configuration; ``output_dir`` becomes the run's folder.
        runtime: Hydra's own configuration of this command.
        run_folder: Where the run writes.

    Raises:
        ValueError: Naming the keys, their values and what to change.
    """
    cfg.output_dir = str(run_folder.path)
    warnings = check_values(cfg)
    before, continues = None, None
    if cfg.resume is not None and run_folder.config.is_file():
        from ldm_lightning.resume.point import resumed_from

        continues = resumed_from(cfg, run_folder)
        before = read_composition(run_folder.path)
    else:
        choices = runtime.runtime.choices
        log.info("scale=%s shrinks %s.", choices["scale"], cfg.scale_description)
        if choices["scale"] != "paper":
            log.info("The published recipe: experiment=%s scale=paper", choices["experiment"])
    for warning in warnings:
        log.warning(warning)
    return CheckedRun(cfg, composition_of(runtime, before), run_folder, continues)
