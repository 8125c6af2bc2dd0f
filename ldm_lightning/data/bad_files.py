"""Remembers unreadable files over all processes, and stops the run past a share of them."""

import logging
import os
from pathlib import Path

from ldm_lightning.utils.terminal import one_line

logger = logging.getLogger(__name__)


class BadFileLog:
    """Unreadable files of one split.

    Worker processes share nothing with the main process but the file system, so each newly met file
    is appended to a text file as one line: split, name and reason, separated by tabs. One short
    write in append mode is not torn by another process.

    Args:
        split: Which split the files belong to.
        num_files: Files of the split, readable or not.
        max_bad_fraction: Largest share of them that may be unreadable.

    Raises:
        ValueError: If ``max_bad_fraction`` is not in [0, 1].
    """

    def __init__(self, *, split: str, num_files: int, max_bad_fraction: float) -> None:
        if not 0 <= max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction must be in [0, 1], got {max_bad_fraction}.")
        self.split = split
        self.num_files = num_files
        self.max_bad_fraction = max_bad_fraction
        self._path: Path | None = None
        self._start = 0
        self._known: dict[str, str] = {}

    def write_to(self, path: Path) -> None:
        """Append to this file from now on; what an earlier run left in it is kept, not counted."""
        self._path = path
        self._start = path.stat().st_size if path.exists() else 0

    def add(self, name: str, reason: str) -> None:
        """Remember an unreadable file.

        Raises:
            ValueError: If more than ``max_bad_fraction`` of the split is unreadable by now.
        """
        name = one_line(name)  # a tab or a new line would break the file's lines
        if name not in self._known:
            self._known[name] = reason = " ".join(reason.split())
            logger.warning("Left out an unreadable file of the %s split: %s", self.split, reason)
            if self._path is not None:
                self._append(f"{self.split}\t{name}\t{reason}\n")
        entries = self.entries()
        if len(entries) > self.max_bad_fraction * self.num_files:
            raise ValueError(
                f"{len(entries)} of the {self.num_files} files of the {self.split} split cannot be "
                f"read, more than data.max_bad_fraction={self.max_bad_fraction:g} allows. First: "
                f"{next(iter(entries.values()))}. Remove or repair these files, or raise "
                "data.max_bad_fraction."
            )

    def entries(self) -> dict[str, str]:
        """Return reason by file name, over all processes that write to the same file."""
        merged = dict(self._known)
        if self._path is not None and self._path.exists():
            with self._path.open(encoding="utf-8") as lines:
                lines.seek(self._start)
                for line in lines:
                    split, name, reason = line.rstrip("\n").split("\t", 2)
                    if split == self.split:
                        merged.setdefault(name, reason)
        return dict(sorted(merged.items()))

    def _append(self, line: str) -> None:
        assert self._path is not None
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode("utf-8", errors="replace"))
        finally:
            os.close(descriptor)
