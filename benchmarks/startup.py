"""Processor time of commands that only tell something."""

import resource
import subprocess
import sys

from benchmarks.results import Row
from benchmarks.timing import Spread

PART = "startup"


def rows(*, quick: bool) -> list[Row]:
    """Help, a printed configuration, and importing what training needs."""
    train = [sys.executable, "-m", "ldm_lightning.train"]
    commands = {
        "train --help": ([*train, "--help"], 1.0),
        "train --cfg job": ([*train, "--cfg", "job"], None),
        "import torch": ([sys.executable, "-c", "import torch"], None),
    }
    num_rounds = 2 if quick else 5
    return [
        Row(
            part=PART,
            what=f"processor time of {name}",
            setting="one process",
            value=Spread.of([processor_time(command) for _ in range(num_rounds)]),
            num_rounds=num_rounds,
            goal=goal,
            seconds={},
            facts={},
            unit="s",
        )
        for name, (command, goal) in commands.items()
    ]


def processor_time(command: list[str]) -> float:
    """Seconds of user and system time that a command takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
