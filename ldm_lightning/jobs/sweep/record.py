"""The files of a sweep's own folder: ``sweep.json``, and the lock of the process that runs it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ldm_lightning.jobs.sweep.jobs import Job
from ldm_lightning.storage.files import atomic_writer
from ldm_lightning.storage.locking import sole_holder
from ldm_lightning.storage.small_files import read_json


@contextmanager
def only_one(sweep_folder: Path) -> Iterator[None]:
    """Keep other sweeps out of a folder; the lock goes with the process, however it ends.

    Raises:
        LockedError: If another process runs the sweep.
    """
    sweep_folder.mkdir(parents=True, exist_ok=True)
    with sole_holder(
        sweep_folder / ".lock",
        what=f"running the sweep in {sweep_folder}",
        remedy="Wait for it, end it, or choose another sweep_name.",
    ):
        yield


def keep_record(sweep_folder: Path, jobs: Sequence[Job], *, module: str, threads: int) -> None:
    """Write into ``sweep.json`` what jobs run, on how many threads, and each folder's overrides.

    Raises:
        ValueError: If jobs there run another module or with another number of threads, or the file
            is damaged.
    """
    path = sweep_folder / "sweep.json"
    stored: dict[str, dict[str, list[str]]] = {}
    if os.path.lexists(path):
        try:
            record = read_json(path, dict)
            before, stored = int(record["threads"]), dict(record["jobs"])
            module_before = record["module"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error}); choose another sweep_name.") from error
        if module_before != module:
            raise ValueError(
                f"The jobs in {sweep_folder} run {module_before}, and this command asks for "
                f"{module}: the same overrides mean something else. Choose another sweep_name."
            )
        if before != threads:
            raise ValueError(
                f"The jobs in {sweep_folder} compute with {before} threads each, and this command "
                f"asks for {threads}: their figures would not compare. Give "
                f"hydra.launcher.threads={before}, or another sweep_name."
            )
    overrides = {job.name: list(job.overrides) for job in jobs}
    with atomic_writer(path) as file:
        record = {"module": module, "threads": threads, "jobs": {**stored, **overrides}}
        text = json.dumps(record, indent=2)
        file.write(text.encode() + b"\n")
