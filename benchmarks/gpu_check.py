"""One GPU: does it compute what the CPU does, and how fast? Sized for ten minutes.

    make gpu-check
    python -m benchmarks.gpu_check --device cpu --minutes 0.2   # tries the script itself

Runs the tests of tests/gpu, trains kl_f8 and ldm_kl_f8 at scale=gpu for some minutes each with a
profile, and times an update of the first stage beside others'. A part that fails is recorded, and
the next one begins. Writes record.json, record.txt and a log of each part into one folder.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ldm_lightning.utils.provenance import device_name, git_commit, package_versions

ROOT = Path(__file__).resolve().parents[1]
NUM_LINES = 40
"""Of the end of a log, kept in the record where a part fails."""


@dataclass(frozen=True)
class Check:
    """Device and scale of a check.

    Attributes:
        device: ``cuda`` or ``cpu``.
        minutes: Of each training.
        folder: Of the record.
    """

    device: str
    minutes: float
    folder: Path

    @property
    def training_words(self) -> list[str]:
        """Words that both trainings share."""
        if self.device == "cuda":
            workers = min(12, max(0, (os.cpu_count() or 1) - 2))
            where = ["scale=gpu", "trainer=gpu", f"data.num_workers={workers}"]
        else:
            where = ["scale=cpu", "trainer=cpu", "resolution=32", "data.batch_size=4"]
            where.append("data.num_train_images=500")  # all of them are encoded once
        common = ["features=tiny", "data=shapes", "data.num_val_images=256", "page=false"]
        return [*where, *common]


@dataclass
class Part:
    """Outcome of one part.

    Attributes:
        name: Names its log, too.
        state: ``passed``, ``failed`` or ``timed out``.
        seconds: It took.
        results: What it measured.
        last_lines: Of its log, where it did not pass.
    """

    name: str
    state: str
    seconds: float
    results: dict[str, Any] = field(default_factory=dict)
    last_lines: list[str] = field(default_factory=list)


def run_part(
    check: Check,
    name: str,
    command: Sequence[str],
    *,
    timeout_minutes: float,
    results: Callable[[Path], dict[str, Any]],
) -> Part:
    """Run one part in a process and a folder of its own.

    Args:
        check: Device and folder.
        name: Of the part's folder.
        command: Arguments to Python.
        timeout_minutes: After which it is ended.
        results: Reads from the part's folder what was measured; what is missing is left out.
    """
    folder = check.folder / name
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LDM_TEST_DEVICE": check.device}
    if check.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    start, state = time.monotonic(), "failed"
    log = folder / "log.txt"
    with log.open("w", encoding="utf-8") as output:
        try:
            ended = subprocess.run(
                [sys.executable, *command],
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=60 * timeout_minutes,
                check=False,
            )
            state = "passed" if ended.returncode == 0 else "failed"
        except subprocess.TimeoutExpired:
            state = "timed out"
    part = Part(name, state, time.monotonic() - start)
    try:
        part.results = results(folder)
    except (OSError, ValueError, KeyError) as err:
        part.results = {"unreadable": f"{type(err).__name__}: {err}"}
    if state != "passed":
        part.last_lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        part.last_lines = part.last_lines[-NUM_LINES:]
    return part


def tests(check: Check) -> Part:
    """Run tests/gpu."""
    command = ["-m", "pytest", "-m", "gpu", "-q", "--durations=10", "-p", "no:cacheprovider"]
    return run_part(
        check,
        "tests",
        [
            *command,
            f"--rootdir={ROOT}",
            f"--config-file={ROOT}/pyproject.toml",
            f"{ROOT}/tests/gpu",
        ],
        timeout_minutes=10 if check.device == "cuda" else 30,
        results=lambda folder: {"last_line": _lines(folder / "log.txt")[-1]},
    )


def first_stage(check: Check) -> Part:
    """Train kl_f8, the discriminator on from the start."""
    return _training(
        check,
        "kl_f8",
        "loss.discriminator_start_steps=0",
        "loss.discriminator_start_fraction=null",
        "loss.discriminator_warmup_steps=0",
        "loss.discriminator_ramp_steps=0",
    )


def second_stage(check: Check) -> Part:
    """Train ldm_kl_f8 on the first stage that was just trained."""
    (trained,) = (check.folder / "kl_f8" / "outputs" / "kl_f8").iterdir()
    return _training(
        check,
        "ldm_kl_f8",
        f"first_stage.checkpoint={trained}",
        "gate.mode=skip",
        "validation.num_samples=64",
    )


def updates(check: Check) -> Part:
    """Time an update of a first stage beside those of others."""
    command = ["-m", "benchmarks", "--quick", "--part", "first_stage", "--output", "."]

    def ratios(folder: Path) -> dict[str, Any]:
        rows = json.loads((folder / "results.json").read_text(encoding="utf-8"))["rows"]
        return {f"{row['what']} ({row['setting']})": row["value"]["median"] for row in rows}

    return run_part(check, "benchmarks", command, timeout_minutes=15, results=ratios)


PARTS = {
    "tests": tests,
    "kl_f8": first_stage,
    "ldm_kl_f8": second_stage,
    "benchmarks": updates,
}


def _training(check: Check, experiment: str, *words: str) -> Part:
    command = ["-m", "benchmarks.profiled_training", ".", str(check.minutes)]

    def results(folder: Path) -> dict[str, Any]:
        speed = json.loads((folder / "speed.json").read_text(encoding="utf-8"))
        (summary,) = folder.glob(f"outputs/{experiment}/*/summary.json")
        written = json.loads(summary.read_text(encoding="utf-8"))
        kept = {name: written.get(name) for name in ("state", "step", "timing", "metrics")}
        return {"speed": speed, "summary": kept, "profile": _lines(folder / "profile.txt")}

    return run_part(
        check,
        experiment,
        [*command, f"experiment={experiment}", *check.training_words, *words],
        timeout_minutes=check.minutes + 5,
        results=results,
    )


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def write_record(check: Check, parts: Sequence[Part]) -> None:
    """Write what is known so far, for programs and for people."""
    record = {
        "device": device_name(torch.device(check.device)),
        "num_devices": torch.cuda.device_count() if check.device == "cuda" else 1,
        "cuda": torch.version.cuda,
        "versions": package_versions(),
        "commit": git_commit(),
        "minutes": check.minutes,
        "parts": [asdict(part) for part in parts],
    }
    text = json.dumps(record, indent=2) + "\n"
    (check.folder / "record.json").write_text(text, encoding="utf-8")
    lines = [f"{record['device']}, torch {torch.__version__}, commit {record['commit']}", ""]
    for part in parts:
        lines.append(f"{part.name}: {part.state} after {part.seconds:.0f} s")
        lines += [f"  {line}" for line in _told(part)]
    (check.folder / "record.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _told(part: Part) -> list[str]:
    """Results of a part, a line each."""
    lines: list[str] = []
    for name, value in part.results.items():
        if isinstance(value, list):
            lines += [f"{name}:", *value]
        elif isinstance(value, dict):
            lines.append(f"{name}: {json.dumps(value)}")
        else:
            lines.append(f"{name}: {value}")
    return [*lines, *part.last_lines]


def run_parts(check: Check, names: Sequence[str]) -> list[Part]:
    """Run parts one after the other; what goes wrong in one does not keep the next from running."""
    done: list[Part] = []
    for name in names:
        start = time.monotonic()
        try:
            part = PARTS[name](check)
        except Exception as err:  # noqa: BLE001 - whatever it is, the other parts still count
            seconds = time.monotonic() - start
            part = Part(name, "failed", seconds, last_lines=[f"{type(err).__name__}: {err}"])
        done.append(part)
        write_record(check, done)
        print(f"{name}: {part.state} after {part.seconds:.0f} s", flush=True)
    return done


def main() -> None:
    """Run the parts and say where the record is; the exit code is 1 if one did not pass."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=3.0, help="of each training")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this; repeatable")
    parser.add_argument("--output", type=Path, default=None, help="a new folder for the record")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --device cpu tries the script without one")
    begun = datetime.now(UTC).strftime("%Y-%m-%d_%H-%M-%S")
    folder = (arguments.output or Path("outputs") / "gpu_check" / begun).absolute()
    folder.mkdir(parents=True)
    check = Check(arguments.device, arguments.minutes, folder)
    parts = run_parts(check, arguments.part or list(PARTS))
    print((folder / "record.txt").read_text(encoding="utf-8"))
    print(f"{folder}/record.json, {folder}/record.txt")
    sys.exit(any(part.state != "passed" for part in parts))


if __name__ == "__main__":
    main()
