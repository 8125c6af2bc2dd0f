"""Finding run folders and reading what they say, also while they are being written."""

import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ldm_lightning.metrics.names import register_stored
from ldm_lightning.reporting.page.summary_file import (
    Setting,
    mapping,
    metrics_of,
    read_summary,
    seconds_of,
    settings_of,
    sign_of_life,
    whole_number,
)

DONE = ("finished", "early_stopped", "validated")
"""States whose metrics are those of a whole run."""

NO_RUNS_WITHIN = ("checkpoints", "images", "figures", "wandb", "tensorboard")

FIRST_STAGE_PARTS = ("autoencoder", "bottleneck", "discriminator", "loss", "image_channels")
"""Of a configuration: what a chain and an evaluation have from the first stage they rest on."""


@dataclass(frozen=True)
class Run:
    """Content of one run folder.

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
        rests_on: Folder of the run whose checkpoint it trains upon or measures; None where
            there is none.
        relations: In words, to which other runs of the report it belongs, with their numbers.
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
    rests_on: Path | None = None
    relations: tuple[tuple[str, int], ...] = ()

    @property
    def is_done(self) -> bool:
        """True if the metrics are those of a whole run."""
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
    numbers = {run.folder: number for number, run in enumerate(kept, start=1)}
    return [
        replace(
            run,
            number=numbers[run.folder],
            place=run.folder.relative_to(root).as_posix(),
            relations=tuple(_relations(run, numbers)),
        )
        for run in kept
    ]


def read_run(folder: Path) -> Run:
    """Read one run folder; what is missing or broken becomes the run's state."""
    path = folder / "summary.json"
    summary, state, reason = read_summary(path)
    register_stored(summary.get("own_metrics"))
    config = mapping(summary.get("config"))  # of another shape it tells nothing
    kind = _kind(summary, config)
    rests_on = _rests_on(summary, config)
    if kind == "chain":
        second = mapping(read_summary(folder / "second_stage" / "summary.json")[0].get("config"))
        config = {**second, **_first_stage_parts(folder / "first_stage")}
    elif kind == "evaluation" and rests_on is not None:
        config = {**config, **_first_stage_parts(rests_on)}
    written = _last_change(path, folder)
    if state == "running":
        state, reason = sign_of_life(summary, written)
    return Run(
        number=0,
        folder=folder,
        place=folder.name,
        name=str(summary.get("name") or folder.name),
        kind=kind,
        state=state,
        reason=reason,
        settings=settings_of(config),
        metrics=metrics_of(summary),
        protocols={
            str(name): entry
            for name, entry in mapping(summary.get("protocol")).items()
            if isinstance(entry, dict)
        },
        device=str(summary.get("device") or ""),
        seconds=seconds_of(summary),
        step=whole_number(summary.get("step")),
        written=written,
        rests_on=rests_on,
    )


def _run_folders(top: Path) -> Iterable[Path]:
    """Every run folder at or below a folder. Links are not followed: they may lead in circles."""
    for where, folders, files in os.walk(top):
        has_marks = "checkpoints" in folders and "images" in folders
        if has_marks or "summary.json" in files or "metrics.csv" in files:
            yield Path(where).absolute()
        folders[:] = sorted(
            name for name in folders if name not in NO_RUNS_WITHIN and not name.startswith(".")
        )


def _last_change(*paths: Path) -> float:
    """Of the first that can be asked; a run may be moved away while it is read."""
    for path in paths:
        try:
            return path.stat().st_mtime
        except OSError:
            continue
    return 0.0


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


def _rests_on(summary: Mapping[str, Any], config: Mapping[str, Any]) -> Path | None:
    """Folder of the run whose checkpoint was measured, or that a second stage was trained upon."""
    if "denoiser" in config:
        value = mapping(config.get("first_stage")).get("checkpoint")
    elif "autoencoder" in config:  # what it started from, or itself
        return None
    else:
        value = config.get("checkpoint")
    if not isinstance(value, str) or not value or "\0" in value:
        return None
    path = Path(value).absolute()
    return path.parent.parent if path.suffix == ".ckpt" else path


def _first_stage_parts(folder: Path) -> dict[str, Any]:
    config = mapping(read_summary(folder / "summary.json")[0].get("config"))
    return {key: config[key] for key in FIRST_STAGE_PARTS if key in config}


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


def _relations(run: Run, numbers: Mapping[Path, int]) -> Iterable[tuple[str, int]]:
    if run.folder.parent in numbers:
        yield "part of run", numbers[run.folder.parent]
    if run.rests_on is not None and run.rests_on in numbers and run.rests_on != run.folder:
        yield ("upon run" if run.kind == "second stage" else "of run"), numbers[run.rests_on]
