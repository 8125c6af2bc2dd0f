"""Tiny trainings of three kinds, each run in a forked process that may be ended anywhere.

A fork begins with everything imported; a process of its own would spend seconds on that.
"""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import ldm_lightning.builders.second_stage  # noqa: F401  (what a training imports late)
from ldm_lightning.callbacks.checkpointing import Checkpointing
from ldm_lightning.module.autoencoder import AutoencoderModule
from ldm_lightning.module.diffusion import DiffusionModule
from ldm_lightning.module.updating import ManualOptimizationModule
from ldm_lightning.storage import files
from tests.cli.run import command, environment_of, tiny
from tests.cli.second_stage import tiny_second, trained_first_stage

NUM_UPDATES, VALIDATED_EVERY, SAVED_EVERY = 40, 7, 5
SECONDS = 300.0
"""No run takes nearly as long."""


@dataclass(frozen=True)
class Kill:
    """How and when a run is ended.

    Attributes:
        kind: One of ``KINDS``.
        number: Of the write or validation step in which it ends; the update else.
        call: Python call within the update, counted from its first batch on.
        stage: How far a write has got: ``half``, ``whole`` or ``moved``.
    """

    kind: str
    number: int
    call: int = 0
    stage: str = ""


KINDS = (
    "SIGKILL",  # at any Python call of an update, its save and validation included
    "SIGKILL in a write",
    "SIGKILL in a validation",
    "SIGTERM, SIGKILL before the second save",
    "SIGTERM",
    "SIGINT",
)
FROM_OUTSIDE = {"SIGKILL", "SIGTERM", "SIGINT"}
"""Kinds that a real process can be ended by as well."""


@dataclass
class Counts:
    """What a whole run consists of; a kill is drawn from it.

    Attributes:
        calls: Python calls by update.
        writes: Checkpoints written.
        validation_steps: Batches validated.
    """

    calls: dict[int, int] = field(default_factory=dict)
    writes: int = 0
    validation_steps: int = 0


