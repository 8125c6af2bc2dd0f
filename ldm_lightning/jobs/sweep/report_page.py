"""The page of a sweep, written by a process of its own: drawing needs what a sweep does not."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

from ldm_lightning.runs.overrides import path_word

logger = logging.getLogger(__name__)

PAGE = "report.html"


def write_page(sweep_folder: Path, *, anew: bool) -> None:
    """Compare the jobs on ``report.html`` in their folder, and say where it is.

    A page that cannot be written is a warning: the jobs are what they are.

    Args:
        sweep_folder: Holds the jobs' folders.
        anew: Write it although there is one already.
    """
    page = sweep_folder / PAGE
    if anew or not page.is_file():
        words = [path_word("runs", sweep_folder), path_word("output", page)]
        command = [sys.executable, "-m", "ldm_lightning.report", *words]
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        if ended.returncode:
            said = ended.stdout.strip().splitlines() or [f"code {ended.returncode}"]
            logger.warning("The page of %s could not be written: %s", sweep_folder, said[-1])
            return
    logger.info("Page: %s", page)
