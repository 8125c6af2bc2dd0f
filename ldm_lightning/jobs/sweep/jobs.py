"""The jobs of a sweep and their folders.

A job is what its overrides say. The name of its folder ends in their hash, so that a sweep that is
started again finds what is done, in whatever order the overrides come and whatever was added.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm_lightning.runs.overrides import key_of
from ldm_lightning.runs.run_folder import has_begun

COMMON = ("sweep_name", "page")
"""Keys that are the same for all jobs of a folder and change no figure: no part of the hash."""

CHAIN = "chain.json"
"""What a chain of commands leaves first in its folder, see ldm_lightning.pipeline."""


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        overrides: Its part of the command line.
        folder: Its run folder, ``<number>_<hash of the overrides>``; may not exist yet.
    """

    overrides: tuple[str, ...]
    folder: Path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def has_begun(self) -> bool:
        """True if only ``resume`` goes on with what is there; else its overrides begin it."""
        return has_begun(self.folder) or (self.folder / CHAIN).is_file()


def hash_of(overrides: Iterable[str]) -> str:
    """Eight hexadecimal digits that depend on what the overrides say, not on their order.

    Of two values for one key the last counts, as it does for Hydra.
    """
    counted = [override for override in overrides if key_of(override) not in COMMON]
    values = {key_of(override): override for override in counted if override[:1] not in "+~"}
    counted = [
        override for override in counted if override in values.values() or override[:1] in "+~"
    ]
    return hashlib.sha256("\n".join(sorted(set(counted))).encode()).hexdigest()[:8]


def jobs_of(sweep_folder: Path, overrides_of_jobs: Iterable[Sequence[str]]) -> list[Job]:
    """The jobs with their folders: the one a job had before, else one with the next number.

    Jobs with the same overrides are one job, and share its folder.
    """
    found = {
        match[2]: (int(match[1]), path)
        for path in sweep_folder.glob("*_*")
        if (match := re.fullmatch(r"(\d+)_([0-9a-f]{8})", path.name))
    }
    number = max((number for number, _ in found.values()), default=-1)
    folders = {key: path for key, (_, path) in found.items()}
    jobs = []
    for overrides in overrides_of_jobs:
        key = hash_of(overrides)
        if key not in folders:
            number += 1
            folders[key] = sweep_folder / f"{number}_{key}"
        jobs.append(Job(tuple(overrides), folders[key]))
    return jobs


def differing_overrides(jobs: Sequence[Job]) -> dict[Path, str]:
    """The overrides of each job that not all jobs have, by folder; all overrides of a job alone."""
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    return {
        job.folder: " ".join(
            override
            for override in job.overrides
            if override not in common and key_of(override) not in COMMON
        )
        for job in jobs
    }
