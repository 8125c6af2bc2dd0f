"""Time of an update by what OpenMP's threads do while they wait, on quiet cores and on busy ones.

    python -m benchmarks.busy_cores --threads 2 --burners 0    # quiet cores
    python -m benchmarks.busy_cores --threads 2 --burners 1    # beside a process of one thread

Every way is a process of its own, because OpenMP reads its settings once. All ways update in turn,
so that other work on the machine slows them alike. Each runs the first update twice uncounted.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from benchmarks.results import Row, print_rows
from benchmarks.timing import Timings

PART = "busy_cores"
SPINNING = "spinning, 3 ms"
POLICIES: Mapping[str, Mapping[str, str]] = {
    SPINNING: {"GOMP_SPINCOUNT": "300000"},  # what libgomp does unless told otherwise
    "spinning, 0.1 ms": {"GOMP_SPINCOUNT": "10000"},
    "spinning, 0.01 ms": {"GOMP_SPINCOUNT": "1000"},
    "sleeping": {"OMP_WAIT_POLICY": "PASSIVE"},
}
"""Environment of each way."""

EXPERIMENT = "kl_f8"


def rows(*, quick: bool) -> list[Row]:
    """Quiet cores and busy ones."""
    num_rounds = 3 if quick else 10
    threads = min(4, os.cpu_count() or 1)
    return [
        row
        for num_burners in (0, 1)
        for row in compare(threads=threads, num_burners=num_burners, num_rounds=num_rounds)
    ]


def compare(
    *, threads: int, num_burners: int, num_rounds: int, ways: Sequence[str] = tuple(POLICIES)
) -> list[Row]:
    """Every way beside the first one.

    Args:
        threads: Of OpenMP, in each way.
        num_burners: Processes of one thread that compute all the time.
        num_rounds: Updates of each way that count.
        ways: Names in ``POLICIES``; the first is the one to compare with.
    """
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    with ExitStack() as stack:
        workers = {way: stack.enter_context(worker(POLICIES[way], threads)) for way in ways}
        for process in workers.values():
            update(process)  # the first update allocates
        for _ in range(num_burners):
            stack.enter_context(burner())
        for process in workers.values():
            update(process)
        for _ in range(num_rounds):
            for way, process in workers.items():
                seconds[way].append(update(process))
    timings, first = Timings(seconds), ways[0]
    return [
        Row(
            part=PART,
            what=f"first-stage update, threads {way} / {first}",
            setting=f"{EXPERIMENT} at scale=cpu, {threads} threads, {num_burners} other processes",
            value=timings.ratio(way, first),
            num_rounds=num_rounds,
            goal=None,
            seconds={name: timings.spread(name).median for name in (way, first)},
            facts={"fastest_seconds": {name: timings.spread(name).low for name in (way, first)}},
        )
        for way in ways[1:]
    ]


@contextmanager
def worker(policy: Mapping[str, str], threads: int) -> Iterator["subprocess.Popen[str]"]:
    """A process that updates when it is asked to."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.busy_cores", "--update"],
        env={**kept, **policy, "OMP_NUM_THREADS": str(threads)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()  # closes its pipes


def update(process: "subprocess.Popen[str]") -> float:
    """Seconds that a worker's next update takes.

    Raises:
        RuntimeError: If it has ended.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("update\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError(f"The worker ended with code {process.wait()}.")
    return float(answer)


@contextmanager
def burner() -> Iterator[None]:
    """A process that multiplies matrices in one thread until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.busy_cores", "--burn"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()  # it has begun
    try:
        yield
    finally:
        process.kill()
        process.communicate()  # closes its pipes


def answer_updates() -> None:
    """Update once for each line that comes in, and print the seconds it took."""
    import torch

    from benchmarks.experiment import composed
    from ldm_lightning.builders.first_stage import build_first_stage_module
    from ldm_lightning.utils.memory import keep_freed_memory
    from ldm_lightning.utils.random import RowDraws

    keep_freed_memory()
    cfg = composed(f"experiment={EXPERIMENT}", "scale=cpu", "resolution=64")
    torch.manual_seed(0)
    module = build_first_stage_module(cfg, protocol={"num_images": 1}, num_devices=1)
    generator, discriminator = module.configure_optimizers()
    images = torch.rand(cfg.data.batch_size, 3, 64, 64) * 2 - 1
    draws = RowDraws(0, 0, range(len(images)))
    for _ in sys.stdin:
        start = time.perf_counter()
        generated = module.generator_loss(images, draws, step=cfg.max_steps)
        generated.loss.backward()
        generator.step()
        generator.zero_grad()
        module.discriminator_loss(images, generated.reconstructions).loss.backward()
        discriminator.step()
        discriminator.zero_grad()
        print(time.perf_counter() - start, flush=True)


def burn() -> None:
    """Multiply matrices for ever."""
    import torch

    matrix = torch.randn(512, 512)
    print("burning", flush=True)
    while True:
        torch.mm(matrix, matrix)


def main() -> None:
    """Compare, or be one of the processes that are compared."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.busy_cores")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--burners", type=int, default=1, help="other processes, a thread each")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--update", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--burn", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.update:
        answer_updates()
    elif arguments.burn:
        burn()
    else:
        measured = compare(
            threads=arguments.threads,
            num_burners=arguments.burners,
            num_rounds=arguments.rounds,
        )
        for row in measured:
            print(row.what, {name: f"{value:.2f} s" for name, value in row.seconds.items()})
        print_rows(measured)


if __name__ == "__main__":
    main()
