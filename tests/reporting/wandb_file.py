"""What a run wrote for W&B, read back by W&B's own reader."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class WandbFile:
    run: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    history: dict[int, dict[str, Any]] = field(default_factory=dict)  # by W&B's own step
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)  # what was defined, by name
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None

    def series(self, name: str) -> dict[int, Any]:
        return {step: row[name] for step, row in self.history.items() if name in row}


def cli(*arguments: str | Path, folder: Path) -> str:
    """What ``wandb`` prints; its own log goes where the test's files are."""
    ended = subprocess.run(
        [Path(sys.executable).with_name("wandb"), *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=True,
    )
    return ended.stdout


def read_wandb(run_folder: Path) -> WandbFile:
    """The newest W&B run in a run folder."""
    found = WandbFile()
    newest = run_folder / "wandb" / "latest-run"
    for line in cli("leet", "inspect", "--json", newest, folder=run_folder.parent).splitlines():
        record = json.loads(line)
        content = record.get(record["type"], {})
        match record["type"]:
            case "run":
                found.run = content
            case "config":
                found.config |= content["update"]
            case "history":
                row = content["item"]
                assert row["_step"] not in found.history, "one row an update"
                found.history[row["_step"]] = row
            case "metric":
                found.metrics[content["name"]] = content
            case "summary":
                found.summary |= content["update"]
            case "exit":
                found.exit_code = content.get("exit_code", 0)
    return found
