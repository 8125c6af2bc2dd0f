"""Resources of the jobs of a sweep: how many run at a time, threads and GPUs of each."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

NVIDIA_SMI_SECONDS = 60
"""How long the driver may take to list the GPUs; the first call on a sleeping machine is slow."""


@dataclass(frozen=True)
class Resources:
    """Resources of every job, from the settings ``hydra.launcher.*``.

    Attributes:
        n_jobs: Jobs that run at a time.
        threads: OMP_NUM_THREADS of each process of a job. Sums are rounded differently by another
            number of threads, so it is part of how a figure was made.
        gpus: What CUDA_VISIBLE_DEVICES may name; empty for none, None to leave it as it is.
        gpus_per_job: GPUs that a job sees: more than one for ``trainer=ddp``.

    Raises:
        ValueError: Naming the setting and what it must be.
    """

    n_jobs: int
    threads: int
    gpus: tuple[str, ...] | None = None
    gpus_per_job: int = 1

    def __post_init__(self) -> None:
        for name in ("n_jobs", "threads", "gpus_per_job"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"hydra.launcher.{name} must be a positive whole number, got {value!r}."
                )
        gpus = self.gpus or ()
        if self.gpus_per_job > max(1, len(gpus)):  # without GPUs, one stands for none
            raise ValueError(
                f"hydra.launcher.gpus_per_job={self.gpus_per_job}, but there are {len(gpus)} "
                f"GPUs{' (' + ', '.join(gpus) + ')' if gpus else ''}."
            )

    def __str__(self) -> str:
        """Such as ``2 jobs at a time, 4 threads each, on GPUs 0, 1 in turn``."""
        said = f"{self.n_jobs} job{'s' * (self.n_jobs > 1)} at a time, "
        said += f"{self.threads} thread{'s' * (self.threads > 1)} each"
        if self.gpus is None:
            return said
        return f"{said}, on GPUs {', '.join(self.gpus)} in turn" if self.gpus else f"{said}, no GPU"

    def environment(self, place: int) -> dict[str, str]:
        """The environment variables of the job at a place, 0 to ``n_jobs`` - 1.

        Places take the GPUs in turn, so that jobs share one only where there are fewer GPUs than
        jobs need.
        """
        variables = {"OMP_NUM_THREADS": str(self.threads)}
        if self.gpus is None:
            return variables
        first, number = place * self.gpus_per_job, len(self.gpus)
        mine = [self.gpus[(first + i) % number] for i in range(self.gpus_per_job) if number]
        return {**variables, "CUDA_VISIBLE_DEVICES": ",".join(mine)}


def chosen_gpus(gpus: object) -> tuple[str, ...] | None:
    """The GPUs that ``hydra.launcher.gpus`` means: ``auto``, or a list; None where none is known.

    Raises:
        ValueError: If it is neither.
    """
    if gpus == "auto":
        return visible_gpus() or None
    if isinstance(gpus, str) or not isinstance(gpus, Sequence):
        raise ValueError(f"hydra.launcher.gpus must be auto or a list such as [0,1], got {gpus!r}.")
    return tuple(map(str, gpus))


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; without torch.

    Raises:
        ValueError: If the driver's tool is there and fails.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(name.strip() for name in named.split(",") if name.strip() not in ("", "-1"))
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    try:
        listed = subprocess.run(
            [tool, "--list-gpus"],
            capture_output=True,
            text=True,
            timeout=NVIDIA_SMI_SECONDS,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ValueError(
            f"{tool} cannot list the GPUs ({error}); name them: hydra.launcher.gpus=[0,1], or [] "
            "for none."
        ) from error
    number = sum(line.startswith("GPU ") for line in listed.splitlines())
    return tuple(map(str, range(number)))
