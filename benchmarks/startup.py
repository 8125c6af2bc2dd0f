"""Processor time of commands that only tell something, and how long a run needs to begin."""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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
    first_update = Row(
        part=PART,
        what="time to the first update",
        setting="kl_f4 on shapes, scale=cpu",
        value=Spread.of([seconds_to_first_update() for _ in range(num_rounds)]),
        num_rounds=num_rounds,
        goal=None,
        seconds={},
        facts={},
        unit="s",
    )
    return [
        first_update,
        *(
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
        ),
    ]


def processor_time(command: list[str]) -> float:
    """Seconds of user and system time that a command takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def seconds_to_first_update() -> float:
    """From the command to the first logged update."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["experiment=kl_f4", f"output_dir={folder}/run", "log_every_steps=1"]
        log = Path(folder) / "run" / "metrics.csv"
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "ldm_lightning.train", *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while not log.is_file():
                if process.poll() is not None:
                    raise RuntimeError("The run ended before its first update.")
                time.sleep(0.01)
            return time.perf_counter() - start
        finally:
            process.kill()
            process.wait()
