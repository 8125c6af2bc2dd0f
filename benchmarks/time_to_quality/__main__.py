r"""Train our first stages beside the original recipe, and tell the times to equal quality.

    python -m benchmarks.time_to_quality search --case kl_f8 --minutes 5 data=image_folder \
        data.root=TRAIN data.val_root=VAL       # the original's learning rate, one of four
    python -m benchmarks.time_to_quality race --case kl_f8 --seed 0 data=...   # three arms in turns
    python -m benchmarks.time_to_quality train --case kl_f8 --seed 0 --arm ours data=...   # or one
    python -m benchmarks.time_to_quality report     # table, ratios.csv and curves.png

All append to one table, which the report reads. A long pair: race --minutes 60. Words after the
options are Hydra's: the images, and changes to our experiment; the original takes the images alone.
"""

import argparse
import csv
import logging
import os
import subprocess
import sys
import warnings
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from benchmarks.ours import OURS
from benchmarks.time_to_quality.cases import CASES, MINUTES, Setting
from benchmarks.time_to_quality.clock import TURN_OVER, TrainingClock
from benchmarks.time_to_quality.measuring import read
from benchmarks.time_to_quality.summary import best_rate, draw_curves, print_ratios, ratios
from benchmarks.time_to_quality.training import ARMS, PRECISIONS, RATES, SEARCH, train

OUTPUT = Path("outputs/benchmarks/time_to_quality/points.csv")


def main() -> None:
    """Search, race, train or report."""
    arguments = _parser().parse_args()
    if arguments.command == "report":
        report(arguments.output, clock=arguments.clock)
    elif arguments.command == "train":
        train_one(arguments)
    else:
        entrants: list[tuple[str, float | None]] = [(SEARCH, rate) for rate in RATES]
        if arguments.command == "race":
            entrants = [(arm, arguments.rate) for arm in arguments.arm or ARMS]
        race(arguments, entrants)


def train_one(arguments: argparse.Namespace) -> None:
    """Train one arm in this process."""
    import torch

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.pytorch")
    torch.set_num_threads(arguments.threads)
    setting = Setting(
        case=arguments.case,
        seed=arguments.seed,
        minutes=arguments.minutes,
        precision=arguments.precision,
        num_images=arguments.num_images,
        words=tuple(arguments.words),
    )
    rate = arguments.rate
    if rate is None and arguments.arm != OURS and arguments.output.is_file():
        rate = best_rate(read(arguments.output), setting.case)
    clock = TrainingClock(60 * setting.minutes, turn_seconds=arguments.turn_seconds)
    train(setting, arguments.arm, rate=rate, clock=clock, output=arguments.output)


def race(arguments: argparse.Namespace, entrants: list[tuple[str, float | None]]) -> None:
    """Let arms train in turns, each in a process of its own.

    Raises:
        SystemExit: If one of them failed.
    """
    with ExitStack() as stack:
        racing = [
            stack.enter_context(
                subprocess.Popen(
                    _command(arguments, arm, rate),
                    env={**os.environ, "OMP_NUM_THREADS": str(arguments.threads)},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for arm, rate in entrants
        ]
        for process in racing:
            stack.callback(process.kill)
        while waiting := [process for process in racing if process.poll() is None]:
            for process in waiting:
                _give_turn(process)
        if any(process.wait() for process in racing):
            sys.exit("An arm has failed; what the others measured is kept.")


def _give_turn(process: "subprocess.Popen[str]") -> None:
    """Let one process train until it has had its turn or ends."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write("\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass
    for line in process.stdout:
        if line.strip() == TURN_OVER:
            return
        print(line, end="")
    process.wait()


def _command(arguments: argparse.Namespace, arm: str, rate: float | None) -> list[str]:
    """The command of one arm."""
    named = {
        "case": arguments.case,
        "seed": arguments.seed,
        "minutes": arguments.minutes,
        "threads": arguments.threads,
        "precision": arguments.precision,
        "num-images": arguments.num_images,
        "turn-seconds": arguments.turn_seconds,
        "output": arguments.output,
        "arm": arm,
        **({} if rate is None else {"rate": rate}),
    }
    options = [word for name, value in named.items() for word in (f"--{name}", str(value))]
    module = "benchmarks.time_to_quality"
    return [sys.executable, "-m", module, "train", *options, *arguments.words]


def report(output: Path, *, clock: str) -> None:
    """Print the ratios; write them and the curves beside the table."""
    points = read(output)
    found = ratios(points, clock=clock)
    print_ratios(found)
    for case in CASES:
        if (rate := best_rate(points, case)) is not None:
            print(f"{case}: the original's learning rate is {rate:g}, of {RATES}.")
    with (output.parent / "ratios.csv").open("w", newline="", encoding="utf-8") as file:
        names = ("case", "against", "seed", "minutes", "after_minutes", "value")
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(one) for one in found)
    draw_curves(points, output.parent / "curves.png")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.time_to_quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, meaning in (
        ("search", "the original at four learning rates, one seed"),
        ("race", "several arms in turns"),
        ("train", "one arm"),
    ):
        command = commands.add_parser(name, help=meaning)
        command.add_argument("--case", choices=CASES, required=True)
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--minutes", type=float, default=MINUTES)
        command.add_argument("--threads", type=int, default=os.cpu_count() or 1)
        command.add_argument("--precision", choices=PRECISIONS, default="32")
        command.add_argument("--num-images", type=int, default=256, help="to measure quality on")
        command.add_argument("--output", type=Path, default=OUTPUT, help="the table")
        if name == "train":
            command.add_argument("--arm", choices=(*ARMS, SEARCH), required=True)
        if name == "race":
            command.add_argument("--arm", choices=ARMS, action="append", help="all if not given")
        if name != "search":
            command.add_argument("--rate", type=float, help="of the original; else the searched")
        turn = 0.0 if name == "train" else 20.0
        command.add_argument("--turn-seconds", type=float, default=turn)
        command.add_argument("words", nargs="*", help="Hydra's: images, changes to ours")
    command = commands.add_parser("report", help="ratios and curves of the table")
    command.add_argument("--output", type=Path, default=OUTPUT, help="the table")
    command.add_argument("--clock", choices=("seconds", "cpu_seconds"), default="seconds")
    return parser


if __name__ == "__main__":
    main()
