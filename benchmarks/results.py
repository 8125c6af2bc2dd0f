"""Measured figures beside their goals."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.timing import Spread
from ldm_lightning.storage.files import atomic_writer
from ldm_lightning.utils.provenance import git_commit, package_versions


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        part: Which part of the benchmarks measured it.
        what: What of ours is compared with what.
        setting: Shapes and sizes.
        value: Ours over the other, or a figure of ours in ``unit``; less is better.
        num_rounds: Rounds the spread is over.
        goal: Largest median that is good enough; None only reports.
        seconds: Median seconds, by way.
        facts: What was checked or measured besides.
        unit: ``ratio``, or what the value is counted in.
    """

    part: str
    what: str
    setting: str
    value: Spread
    num_rounds: int
    goal: float | None
    seconds: dict[str, float]
    facts: dict[str, Any]
    unit: str = "ratio"

    @property
    def verdict(self) -> str:
        """True if the goal was reached; empty without one."""
        if self.goal is None:
            return ""
        return "met" if self.value.median <= self.goal else "MISSED"


def print_rows(rows: Sequence[Row]) -> None:
    """A table, and the goals that were missed by name."""
    console = Console()
    console.width = max(console.width, 130)  # a pipe is taken for 80 columns
    table = Table(title="ours / other, paired by round, or a figure of ours; less is better")
    for name in ("what", "setting", "median", "from", "to", "rounds", "goal", ""):
        table.add_column(name, justify="left" if name in ("what", "setting", "") else "right")
    for row in rows:
        spread, goal = row.value, "" if row.goal is None else f"{row.goal:.2f}"
        cells = (f"{value:.3f}" for value in (spread.median, spread.low, spread.high))
        what = row.what if row.unit == "ratio" else f"{row.what} [{row.unit}]"
        table.add_row(escape(what), row.setting, *cells, str(row.num_rounds), goal, row.verdict)
    console.print(table)
    for row in rows:
        if row.verdict == "MISSED":
            console.print(
                f"Missed: {row.what}, {row.setting}: {row.value.median:.3f}, goal {row.goal:.2f}"
            )


def processor() -> str:
    """Name of the processor, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "cpu"


def machine() -> dict[str, Any]:
    """Conditions that the figures depend on."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        "num_threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "versions": package_versions(),
        "commit": git_commit(),
    }


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Everything, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {**machine(), "rows": [{**asdict(row), "verdict": row.verdict} for row in rows]}
    with atomic_writer(path) as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")
