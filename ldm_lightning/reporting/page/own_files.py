"""Record of files an earlier report wrote: a report replaces and removes no others."""

import json
import os
from collections.abc import Collection
from pathlib import Path

from ldm_lightning.storage.files import atomic_writer, open_regular
from ldm_lightning.storage.small_files import read_json

MARK = b'<meta name="generator" content="ldm_lightning report">'
"""Stands at the beginning of every page."""

LIST = ".written.json"
"""Names of the figures that lie beside it and were written by a report."""


def check_page(path: Path) -> None:
    """Refuse to replace a file that is no page of a report.

    Raises:
        ValueError: If there is one.
        OSError: If it cannot be read.
    """
    if not os.path.lexists(path):
        return
    with open_regular(path) as file:
        is_page = MARK in file.read(4096)
    if not is_page:
        raise ValueError(
            f"output={path} is no page of a report, and a report would replace it; give output= "
            "another name."
        )


def replace_figures(folder: Path, names: Collection[str]) -> None:
    """Remove the figures of an earlier report that are not among ``names``; note the new ones.

    Raises:
        ValueError: If a file of one of these names is not of a report.
    """
    try:
        written = set(read_json(folder / LIST, list))
    except FileNotFoundError:
        written = set()
    for name in sorted(names):
        if name not in written and os.path.lexists(folder / name):
            raise ValueError(
                f"{folder / name} is not of a report, and a report would replace it; give output= "
                "in another folder."
            )
    for name in written - set(names):
        if isinstance(name, str) and Path(name).name == name:
            (folder / name).unlink(missing_ok=True)
    if names or written:
        folder.mkdir(exist_ok=True)
        with atomic_writer(folder / LIST) as file:
            file.write(json.dumps(sorted(names)).encode() + b"\n")
