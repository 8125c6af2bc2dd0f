"""Weights & Biases as a logger that never asks and, unless told so, never calls.

Lightning's own gives every chart an axis that counts batches. Here it counts updates, and so do the
rows of W&B's history: what is logged at one update is one row. A run that is continued keeps its
id, and goes on there.
"""

import netrc
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from ldm_lightning.metrics.names import directions
from ldm_lightning.reporting.metrics_file import read_metrics
from ldm_lightning.runs.run_folder import RunFolder
from ldm_lightning.utils.provenance import git_commit

AXIS = "update"
"""What every chart is drawn against; gets no chart of its own."""

DRAWN_ONCE = ("ceiling", "prior")
"""Pictures of a second stage that never change, drawn at its first validation."""

KILLED = 255
"""Exit code by which W&B knows a run that its user stopped."""


class WandbDashboard(WandbLogger):
    """Write a run for W&B; the package ``wandb`` is imported when it begins, not before.

    Args:
        save_dir: The run folder; W&B writes to ``wandb/`` inside it.
        offline: Write locally alone; ``wandb sync`` uploads later.
        project: Project's name in W&B.
        name: What is trained; the run is called this and its folder's name.
        group: Runs that W&B shows together; None for a run of its own.
        job_type: Kind of run within the group.
        entity: User or team in W&B; None takes the account's default.
        tags: To find runs by.

    Raises:
        ValueError: If ``offline`` is false and there is no API key. W&B would ask for one and wait.
    """

    def __init__(
        self,
        save_dir: str | Path,
        *,
        offline: bool,
        project: str,
        name: str,
        group: str | None,
        job_type: str,
        entity: str | None = None,
        tags: Sequence[str] = (),
    ) -> None:
        if not offline and not _has_api_key():
            raise ValueError(
                "logger.offline=false needs a W&B API key: set WANDB_API_KEY or run `wandb login` "
                "first, or leave logger.offline=true and upload later with `wandb sync`."
            )
        self.run_folder = RunFolder(save_dir)
        self.mode = _mode(offline=offline)
        commit = git_commit()
        super().__init__(
            name=f"{name} {self.run_folder.path.name}",
            save_dir=self.run_folder.path,
            version=self.run_folder.read_summary().get("wandb", {}).get("id"),
            project=project,
            group=group,
            job_type=job_type,
            entity=entity,
            tags=list(tags),
            mode=self.mode,
            reinit="finish_previous",
            settings={
                "save_code": False,
                "disable_code": True,
                # W&B would name the repository it is started in, which need not be this code's.
                "disable_git": True,
                "git_commit": commit and commit.removesuffix("-dirty"),
            },
        )
        self._defined: set[str] = set()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run; begins it, or goes on with that of an earlier start.

        Lightning's own would go on with whatever run is open in this process, make the
        environment's mode another one, and draw every chart against a count of batches.
        """
        if self._experiment is None:
            import wandb

            given = {key: value for key, value in self._wandb_init.items() if value is not None}
            run = wandb.init(**given)  # warns of ``anonymous``, also where it is None
            run.define_metric(AXIS, hidden=True)
            self._experiment = run
            self._defined = set()
            if self.mode != "disabled":
                self._id = self._wandb_init["id"] = run.id
                self.run_folder.update_summary({"wandb": {"id": run.id}})
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add values to the row of an update.

        Raises:
            ValueError: If there is no step.
        """
        if step is None:
            raise ValueError(f"W&B needs a step for {', '.join(metrics)}, got None.")
        run = self.experiment
        for name in metrics:
            if name not in self._defined:
                run.define_metric(name, step_metric=AXIS, summary=_summary_of(name))
                self._defined.add(name)
        run.log({**metrics, AXIS: step}, step=step)

    @rank_zero_only
    def log_picture(self, name: str, path: Path, *, step: int) -> None:
        """Add a PNG file, which W&B copies."""
        import wandb

        self.log_metrics({name: wandb.Image(str(path))}, step=step)

    @rank_zero_only
    def log_histogram(
        self, name: str, heights: Sequence[float], edges: Sequence[float], *, step: int
    ) -> None:
        """Add a histogram, drawn over time as a heat map."""
        import wandb

        self.log_metrics({name: wandb.Histogram(np_histogram=(heights, edges))}, step=step)

    @rank_zero_only
    def drop_rows_after(self, step: int, *, validated: bool) -> None:
        """Continue from ``step``; ``metrics.csv`` holds only what is not written again.

        Offline a continuation is a folder of its own, and which of several folders of one run W&B
        keeps is not documented. So the newest one is made whole: it begins with all that the run
        folder still has, scalars and pictures.
        """
        if not step or self.mode != "offline":
            return
        rows: dict[int, dict[str, float]] = {}
        if self.run_folder.metrics.is_file():
            for at, metric, value in read_metrics(self.run_folder.metrics):
                rows.setdefault(at, {})[metric] = value
        pictures = self._pictures()
        for at in sorted(at for at in rows.keys() | pictures.keys() if at <= step):
            self.log_metrics(rows.get(at, {}), step=at)
            for name, path in pictures.get(at, []):
                self.log_picture(name, path, step=at)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the W&B run as the run has ended."""
        if self._experiment is None:
            return
        summary = self.run_folder.read_summary()
        for key in ("state", "reason"):
            if key in summary:
                self._experiment.summary[key] = summary[key]
        failed = KILLED if summary.get("state") == "interrupted" else 1
        self._experiment.finish(exit_code=0 if status == "success" else failed)
        self._experiment = None

    def _pictures(self) -> dict[int, list[tuple[str, Path]]]:
        """Pictures of the run folder by update, with their names in W&B."""
        pictures: dict[int, list[tuple[str, Path]]] = {}
        unchanging = []
        for path in sorted(self.run_folder.images.glob("*.png")):
            if match := re.fullmatch(r"(.+)_(\d+)", path.stem):
                pictures.setdefault(int(match[2]), []).append((f"images/{match[1]}", path))
            elif path.stem in DRAWN_ONCE:
                unchanging.append((f"images/{path.stem}", path))
        if pictures:
            pictures[min(pictures)] += unchanging
        return pictures


def _summary_of(name: str) -> str:
    """Summary of a series in the run table: the last value, and the best where there is one."""
    known = directions()
    upward = known.get(name, known.get(name.partition("/")[2]))
    if upward is None:
        return "last"
    return "max,last" if upward else "min,last"


def _mode(*, offline: bool) -> Literal["online", "offline", "disabled"]:
    """Mode of W&B. The environment may restrict what is configured, and add nothing."""
    asked = os.environ.get("WANDB_MODE")
    if asked == "disabled":
        return "disabled"
    return "offline" if offline or asked == "offline" else "online"


def _has_api_key() -> bool:
    """Return whether W&B would find a key without asking."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
