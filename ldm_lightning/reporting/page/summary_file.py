"""Reader of a run's ``summary.json`` that trusts nothing in it.

Nothing in it is taken for granted: a killed run leaves half a file, a failed one no file, and
another program's file may hold numbers that no float holds.
"""

import json
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ldm_lightning.runs.run_folder import STATES
from ldm_lightning.storage.process_ids import pid_exists
from ldm_lightning.storage.small_files import SmallFileError, read_json

NO_SUMMARY, UNREADABLE, KILLED, SILENT = "no summary", "unreadable", "killed", "silent"
"""States that a folder cannot say of itself."""

SILENT_AFTER_SECONDS = 900.0
"""A running run shows a sign of life every ten seconds, but not during a long validation."""

MAX_NUMBER = 1e100
"""Nothing that is measured is larger; sums of larger numbers overflow."""

MAX_REASON_LETTERS = 2000

Setting = str | int | float | bool | None


def read_summary(path: Path) -> tuple[dict[str, Any], str, str]:
    """Return the content, the state, and why the run ended there.

    A missing or broken file gives no content and a state of this module.
    """
    try:
        summary = read_json(path, dict)
    except FileNotFoundError:
        return {}, NO_SUMMARY, "summary.json is missing: the run ended, or is, before its start"
    except SmallFileError as error:
        return {}, UNREADABLE, str(error)[:MAX_REASON_LETTERS]
    state = summary.get("state")
    if state not in STATES:
        return summary, UNREADABLE, f"summary.json gives no known state but {state!r}"
    return summary, state, str(summary.get("reason") or "")[:MAX_REASON_LETTERS]


def sign_of_life(summary: Mapping[str, Any], written: float) -> tuple[str, str]:
    """Tell a run that works from one that was killed: its state, and why it is that."""
    pid, host = summary.get("pid"), summary.get("host")
    heartbeat = number(summary.get("heartbeat"))
    last = written if heartbeat is None else heartbeat
    is_here = host == socket.gethostname()
    if is_here and isinstance(pid, int) and not pid_exists(pid, seen=last):
        return KILLED, f"process {pid} exited without an error message"
    if time.time() - last > SILENT_AFTER_SECONDS:
        return SILENT, f"no sign of life from process {pid} on {host} for a quarter of an hour"
    return "running", ""


def metrics_of(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """Values by full name; None for one that is not finite, or as good as that."""
    return {
        str(name): number(value)
        for name, value in mapping(summary.get("metrics")).items()
        if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
    }


def seconds_of(summary: Mapping[str, Any]) -> float | None:
    """Time spent over all interruptions, or on all steps of a chain; None where unknown."""
    steps = mapping(summary.get("steps")).values()
    parts = [number(mapping(step).get("seconds")) for step in steps]
    if not parts:
        parts = [number(mapping(summary.get("timing")).get("total_s"))]
    known = [part for part in parts if part is not None]
    return sum(known) if known else None


def settings_of(config: Mapping[str, Any]) -> dict[str, Setting]:
    """Leaves of a nested configuration by dotted key; lists as JSON."""
    return dict(_leaves(config, ""))


def number(value: Any) -> float | None:
    """The value as a float of at most ``MAX_NUMBER``, or None; true and false are no numbers."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        as_float = float(value)
    except OverflowError:  # JSON has whole numbers of any length
        return None
    return as_float if abs(as_float) <= MAX_NUMBER else None


def whole_number(value: Any) -> int | None:
    """The value if it is a whole number, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is a mapping, else nothing."""
    return value if isinstance(value, dict) else {}


def _leaves(value: Any, where: str) -> Iterable[tuple[str, Setting]]:
    if isinstance(value, dict):  # of bounded depth, as it was read
        for key, item in value.items():
            yield from _leaves(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, (dict, list)):
        yield where, json.dumps(value)
    else:
        yield where, value
