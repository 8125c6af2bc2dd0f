"""Finding run folders and reading what they say, also while they are being written.

Nothing in a folder is taken for granted: a killed run leaves half a file, a failed one no file.
"""

import glob
import json
import math
import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ldm_lightning.utils.run_folder import STATES

DONE = ("finished", "early_stopped", "validated")
"""States whose metrics are those of a whole run."""

NO_SUMMARY, UNREADABLE, KILLED, SILENT = "no summary", "unreadable", "killed", "silent"
"""States that a folder cannot say of itself."""

SILENT_AFTER_SECONDS = 900.0
"""A running run shows a sign of life every ten seconds, but not during a long validation."""

NO_RUNS_WITHIN = ("checkpoints", "images", "figures", "wandb", "tensorboard")

Setting = str | int | float | bool | None


@dataclass(frozen=True)
class Run:
    """What one run folder says.

    Attributes:
        number: Position in the report, from 1; the newest is last.
        folder: The run folder.
        place: The folder as seen from what all runs have in common.
        name: As the run calls itself; several may have one name.
        kind: ``first stage``, ``second stage``, ``chain``, ``evaluation``, ``samples``,
            ``latents`` or ``run``.
        state: One of ``STATES``, or what the folder shows instead.
        reason: Why the run ended as it did; empty where nothing was said.
        settings: The configuration by dotted key; lists as JSON.
        metrics: Values by full name; None for one that was not finite.
        protocols: How each metric was made, by full name.
        device: What it ran on.
        seconds: Time spent, over all interruptions; None where unknown.
        step: Updates done; None where there are none.
        written: Unix time of the last sign of life.
    """

    number: int
    folder: Path
    place: str
    name: str
    kind: str
    state: str
    reason: str
    settings: Mapping[str, Setting]
    metrics: Mapping[str, float | None]
    protocols: Mapping[str, Mapping[str, Any]]
    device: str
    seconds: float | None
    step: int | None
    written: float

    @property
    def is_done(self) -> bool:
        """Whether the metrics are those of a whole run."""
        return self.state in DONE


def find_runs(patterns: Sequence[str]) -> list[Run]:
    """Read all runs in folders, the oldest first.

    A run folder within another is a run of its own. What a chain only repeats in its own summary
    (its samples and evaluations) is left out unless it did not get done.

    Args:
        patterns: Folders or globs of folders; ``**`` reaches any depth.

    Raises:
        ValueError: If a pattern matches no folder, or none holds a run; says what was looked for.
    """
    folders: dict[Path, None] = {}
    for pattern in patterns:
        path = os.path.expanduser(pattern)  # a folder's name may look like a glob
        matches = [path] if os.path.isdir(path) else sorted(glob.glob(path, recursive=True))
        if not any(os.path.isdir(match) for match in matches):
            raise ValueError(
                f"runs={pattern}: there is no such folder. Give a run folder, a folder of runs "
                "such as outputs/sweeps/NAME, or a glob in quotes."
            )
        for match in matches:
            folders |= dict.fromkeys(_run_folders(Path(match)))
    if not folders:
        raise ValueError(
            f"runs={','.join(patterns)}: no run in there. A run folder holds summary.json, "
            "metrics.csv, or checkpoints/ and images/."
        )
    runs = [read_run(folder) for folder in folders]
    repeated = _repeated_by_chains(runs)
    kept = [run for run in runs if run.folder not in repeated]
    root = os.path.commonpath([run.folder.parent for run in kept])
    kept.sort(key=lambda run: (run.written, run.folder))
    return [
        replace(run, number=number, place=run.folder.relative_to(root).as_posix())
        for number, run in enumerate(kept, start=1)
    ]


def read_run(folder: Path) -> Run:
    """Read one run folder; what is missing or broken becomes the run's state."""
    path = folder / "summary.json"
    summary, state, reason = _read_summary(path)
    config = _mapping(summary.get("config"))  # of another shape it tells nothing
    kind = _kind(summary, config)
    if kind == "chain":
        config = _config_of_chain(folder)
    written = path.stat().st_mtime if path.exists() else folder.stat().st_mtime
    if state == "running":
        state, reason = _sign_of_life(summary, written)
    return Run(
        number=0,
        folder=folder,
        place=folder.name,
        name=str(summary.get("name") or folder.name),
        kind=kind,
        state=state,
        reason=reason,
        settings=dict(_flat(config)),
        metrics=_metrics(summary),
        protocols={
            str(name): entry
            for name, entry in _mapping(summary.get("protocol")).items()
            if isinstance(entry, dict)
        },
        device=str(summary.get("device") or ""),
        seconds=_seconds(summary),
        step=_whole(summary.get("step")),
        written=written,
    )


