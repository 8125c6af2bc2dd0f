"""Rank of this process, from the environment of torchrun, srun or a user.

Asked before torch is imported, and before the processes have met.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """One of the processes that were started together.

    Attributes:
        rank: Its number over all machines; 0 writes what all have found.
        num_processes: How many were started, over all machines; 1 for a process that is alone, or
            that is going to start the others itself.
        local_rank: Its number on its machine.
    """

    rank: int
    num_processes: int
    local_rank: int

    @property
    def is_first(self) -> bool:
        """True if this process writes what all have found."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """True if nobody else was started with it."""
        return self.num_processes == 1 and self.rank == 0


def launched() -> Launch:
    """Return what the environment says about this process.

    Raises:
        ValueError: Naming the variable that is no number.
    """
    if slurm_step() is not None:
        return Launch(_number("SLURM_PROCID"), _number("SLURM_NTASKS"), _number("SLURM_LOCALID"))
    local_rank = _number("LOCAL_RANK", 0)
    # Without RANK, only whether it is the first is right: how many a machine has is not known.
    rank = _number("RANK", _number("NODE_RANK", 0) + local_rank)
    return Launch(rank, _number("WORLD_SIZE", 1), local_rank)


def check_environment() -> None:
    """Refuse an environment that says only half of which process this is; asked once, at the start.

    Raises:
        ValueError: Naming the variables and their values.
    """
    here = launched()
    if slurm_step() is not None:
        return
    ranks = [name for name in ("RANK", "LOCAL_RANK") if name in os.environ]
    said = ", ".join(
        f"{name}={os.environ[name]}" for name in (*ranks, "WORLD_SIZE") if name in os.environ
    )
    missing = ""
    if "WORLD_SIZE" not in os.environ and any(_number(name) > 0 for name in ranks):
        missing = "WORLD_SIZE"
    elif here.num_processes != 1 and not ranks:
        missing = "RANK"
    if missing:
        raise ValueError(
            f"The environment says {said}, but not {missing}: unset it to run alone, or start the "
            "processes by torchrun or srun."
        )
    if "WORLD_SIZE" in os.environ and here.rank >= here.num_processes:
        raise ValueError(
            f"The environment says {said}: this would be process {here.rank} of "
            f"{here.num_processes}, which are counted from 0. Unset both to run alone."
        )


def _number(name: str, default: int | None = None) -> int:
    """Return the value of an environment variable; ``default`` where it is not set."""
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isascii() or not text.isdigit():
        raise ValueError(
            f"The environment says {name}={text}; expected a whole number. Unset it to run alone."
        )
    return int(text)


def slurm_step() -> str | None:
    """Job and step that srun started this process in, as ``123_0``; None elsewhere.

    A job that SLURM starts again keeps its number.
    """
    # torchrun may run in a job. A shell in an allocation (salloc) is no task of it, and has no
    # SLURM_PROCID; one that srun started is told by its name, as Lightning does.
    needed = ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    if by_torchrun() or any(name not in os.environ for name in needed):
        return None
    if os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    return f"{os.environ['SLURM_JOB_ID']}_{os.environ.get('SLURM_STEP_ID', '0')}"


def agreed(choose: Callable[[], str]) -> str:
    """Value that the first process chooses, on all that were started together.

    Args:
        choose: Called on the first process; under srun on all, where it must follow from
            ``slurm_step``.

    Raises:
        ValueError: If processes were started by hand, which have no way to agree yet.
    """
    here = launched()
    if here.is_alone or slurm_step() is not None:
        return choose()
    if not by_torchrun():
        raise ValueError(
            f"Process {here.rank} was started by hand as one of several, and each would choose a "
            "folder of its own: give output_dir=DIR, the same for all, or start them by torchrun."
        )
    from torch.distributed import TCPStore

    # torchrun's own, which the processes meet through later; another start is another key.
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    key = f"ldm_lightning/start_{os.environ['TORCHELASTIC_RESTART_COUNT']}"
    if here.is_first:
        store.compare_set(key, "", choose())  # asked twice, it keeps to its first answer
    return store.get(key).decode()


def by_torchrun() -> bool:
    """Return whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ
