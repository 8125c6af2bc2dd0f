"""Several processes of one test, forked from one that has imported what all need.

Importing costs each process seconds, so it is done once for all tests.
"""

import multiprocessing
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

IMPORTED = ("ldm_lightning.train", "ldm_lightning.builders.second_stage", "tests.cli.run")


def run_processes(work: Callable[..., None], *arguments: Any, number: int) -> None:
    """Run ``work(rank, *arguments)`` in each of a number of processes.

    Raises:
        torch.multiprocessing.ProcessRaisedException: With the first error of one of them.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(IMPORTED))
    mp.start_processes(work, args=arguments, nprocs=number, start_method="forkserver")


def join_gloo(rank: int, folder: str | Path, number: int) -> None:
    """Let this process meet the others; one thread each."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=number,
        timeout=timedelta(seconds=60),
    )