def _run_folders(top: Path) -> Iterable[Path]:
    """Every run folder at or below a folder."""
    for where, folders, files in os.walk(top):
        has_marks = "checkpoints" in folders and "images" in folders
        if has_marks or "summary.json" in files or "metrics.csv" in files:
            yield Path(where).absolute()
        folders[:] = sorted(
            name for name in folders if name not in NO_RUNS_WITHIN and not name.startswith(".")
        )


def _read_summary(path: Path) -> tuple[dict[str, Any], str, str]:
    """Content, state and reason."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, NO_SUMMARY, "summary.json is missing: the run ended, or is, before its start"
    except (OSError, ValueError, RecursionError) as error:
        return {}, UNREADABLE, f"summary.json cannot be read: {error}"
    if not isinstance(summary, dict):
        return {}, UNREADABLE, f"summary.json holds no object but a {type(summary).__name__}"
    state = summary.get("state")
    if state not in STATES:
        return summary, UNREADABLE, f"summary.json gives no known state but {state!r}"
    return summary, state, str(summary.get("reason") or "")


def _sign_of_life(summary: Mapping[str, Any], written: float) -> tuple[str, str]:
    """Tell a run that works from one that was killed."""
    pid, host = summary.get("pid"), summary.get("host")
    if host == socket.gethostname() and isinstance(pid, int) and not _is_alive(pid):
        return KILLED, f"process {pid} is gone, and left no word"
    heartbeat = summary.get("heartbeat")
    last = heartbeat if isinstance(heartbeat, (int, float)) else written
    if time.time() - last > SILENT_AFTER_SECONDS:
        return SILENT, f"no sign of life from process {pid} on {host} for a quarter of an hour"
    return "running", ""


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _kind(summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    if "steps" in summary:
        return "chain"
    for key in ("samples", "latents"):
        if key in summary:
            return key
    for key, kind in (("denoiser", "second stage"), ("autoencoder", "first stage")):
        if key in config:
            return kind
    return "evaluation" if summary.get("name") == "evaluate" else "run"


def _config_of_chain(folder: Path) -> dict[str, Any]:
    """The second stage's configuration, with the parts of the first stage beside it."""
    first, second = (
        _mapping(_read_summary(folder / stage / "summary.json")[0].get("config"))
        for stage in ("first_stage", "second_stage")
    )
    parts = ("autoencoder", "bottleneck", "discriminator", "loss", "image_channels")
    return {**second, **{key: first[key] for key in parts if key in first}}


def _repeated_by_chains(runs: Iterable[Run]) -> set[Path]:
    """Folders whose figures a chain has taken into its own summary."""
    chains = {run.folder for run in runs if run.kind == "chain"}
    return {
        run.folder
        for run in runs
        if run.folder.parent in chains
        and run.kind in ("samples", "latents", "evaluation")
        and run.is_done
    }


def _metrics(summary: Mapping[str, Any]) -> dict[str, float | None]:
    metrics: dict[str, float | None] = {}
    for name, value in _mapping(summary.get("metrics")).items():
        if value is None:
            metrics[str(name)] = None
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            metrics[str(name)] = float(value) if math.isfinite(value) else None
    return metrics


def _seconds(summary: Mapping[str, Any]) -> float | None:
    steps = _mapping(summary.get("steps")).values()
    parts = [_mapping(step).get("seconds") for step in steps]
    if not parts:
        parts = [_mapping(summary.get("timing")).get("total_s")]
    known = [part for part in parts if isinstance(part, (int, float))]
    return float(sum(known)) if known else None


def _flat(value: Any, where: str = "") -> Iterable[tuple[str, Setting]]:
    """Leaves of a nested configuration by dotted key."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        yield where, json.dumps(value)
    else:
        yield where, value


def _mapping(value: Any) -> dict[str, Any]:
    """The value if it is a mapping, else nothing."""
    return value if isinstance(value, dict) else {}


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
