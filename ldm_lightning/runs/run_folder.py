"""A run's folder: where its files are, and ``summary.json``: what the run is and reached."""

import json
import math
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Any, Self

from ldm_lightning.storage.files import atomic_writer
from ldm_lightning.storage.locking import Holder, holder_of, sole_holder
from ldm_lightning.storage.small_files import SmallFileError, read_json

STATES = (
    "running",
    "finished",
    "early_stopped",
    "interrupted",
    "failed",
    "dry_run",
    "validated",
)


SUMMARY_KINDS: dict[str, type | UnionType] = {
    "state": str,
    "step": int,
    "heartbeat": int | float,
    **dict.fromkeys(
        ("metrics", "protocol", "timing", "steps", "config", "not_finite", "samples", "wandb"), dict
    ),
}
"""Kinds of value that readers of a summary rely on."""


class RunFolder:
    """The folder of one run; each property says what lies where. Nothing is made by naming it.

    Args:
        path: Of the run; it need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()

    @classmethod
    def create(
        cls, path: str | Path, *, folders: Iterable[str] = ("checkpoints", "images")
    ) -> Self:
        """Make the folder and what it will hold, unless they exist.

        Args:
            path: Of the run.
            folders: Names inside it.

        Raises:
            ValueError: If it cannot be made or written; names the part of the path in the way.
        """
        folder = cls(path)
        for part in (folder.path, *(folder.path / name for name in folders)):
            _create(part, wanted=folder.path)
        return folder

    @property
    def checkpoints(self) -> Path:
        """Holds ``last.ckpt`` and ``best.ckpt``, and their shards where they have any."""
        return self.path / "checkpoints"

    @property
    def images(self) -> Path:
        """Holds the grids as PNG."""
        return self.path / "images"

    @property
    def metrics(self) -> Path:
        """Every logged scalar, ``metrics.csv``."""
        return self.path / "metrics.csv"

    @property
    def config(self) -> Path:
        """The resolved configuration, ``config.yaml``."""
        return self.path / "config.yaml"

    @property
    def summary(self) -> Path:
        """Path of the summary, ``summary.json``."""
        return self.path / "summary.json"

    def read_summary(self) -> dict[str, Any]:
        """Return the summary as written; empty before the first ``update_summary``.

        Raises:
            SmallFileError: If the file cannot be read, is no JSON object, or holds another kind of
                value under a name in ``SUMMARY_KINDS``.
        """
        try:
            return read_summary(self.path)
        except SmallFileError as err:
            raise SmallFileError(f"{err} Move it away to have it written anew.") from err

    def update_summary(self, changes: Mapping[str, Any]) -> None:
        """Merge ``changes`` into ``summary.json`` and write it atomically.

        Mappings are merged key by key, everything else is replaced; a new ``state`` drops the
        ``reason`` of the one before. While ``state`` is ``running``
        the file also holds ``pid``, ``host`` and ``heartbeat`` (Unix time of this write), by which
        a reader tells a run that works from one that was killed. JSON has no NaN and no infinity:
        such a number becomes null, and ``not_finite`` names it and what it was.

        Raises:
            ValueError: If ``changes["state"]`` is none of ``STATES``.
            TypeError: If a value has no place in JSON.
            OSError: If the disk is full; the previous summary stays as it was.
        """
        if "state" in changes and changes["state"] not in STATES:
            raise ValueError(f"state must be one of {', '.join(STATES)}; got {changes['state']!r}.")
        not_finite: dict[str, str] = {}
        clean = _json_value(changes, (), not_finite)
        summary = self.read_summary()
        earlier = summary.pop("not_finite", {})
        if "state" in clean:
            summary.pop("reason", None)  # of the state before
        _merge(summary, clean)
        still_null = {name: was for name, was in earlier.items() if _is_null(summary, name)}
        if not_finite or still_null:
            summary["not_finite"] = {**still_null, **not_finite}
        for key in ("pid", "host", "heartbeat"):
            summary.pop(key, None)
        if summary.get("state") == "running":
            summary |= {"pid": os.getpid(), "host": socket.gethostname(), "heartbeat": time.time()}
        text = json.dumps(summary, indent=2, allow_nan=False)
        with atomic_writer(self.summary) as file:
            file.write(text.encode() + b"\n")

    @contextmanager
    def only_writer(self) -> Iterator[None]:
        """Keep other commands out of the folder during the block, or until this process ends.

        Raises:
            LockedError: If another one writes to it; names its process where that is known.
        """
        with sole_holder(
            self._lock,
            what=f"writing to {self.path}",
            remedy="Wait for it, end it, or choose another folder.",
        ):
            yield

    def writer(self) -> Holder | None:
        """The process that is inside ``only_writer``, on whatever machine; None where none is."""
        return holder_of(self._lock)

    @property
    def _lock(self) -> Path:
        return self.path / ".lock"


def read_summary(folder: Path) -> dict[str, Any]:
    """Return what ``summary.json`` of a run folder holds; empty where there is none.

    Raises:
        SmallFileError: If the file cannot be read, is no JSON object, or holds another kind of
            value under a name in ``SUMMARY_KINDS``.
    """
    path = folder / "summary.json"
    try:
        summary = read_json(path, dict)
    except FileNotFoundError:
        return {}
    for name, kinds in SUMMARY_KINDS.items():
        if name in summary and not isinstance(summary[name], kinds):
            found = type(summary[name]).__name__
            raise SmallFileError(f"{path} holds a {found} under {name!r}; expected {kinds}.")
    return summary


def find_checkpoint(path: str | Path) -> Path:
    """Return the checkpoint file meant by a ``.ckpt`` file or a run folder.

    Args:
        path: A file is returned as it is; of a run folder ``best.ckpt``, else ``last.ckpt``.

    Raises:
        ValueError: If nothing is there; says what was looked for.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.exists():
        raise ValueError(f"checkpoint={path} does not exist. Give a .ckpt file or a run folder.")
    candidates = [path / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    looked = " nor ".join(str(candidate) for candidate in candidates)
    raise ValueError(
        f"checkpoint={path} is a folder without a checkpoint: neither {looked} exists. Give a run "
        "folder whose training got as far as its first checkpoint, or a .ckpt file."
    )


def has_begun(path: Path) -> bool:
    """Return whether a folder holds rows or checkpoints of a run."""
    metrics = path / "metrics.csv"
    has_rows = metrics.is_file() and metrics.stat().st_size > 0
    return has_rows or any((path / "checkpoints").glob("*.ckpt"))


def _create(folder: Path, *, wanted: Path) -> None:
    """Make a folder, or say which part of the path is in the way."""
    advice = "Choose another output_dir."
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as err:
        blocking = next(p for p in (folder, *folder.parents) if p.exists() and not p.is_dir())
        raise ValueError(
            f"The run folder {wanted} cannot be created: {blocking} is a file, not a folder. "
            f"{advice}"
        ) from err
    except OSError as err:
        raise ValueError(
            f"The run folder {wanted} cannot be created: {err.strerror}. {advice}"
        ) from err
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"The run folder {wanted} is not writable: {folder}. {advice}")


def _json_value(value: Any, where: tuple[str, ...], not_finite: dict[str, str]) -> Any:
    """Turn scalars of other libraries into Python ones and non-finite numbers into None."""
    if isinstance(value, Mapping):
        return {
            str(key): _json_value(item, (*where, str(key)), not_finite)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_json_value(item, (*where, str(i)), not_finite) for i, item in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:  # NumPy and torch scalars
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        not_finite[" > ".join(where)] = str(value)
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"summary.json cannot hold {' > '.join(where)}: {type(value).__name__} is not a JSON value."
    )


def _merge(target: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Replace values in place, key by key where both sides are mappings."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value


def _is_null(summary: Any, name: str) -> bool:
    """Return whether the value at ``name`` ("metrics > val/rfid") is still null."""
    for part in name.split(" > "):
        if isinstance(summary, list):
            has_it = part.isdecimal() and int(part) < len(summary)
            summary = summary[int(part)] if has_it else False
        else:
            summary = summary.get(part, False) if isinstance(summary, dict) else False
    return summary is None
