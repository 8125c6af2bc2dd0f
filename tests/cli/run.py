"""Run the command line as a user does, in this process or in one of its own.

A process of its own costs seconds of importing, so it is kept for what needs one: signals, limits,
another installation. Everything else calls the same entry points in this process.
"""

import contextlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ldm_lightning import encode, evaluate, floor, pipeline, plan, report, sample, train

ROOT = Path(__file__).resolve().parents[2]
MAINS = {
    "train": train.main,
    "evaluate": evaluate.main,
    "encode": encode.main,
    "sample": sample.main,
    "pipeline": pipeline.main,
    "plan": plan.main,
    "floor": floor.main,
    "report": report.main,
}

_ALL = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))
SECOND_STAGES = [name for name in _ALL if name.startswith("ldm_")]
EXPERIMENTS = [name for name in _ALL if name not in SECOND_STAGES]
WITH_CODES = ("vq_f4", "vq_f8", "vq_f16", "vqgan_f16", "vqvae_f8")
WITHOUT_DISCRIMINATOR = ("ae_f8", "vae_f8", "vqvae_f8")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    output: str  # standard output and standard error, in the order of writing

    @property
    def said(self) -> str:
        """The output as one line, so that a test does not depend on where lines break."""
        return " ".join(self.output.split())


def tiny(experiment: str, **changes: Any) -> list[str]:
    """The command line of an experiment cut down to a second or two: four updates at 32 px."""
    values: dict[str, Any] = {
        "experiment": experiment,
        "trainer": "cpu",
        "page": "false",
        "trainer.precision": 32,
        "resolution": 32,
        "max_steps": 4,
        "log_every_steps": 1,
        "validation.every_steps": 2,
        "autoencoder.base_width": 8,
        "autoencoder.num_res_blocks": 1,
        "autoencoder.latent_channels": 4,
        "optim.learning_rate": 1e-3,
        "optim.warmup_steps": 0,
        "optim.decay_start_fraction": 1.0,
        "data.batch_size": 4,
        "data.val_batch_size": 4,
        "data.num_workers": 0,
        "data.max_val_images": "null",
    }
    if changes.get("data", "shapes") == "shapes":
        values |= {"data.num_train_images": 22, "data.num_val_images": 10}
    if experiment in WITH_CODES:
        values |= {"bottleneck.num_codes": 16, "bottleneck.quantize_start_step": 0}
    if experiment not in WITHOUT_DISCRIMINATOR:
        values |= {
            "discriminator.num_layers": 2,
            "discriminator.base_width": 8,
            "loss.discriminator_start_steps": 1,
            "loss.discriminator_start_fraction": "null",
            "loss.discriminator_warmup_steps": 0,
            "loss.discriminator_ramp_steps": 0,
        }
    values["validation.linear_floor"] = "false"  # reads a sample of training images
    values |= {name.replace("__", "."): value for name, value in changes.items()}
    return [f"{name}={value}" for name, value in values.items()]


def command(name: str, arguments: Sequence[str], folder: Path) -> Ended:
    """Run ``python -m ldm_lightning.<name> <arguments>`` in a folder, in this process."""
    output = io.StringIO()
    with (
        _argv([name, *arguments]),
        _environment(folder),
        _logging_restored(),
        contextlib.chdir(folder),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        code = 0
        try:
            MAINS[name]()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Ended(code, output.getvalue())


def process(
    arguments: Sequence[str | Path],
    folder: Path,
    *,
    env: dict[str, str | None] | None = None,
    timeout: float = 240,
) -> Ended:
    """Run Python in a process of its own; ``env`` changes its environment, None removes."""
    environment = {**os.environ, **environment_of(folder), **(env or {})}
    ended = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={name: value for name, value in environment.items() if value is not None},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Ended(ended.returncode, ended.stdout)


def environment_of(folder: Path) -> dict[str, str]:
    """One thread, and no cache outside the folder."""
    return {
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
        "TORCH_HOME": str(folder / "cache" / "torch"),
    }


def write_images(folder: Path, number: int, *, seed: int = 0, size: int = 40) -> list[Path]:
    """Write smooth random images as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    paths = []
    for index in range(number):
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        paths.append(folder / f"{index:03}.png")
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(paths[-1])
    return paths


def run_folder(parent: Path, name: str) -> Path:
    """The only run of a name below ``outputs``."""
    (found,) = (parent / "outputs" / name).iterdir()
    return found


def summary_of(folder: Path) -> dict[str, Any]:
    """What ``summary.json`` says."""
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def tensors_of(value: Any, where: str = "") -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint by their place in it."""
    if isinstance(value, torch.Tensor):
        return {where: value}
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    found = {}
    for key, item in items:
        found |= tensors_of(item, f"{where}/{key}")
    return found


@contextlib.contextmanager
def _argv(arguments: list[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = arguments
    try:
        yield
    finally:
        sys.argv = before


@contextlib.contextmanager
def _environment(folder: Path) -> Iterator[None]:
    before = dict(os.environ)
    os.environ |= environment_of(folder)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


@contextlib.contextmanager
def _logging_restored() -> Iterator[None]:
    """Undo what a command does to the process it thinks its own: log handlers, Ctrl-C."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    interrupt = signal.getsignal(signal.SIGINT)
    root.handlers[:] = []
    try:
        yield
    finally:
        for handler in root.handlers:
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        signal.signal(signal.SIGINT, interrupt)


def make_commands(target: str) -> list[str]:
    """What make would run for a target, line by line."""
    return subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
