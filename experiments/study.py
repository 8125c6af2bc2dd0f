"""Code of all studies: commands that go on where they stopped, results.csv, README tables.

A study is a folder with a module ``study`` that says which commands to run, which figures of their
summaries it keeps, and what it draws of them:

    python -m experiments.NAME.study --data FOLDER   # run what is missing, then write all there is
    python -m experiments.NAME.study                 # table and figures from results.csv alone

Trainings are sweeps, so a study that is started again runs what is missing.
"""

import argparse
import csv
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

Row = dict[str, str]
"""One line of results.csv, as text."""


def given_paths(description: str, **meanings: str) -> dict[str, Path]:
    """Read the paths of a study's command line: all of them, or none.

    Args:
        description: What ``--help`` says.
        meanings: What each path is, by name.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, meaning in meanings.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, help=meaning)
    given = {name: path for name, path in vars(parser.parse_args()).items() if path is not None}
    if given and given.keys() != meanings.keys():
        missing = ", ".join(
            f"--{name.replace('_', '-')}" for name in meanings.keys() - given.keys()
        )
        parser.error(f"the paths belong together; give {missing} too")
    for name, path in given.items():
        if not path.exists():
            parser.error(f"--{name.replace('_', '-')}: {path} does not exist")
    return {name: path.absolute() for name, path in given.items()}


def run(module: str, words: Sequence[str]) -> None:
    """Print and run ``python -m ldm_lightning.<module>``; stop the study where it fails."""
    print(f"\n$ {shlex.join(['python', '-m', f'ldm_lightning.{module}', *words])}", flush=True)
    ended = subprocess.run([sys.executable, "-m", f"ldm_lightning.{module}", *words], check=False)
    if ended.returncode:
        sys.exit(f"{module} ended with code {ended.returncode}; the study goes on from here.")


def run_once(module: str, words: Sequence[str], *, makes: Path) -> None:
    """The same for a command that does not go on by itself, unless it has done its work.

    Args:
        module: As for ``run``.
        words: As for ``run``.
        makes: The JSON file it writes; where that has a state, it must be ``finished``.
    """
    if makes.is_file():
        written = json.loads(makes.read_text(encoding="utf-8"))
        if written.get("state", "finished") == "finished":
            return
    run(module, words)


def summary(run_folder: Path) -> dict[str, Any]:
    """``summary.json`` of a run that has come to its end, with its ``minutes`` where it has any.

    Raises:
        ValueError: If the run has not.
    """
    found = json.loads((run_folder / "summary.json").read_text(encoding="utf-8"))
    if found["state"] not in ("finished", "early_stopped", "validated"):
        raise ValueError(f"{run_folder} is {found['state']}; a study is made of finished runs.")
    if "timing" in found:
        found["minutes"] = found["timing"]["total_s"] / 60
    return found


def run_folders(sweep_folder: Path) -> list[Path]:
    """The runs of a sweep that have begun, by their numbers; ``summary`` tells which are done."""
    folders = [path for path in sweep_folder.glob("*_*") if (path / "summary.json").is_file()]
    return sorted(folders, key=lambda path: int(path.name.partition("_")[0]))


def picked(facts: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    """Values of nested dicts by columns.

    Args:
        facts: Such as a summary.
        columns: Path of keys by column, such as ``config > loss > kl_weight``; a value that is not
            there leaves its column empty.
    """
    row = {}
    for column, path in columns.items():
        value: Any = facts
        for key in path.split(" > "):
            value = value.get(key) if isinstance(value, Mapping) else None
        row[column] = as_text(value)
    return row


def as_text(value: object) -> str:
    """A cell of results.csv: numbers with four significant digits."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


ORIGIN = {
    "updates": "step",
    "threads": "num_threads",
    "seed": "config > seed",
    "minutes": "minutes",
    "device": "device",
    "commit": "commit",
}
"""Columns that every study has: what a row was computed with."""


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write results.csv."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} rows -> {path}")


def read_rows(path: Path) -> list[Row]:
    """Read results.csv."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# Tables


def spread(rows: Iterable[Row], column: str, *, digits: int) -> str:
    """Mean of a column, and half the distance of its extremes where several seeds were run."""
    values = [float(row[column]) for row in rows if row[column]]
    if not values:
        return "-"
    text = f"{mean(values):.{digits}f}"
    if len(values) == 1:
        return text
    return f"{text} ± {(max(values) - min(values)) / 2:.{digits}f}"


def markdown_table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))


def fill(readme: str, name: str, text: str) -> str:
    """Replace what stands between ``<!-- name -->`` and ``<!-- end of name -->``.

    Raises:
        ValueError: If the two marks are not there.
    """
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    if not pattern.search(readme):
        raise ValueError(f"The README has no place for {name!r}.")
    return pattern.sub(lambda marks: f"{marks[1]}{text}\n{marks[2]}", readme)
