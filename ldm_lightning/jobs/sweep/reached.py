"""Progress of a job of a sweep, read from its folder."""

from __future__ import annotations

import csv
import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ldm_lightning.jobs.sweep.jobs import CHAIN
from ldm_lightning.runs.run_folder import read_summary
from ldm_lightning.storage.files import open_regular
from ldm_lightning.storage.small_files import SmallFileError, read_json, read_yaml

DONE = ("finished", "early_stopped", "validated", "dry_run")
"""States of a run that is not started again."""

TAIL_BYTES = 4096
"""How much of ``metrics.csv`` is read to find its last row."""


@dataclass(frozen=True)
class Reached:
    """State of a job from its folder.

    Attributes:
        state: Of ``summary.json``; None where there is none.
        reason: Why it failed or stopped early; empty where nothing is said.
        step: Updates done; of a chain those of the training that goes on.
        max_steps: Updates asked for; None where that is not known, or nothing is trained.
        seconds: Spent on training and validation, over all starts.
        monitor: Name of the metric that decides; None where that is not known.
        value: The last value of ``monitor``; None where it was not measured or is not finite.
        part: The step of a chain that goes on, as ``second_stage (4 of 8)``; empty without a chain.
    """

    state: str | None = None
    reason: str = ""
    step: int = 0
    max_steps: int | None = None
    seconds: float = 0.0
    monitor: str | None = None
    value: float | None = None
    part: str = ""

    @property
    def share(self) -> float | None:
        """Fraction of the work that is done, 0 to 1; None where nothing tells."""
        if self.state in DONE:
            return 1.0
        if self.part or not self.max_steps:
            return None
        return min(1.0, self.step / self.max_steps)


def reached(folder: Path) -> Reached:
    """Read the folder of a job, which may be written meanwhile, be damaged, or not exist."""
    try:
        summary = read_summary(folder)
    except SmallFileError as error:
        return Reached("failed", f"{error} To go on with this job, move it away.")
    found = _training(folder, summary)
    if not (folder / CHAIN).is_file():
        return found
    try:
        steps = read_json(folder / CHAIN, dict)["steps"]
        return _chain(folder, found, steps, summary.get("steps", {}))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # going on with it tells
        return found


def _training(folder: Path, summary: dict[str, Any]) -> Reached:
    config = _config(folder / "config.yaml")
    monitor = config["monitor"] if isinstance(config.get("monitor"), str) else None
    max_steps = config.get("max_steps")
    return Reached(
        state=summary.get("state"),
        reason=str(summary.get("reason", "")),
        step=max(int(summary.get("step", 0)), _last_step(folder / "metrics.csv")),
        max_steps=max_steps if isinstance(max_steps, int) else None,
        seconds=_number(summary.get("timing", {}).get("total_s")) or 0.0,
        monitor=monitor,
        value=_number(summary.get("metrics", {}).get(monitor)),
    )


def _chain(
    folder: Path, found: Reached, steps: Sequence[dict[str, Any]], begun: dict[str, Any]
) -> Reached:
    """Progress of a chain: its step, or its last training's metrics."""
    names = [step["name"] for step in steps]
    left = [name for name in names if begun.get(name, {}).get("state") not in DONE]
    shown = left[0] if left else [s["name"] for s in steps if s["command"] == "train"][-1]
    own = _training(folder / shown, read_summary(folder / shown))
    seconds = sum(float(step.get("seconds", 0.0)) for step in begun.values())
    if not left:
        value = own.value if found.value is None else found.value
        return replace(
            found, part=f"{len(names)} steps", max_steps=None, seconds=seconds, value=value
        )
    part = f"{shown} ({names.index(shown) + 1} of {len(names)})"
    kept = ("step", "max_steps", "monitor", "value")
    now = {name: getattr(own, name) for name in kept}
    return replace(found, part=part, seconds=seconds + own.seconds, **now)


def _number(value: Any) -> float | None:
    """The value as a float; None for what is no number."""
    return float(value) if isinstance(value, int | float) else None


def _config(path: Path) -> dict[str, Any]:
    try:
        return _read_config(path, path.stat().st_mtime_ns)
    except (OSError, ValueError):  # shown only: nothing is shown
        return {}


@functools.lru_cache(maxsize=4096)
def _read_config(path: Path, changed: int) -> dict[str, Any]:
    """Values that are shown; the file is read again where it has changed."""
    config = read_yaml(path)
    return {key: config.get(key) for key in ("monitor", "max_steps")}


def _last_step(metrics: Path) -> int:
    """The update of the last whole row; 0 where there is none."""
    try:
        with open_regular(metrics) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = file.read(TAIL_BYTES).decode(errors="replace")
    except OSError:
        return 0
    whole = text[: text.rfind("\n") + 1].splitlines()
    rows = list(csv.reader(whole[-1:]))
    return int(rows[0][0]) if rows and rows[0] and rows[0][0].isdigit() else 0