class Saboteur:
    """Counts what a run does, and ends it where a ``Kill`` says; for one forked process."""

    def __init__(self, kill: Kill | None, *, counts: bool) -> None:
        self.kill = kill
        self.hears_calls = counts or (kill is not None and kill.call > 0)
        self.calls: Counter[int] = Counter()
        self.update = 0
        self.writes = 0
        self.validation_steps = 0

    def counts(self) -> Counts:
        return Counts(dict(self.calls), self.writes, self.validation_steps)

    def install(self) -> None:
        """Listen to batches, Python calls, validation steps, and writes of checkpoints."""
        self._listen_to_batches()
        for kind in (AutoencoderModule, DiffusionModule):
            kind.validation_step = self._validation_step(  # type: ignore[method-assign]
                kind.validation_step
            )
        torch.save = self._saving(torch.save)
        files.os = _Os(self)
        Checkpointing.on_exception = self._on_exception(Checkpointing.on_exception)

    def _listen_to_batches(self) -> None:
        original = ManualOptimizationModule.on_train_batch_start

        def on_train_batch_start(module: Any, batch: Any, batch_idx: int) -> None:
            self.update = module.global_step + 1
            if self.hears_calls:
                sys.setprofile(self._called)
            original(module, batch, batch_idx)

        ManualOptimizationModule.on_train_batch_start = on_train_batch_start  # type: ignore[method-assign]

    def _called(self, frame: Any, event: str, argument: Any) -> None:
        if event != "call":
            return
        self.calls[self.update] += 1
        kill = self.kill
        if kill is None or (self.update, self.calls[self.update]) != (kill.number, kill.call):
            return
        if kill.kind in ("SIGKILL", "SIGTERM", "SIGINT"):
            os.kill(os.getpid(), getattr(signal, kill.kind))
        elif kill.kind == "SIGTERM, SIGKILL before the second save":
            os.kill(os.getpid(), signal.SIGTERM)

    def _validation_step(self, original: Any) -> Any:
        def validation_step(module: Any, batch: Any, batch_idx: int) -> Any:
            self.validation_steps += 1
            self._end("SIGKILL in a validation", self.validation_steps)
            return original(module, batch, batch_idx)

        return validation_step

    def _saving(self, original: Any) -> Any:
        def save(content: Any, file: Any) -> None:
            self.writes += 1
            original(content, file)
            if self.kill is not None and self.kill.stage == "half":
                if (self.kill.kind, self.kill.number) == ("SIGKILL in a write", self.writes):
                    file.flush()
                    file.truncate(file.tell() // 2)
                self._end("SIGKILL in a write", self.writes)

        return save

    def _on_exception(self, original: Any) -> Any:
        def on_exception(*arguments: Any) -> None:
            if self.kill and self.kill.kind == "SIGTERM, SIGKILL before the second save":
                os.kill(os.getpid(), signal.SIGKILL)
            original(*arguments)

        return on_exception

    def _end(self, kind: str, number: int) -> None:
        if self.kill is not None and (self.kill.kind, self.kill.number) == (kind, number):
            os.kill(os.getpid(), signal.SIGKILL)


class _Os:
    """``os`` as ``utils.files`` sees it: renaming a checkpoint may be the last thing it does."""

    def __init__(self, saboteur: Saboteur) -> None:
        self.saboteur = saboteur

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def replace(self, source: Any, target: Any) -> None:
        kill, is_checkpoint = self.saboteur.kill, str(target).endswith(".ckpt")
        if is_checkpoint and kill is not None and kill.stage == "whole":
            self.saboteur._end("SIGKILL in a write", self.saboteur.writes)
        os.replace(source, target)
        if is_checkpoint and kill is not None and kill.stage == "moved":
            self.saboteur._end("SIGKILL in a write", self.saboteur.writes)


def words_of(configuration: str, parent: Path) -> list[str]:
    """The command line of a configuration; makes what it needs below ``parent`` first."""
    common: dict[str, Any] = {
        "max_steps": NUM_UPDATES,
        "accumulate_batches": 2,
        "validation__every_steps": VALIDATED_EVERY,
        "callbacks__checkpointing__every_num_steps": SAVED_EVERY,
        "data__batch_size": 3,
        "output_dir": "run",
        "logger": "csv",
    }
    if configuration == "KL":
        return tiny("kl_f4", **common, data__num_workers=1, resolution=16)
    if configuration == "VQ with restarts":
        codes = {"bottleneck__restart_every_steps": 6, "bottleneck__quantize_start_step": 4}
        return tiny("vq_f4", **common, **codes, resolution=16)
    first = trained_first_stage(parent / "first", max_steps=2)
    latents = parent / "latents"
    ended = command("encode", [f"checkpoint={first}", f"output={latents}"], parent)
    assert ended.code == 0, ended.output
    return tiny_second(
        first,
        **common,
        data="latents",
        data__root=latents,
        data__num_workers=1,
        trainer__precision=32,
    )


def run_forked(
    words: list[str], folder: Path, *, kill: Kill | None = None, counts: bool = False
) -> int:
    """Train in a forked process; returns its exit code, negative for a signal.

    What it said is in ``said.txt``; what it counted, where it does, in ``counts.json``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads of the test runner
        pid = os.fork()
    if not pid:
        code = 70
        try:
            saboteur = Saboteur(kill, counts=counts)
            saboteur.install()
            ended = command("train", words, folder)
            (folder / "said.txt").write_text(ended.output)
            if counts:
                (folder / "counts.json").write_text(json.dumps(asdict(saboteur.counts())))
            code = ended.code
        except BaseException:
            (folder / "said.txt").write_text(traceback.format_exc())
            raise
        finally:
            os._exit(code)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError(f"{words} in {folder} took more than {SECONDS} s")


def counts_of(folder: Path) -> Counts:
    """What a run that was not killed counted."""
    stored = json.loads((folder / "counts.json").read_text())
    return Counts({int(k): v for k, v in stored.pop("calls").items()}, **stored)


def run_real(words: list[str], folder: Path, *, kill: Kill) -> int:
    """Train in a process as a user starts it, and signal it from here in an update."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "said.txt").open("w") as said:
        started = subprocess.Popen(
            [sys.executable, "-m", "ldm_lightning.train", *words],
            cwd=folder,
            env={**os.environ, **environment_of(folder)},
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        while started.poll() is None and update_reached(folder) < kill.number:
            time.sleep(0.005)
        time.sleep(kill.call / 1e5)  # somewhere in the updates that follow
        started.send_signal(getattr(signal, kill.kind))
        return started.wait(SECONDS)


def update_reached(folder: Path) -> int:
    """The last update in ``metrics.csv``."""
    path = folder / "run" / "metrics.csv"
    lines = path.read_text().splitlines()[1:] if path.is_file() else []
    steps = [line.partition(",")[0] for line in lines]
    return max((int(step) for step in steps if step.isdigit()), default=0)
