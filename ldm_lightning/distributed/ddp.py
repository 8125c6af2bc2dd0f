"""DDP whose processes may take long to meet, but not to answer."""

from datetime import timedelta

import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed import distributed_c10d

MEETING = timedelta(days=7)
"""How long processes wait for each other at the start, where one may list images or measure a
first stage for hours. One that fails then is noticed by whoever started it."""


class TwoTimeoutDDP(DDPStrategy):
    """Ends a run in which a process hangs.

    Args:
        find_unused_parameters: Whether a backward pass may leave parameters out.
        answer_seconds: How long a process waits in a collective operation for another.

    Raises:
        ValueError: If ``answer_seconds`` is not positive.
    """

    def __init__(self, *, find_unused_parameters: bool, answer_seconds: float) -> None:
        if not answer_seconds > 0:
            raise ValueError(f"trainer.timeout_seconds must be positive, got {answer_seconds}.")
        super().__init__(find_unused_parameters=find_unused_parameters, timeout=MEETING)
        self._answer_time = timedelta(seconds=answer_seconds)

    def setup_distributed(self) -> None:
        """Set a short timeout of collectives after the rendezvous."""
        super().setup_distributed()
        dist.barrier()  # all have come
        # torch 2.14 made it public under another name.
        set_timeout = getattr(dist, "set_timeout", None) or distributed_c10d._set_pg_timeout
        set_timeout(self._answer_time, dist.group.WORLD)
