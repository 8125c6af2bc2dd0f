"""Time what we do beside what others do.

    make bench            # everything, at most 45 minutes on two cores
    make bench QUICK=1    # fewer rounds and no large networks, ten minutes

Prints ratios of time (ours / other) with median and spread over interleaved rounds, names every
goal that is missed, and writes outputs/benchmarks/results.json and ratios.png.
"""

import argparse
import logging
import time
import warnings
from pathlib import Path

from benchmarks import (
    busy_cores,
    codec,
    first_stage,
    input_pipeline,
    memory,
    options,
    overhead,
    sampling,
    second_stage,
    startup,
    throughput,
    validation,
)
from benchmarks.figure import draw_ratios
from benchmarks.results import Row, print_rows, write_rows
from ldm_lightning.utils.memory import keep_freed_memory

PARTS = {
    "first_stage": first_stage.rows,
    "second_stage": second_stage.rows,
    "sampling": sampling.rows,
    "codec": codec.rows,
    "memory": memory.rows,
    "validation": validation.rows,
    "throughput": throughput.rows,
    "options": options.rows,
    "overhead": overhead.rows,
    "input_pipeline": input_pipeline.rows,
    "startup": startup.rows,
    "busy_cores": busy_cores.rows,
}


def main() -> None:
    """Run the parts, keeping what each measured before the next begins."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, no large networks")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this; repeatable")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks"))
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("ldm_lightning.utils.pretrained").setLevel(logging.ERROR)  # random on purpose
    warnings.filterwarnings("ignore", module="lightning.pytorch")
    keep_freed_memory()
    rows: list[Row] = []
    for name in arguments.part or PARTS:
        start = time.monotonic()
        rows += PARTS[name](quick=arguments.quick)
        write_rows(rows, arguments.output / "results.json")
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    drawn = [row for row in rows if row.part != options.PART]  # told by more than a ratio
    draw_ratios(drawn, arguments.output / "ratios.png")
    print_rows(rows)
    print(f"{arguments.output}/results.json, {arguments.output}/ratios.png")


if __name__ == "__main__":
    main()
