"""Which of several processes this one is, as torchrun, srun or a user says in the environment.

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
        """Whether this process writes what all have found."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether nobody else was started with it."""
        return self.num_processes == 1 and self.rank == 0


def launched() -> Launch:
    """What the environment says about this process."""
    if slurm_step() is not None:
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
        rank, num_processes, local_rank = (int(os.environ[name]) for name in names)
        return Launch(rank, num_processes, local_rank)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    # Without RANK, only whether it is the first is right: how many a machine has is not known.
    rank = int(os.environ.get("RANK", int(os.environ.get("NODE_RANK", "0")) + local_rank))
    return Launch(rank, int(os.environ.get("WORLD_SIZE", "1")), local_rank)


def slurm_step() -> str | None:
    """Job and step that srun started this process in, as ``123_0``; None elsewhere.

    A job that SLURM starts again keeps its number.
    """
    # Lightning's own conditions: torchrun may run in a job, and a shell in one is no task of it.
    if _by_torchrun() or "SLURM_NTASKS" not in os.environ:
        return None
    if os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    return f"{os.environ['SLURM_JOB_ID']}_{os.environ.get('SLURM_STEP_ID', '0')}"


def agreed(choose: Callable[[], str]) -> str:
    """What the first process chooses, on all that were started together.

    Args:
        choose: Called on the first process; under srun on all, where it must follow from
            ``slurm_step``.

    Raises:
        ValueError: If processes were started by hand, which have no way to agree yet.
    """
    here = launched()
    if here.is_alone or slurm_step() is not None:
        return choose()
    if not _by_torchrun():
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


def _by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ
