"""Choice of a run's folder: a new one, or that of the run that is continued."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from ldm_lightning.runs.run_folder import read_summary
from ldm_lightning.storage.small_files import SmallFileError
from ldm_lightning.utils import launch

log = logging.getLogger(__name__)


def run_dir(name: str, resume: str | None) -> str:
    """Folder of the run: a new one, or the one that is continued; the same on every process.

    Raises:
        ValueError: If the name leads out of ``outputs/``, or ``resume`` names no run.
    """
    if Path(str(name)).is_absolute() or ".." in Path(str(name)).parts:
        raise ValueError(
            f"name={name} leads out of outputs/; give a plain name, and output_dir for the folder."
        )
    root = Path("outputs") / str(name)
    if resume is None:
        return launch.agreed(lambda: str(_new_folder(root)))
    if resume == "auto":
        return launch.agreed(lambda: str(_unfinished_folder(root) or _new_folder(root)))
    return str(resumed_folder(resume))


def resumed_folder(resume: str) -> Path:
    """The folder of the run that ``resume=`` names by itself or by one of its checkpoints.

    Raises:
        ValueError: If it is no run.
    """
    path = Path(resume)
    folder = path.absolute().parent.parent if path.suffix == ".ckpt" else path
    if not (folder / "config.yaml").is_file():
        raise ValueError(
            f"resume={resume} is no run: {folder / 'config.yaml'} does not exist. Give the folder "
            "of a run, or resume=auto."
        )
    return folder


def _new_folder(root: Path) -> Path:
    """A folder of the time; of several processes under srun, which agree on no time, of the job."""
    if (step := launch.slurm_step()) is not None and not launch.launched().is_alone:
        return root / f"slurm_{step}"
    now = time.time()
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(now))
    return root / f"{stamp}-{now % 1 * 1e3:03.0f}"


def _unfinished_folder(root: Path) -> Path | None:
    """The unfinished run that was started last, of this job before all others."""
    open_states = {"running", "interrupted", "failed"}
    folders = [path for path in root.glob("*/") if os.path.lexists(path / "summary.json")]
    unfinished = [folder for folder in folders if _state(folder) in open_states]
    if (own := _new_folder(root)) in unfinished:
        return own
    return max(unfinished, key=_started, default=None)


def _state(folder: Path) -> str | None:
    """State of a run; None, with a warning, where its summary is damaged."""
    try:
        return read_summary(folder).get("state")
    except SmallFileError as err:
        log.warning("resume=auto passes over a run: %s", err)
        return None


def _started(folder: Path) -> tuple[float, str]:
    """Time at which a run wrote its configuration; 0.0 where it did not get so far."""
    config = folder / "config.yaml"
    return (config.stat().st_mtime if config.is_file() else 0.0, folder.name)
