"""Run the steps of a chain that are not done; keep its ``chain.json`` and ``summary.json``."""

from __future__ import annotations

import json
import logging
import shlex
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ldm_lightning.jobs.chain.steps import Step, continued
from ldm_lightning.metrics.names import meanings, own_meanings, register_stored
from ldm_lightning.reporting.table import print_metrics
from ldm_lightning.runs.overrides import literal, path_override
from ldm_lightning.runs.run_folder import RunFolder
from ldm_lightning.storage.files import atomic_writer
from ldm_lightning.storage.small_files import read_json
from ldm_lightning.utils.metadata import count_told

log = logging.getLogger(__name__)

DONE = ("finished", "early_stopped")
INTERRUPTED = 128 + signal.SIGINT
STOPPED = (INTERRUPTED, 128 + signal.SIGTERM)
"""Exit codes after Ctrl-C and SIGTERM, as shells have them: somebody wanted it to end."""

MEASURED = {
    "first_stage_evaluation": "test",
    "evaluation": "gen",
    "prior_evaluation": "prior",
}
"""Steps whose metrics are the chain's, and what their names begin with there."""

PICTURES = {
    "Samples in training": "second_stage/images/samples_latest.png",
    "What the first stage allows": "second_stage/images/ceiling.png",
    "Decoded noise": "second_stage/images/prior.png",
    "Samples": "samples/grid.png",
}

Runner = Callable[[Step, Path], int]
"""Runs a step in a working folder and returns its exit code; KeyboardInterrupt on Ctrl-C."""


class StepError(Exception):
    """A step ended without having done its work; ``code`` is the chain's exit code."""

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code


# The file that a chain is continued from


@dataclass(frozen=True)
class Chain:
    """Content of ``chain.json``: a chain continues with the very commands it was started with.

    The file may come from somewhere else: what it says is not run, but compared with what its
    overrides lead to.

    Attributes:
        overrides: As the user gave them.
        working_folder: Relative paths among the overrides count from here.
        folder: Where the chain was when the steps were written.
        steps: In their order.
    """

    overrides: tuple[str, ...]
    working_folder: str
    folder: str
    steps: tuple[Step, ...]

    def save(self, path: Path) -> None:
        """Write ``chain.json``, whole or not at all."""
        with atomic_writer(path) as file:
            file.write(json.dumps(asdict(self), indent=2).encode() + b"\n")

    @classmethod
    def load(cls, path: Path) -> Chain:
        """Read ``chain.json``.

        Raises:
            ValueError: If there is none, it holds something else, or its folder was moved.
        """
        if not path.is_file():
            raise ValueError(
                f"{path.parent} is no chain: {path} does not exist. Continue a single training "
                f"with python -m ldm_lightning.train resume={path.parent}."
            )
        try:
            stored = read_json(path, dict)
            steps = tuple(
                Step(
                    _text(step["name"]),
                    _text(step["command"]),
                    tuple(map(_text, step["overrides"])),
                    tuple(map(_text, step["options"])),
                )
                for step in stored["steps"]
            )
            chain = cls(
                tuple(map(_text, stored["overrides"])),
                _text(stored["working_folder"]),
                _text(stored["folder"]),
                steps,
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}); start a new chain.") from error
        # The runs in it name each other by their paths.
        if Path(chain.folder).resolve() != path.parent.resolve():
            raise ValueError(
                f"This chain was started in {chain.folder} and has been moved to {path.parent}; "
                "move it back to continue it."
            )
        return chain

    def check_steps(self, steps: tuple[Step, ...], path: Path) -> None:
        """Refuse stored steps that are not those which the overrides lead to.

        Args:
            steps: What the overrides lead to now.
            path: Of the file, for the message.

        Raises:
            ValueError: Naming the first step that differs, with both commands.
        """
        if self.steps == steps:
            return
        pairs = zip_longest(self.steps, steps)
        stored, wanted = next(pair for pair in pairs if pair[0] != pair[1])
        raise ValueError(
            f"{path} holds other commands than its overrides lead to: {stored and stored.line} "
            f"instead of {wanted and wanted.line}. The file or conf/ has changed: start a new "
            "chain."
        )

    def check_options(self, options: tuple[str, ...], path: Path) -> None:
        """Refuse to take a folder of configurations from a file: the command line gives it again.

        Args:
            options: ``--config-dir`` and its folder, as this command has them.
            path: Of the file, for the message.

        Raises:
            ValueError: With the options of the file.
        """
        other = {step.options for step in self.steps} - {options}
        if other:
            stored, given = (shlex.join(words) or "no option" for words in (min(other), options))
            raise ValueError(
                f"{path} was started with {stored}, and this command has {given}: continue it with "
                "the same, if you trust what is in that folder."
            )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


# Running


def run_chain(chain: Chain, *, run: Runner, trusted_packages: Sequence[str] = ()) -> int:
    """Run the steps that are not done; one process does it at a time.

    Args:
        chain: Its ``summary.json`` is kept up to date.
        run: Runs a step.
        trusted_packages: Of the user's own; every step gets them, and no file of the chain.

    Returns:
        The exit code.
    """
    trusting = [f"trusted_packages={literal(list(trusted_packages))}"] if trusted_packages else []
    run_folder = RunFolder.create(chain.folder)
    run_folder.update_summary({"state": "running", "name": run_folder.path.parent.name})
    overrides = [*chain.steps[0].options, path_override("resume", run_folder.path), *trusting]
    resume = shlex.join(["python", "-m", "ldm_lightning.pipeline", *overrides])
    try:
        for number, step in enumerate(chain.steps, start=1):
            title = f"{number}/{len(chain.steps)} {step.name}"
            _run_step(step, title, trusting, chain, run_folder, run)
    except KeyboardInterrupt:
        run_folder.update_summary({"state": "interrupted"})
        log.error("Interrupted. To go on: %s", resume)
        return INTERRUPTED
    except StepError as failure:
        state = "interrupted" if failure.code in STOPPED else "failed"
        run_folder.update_summary({"state": state, "reason": str(failure)})
        log.error("%s To go on: %s", failure, resume)
        return failure.code
    except BaseException as error:
        run_folder.update_summary({"state": "failed", "reason": str(error)})
        raise
    _finish(run_folder)
    return 0


def _run_step(
    step: Step,
    title: str,
    trusting: Sequence[str],
    chain: Chain,
    run_folder: RunFolder,
    run: Runner,
) -> None:
    """Run one step unless it is done; its state and seconds go into the summary."""
    state = _state_of(run_folder, step)
    if state in DONE:
        log.info("%s: done already (%s)", title, run_folder.path / step.name)
        run_folder.update_summary({"steps": {step.name: {"state": state}}})
        return
    step = continued(step, run_folder.path)
    step = replace(step, overrides=(*step.overrides, *trusting))
    log.info("%s: %s", title, step.line)
    record = run_folder.read_summary().get("steps", {}).get(step.name, {})
    start, earlier, code = time.monotonic(), record.get("seconds", 0.0), None
    try:
        code = run(step, Path(chain.working_folder))
    finally:
        state = _state_of(run_folder, step)
        if state not in DONE:
            stopped = code is None or exit_code(code) in STOPPED
            state = "interrupted" if stopped else "failed"
        seconds = earlier + time.monotonic() - start
        run_folder.update_summary({"steps": {step.name: {"state": state, "seconds": seconds}}})
    if code:
        raise StepError(f"{title} ended with code {code}.", code=exit_code(code))
    if state not in DONE:
        raise StepError(f"{title} ended before it was finished.", code=1)


def _state_of(run_folder: RunFolder, step: Step) -> str | None:
    """State in a step's own ``summary.json``."""
    if not (run_folder.path / step.name / "summary.json").is_file():
        return None
    return RunFolder(run_folder.path / step.name).read_summary().get("state")


def exit_code(code: int) -> int:
    """The exit code of a process, as shells have it where a signal ended it."""
    return 128 - code if code < 0 else code


def _finish(run_folder: RunFolder) -> None:
    """Gather the figures of the steps, print them, say where the pictures are."""
    metrics: dict[str, float | None] = {}
    protocol: dict[str, Any] = {}
    for step, prefix in MEASURED.items():
        summary = RunFolder(run_folder.path / step).read_summary()
        register_stored(summary.get("own_metrics"))
        for kind, target in (("metrics", metrics), ("protocol", protocol)):
            for name, value in summary.get(kind, {}).items():
                group, _, rest = name.partition("/")
                target[f"{prefix}/{rest}" if group in ("gen", "test") else name] = value
    figures = {"metrics": metrics, "protocol": protocol, "own_metrics": own_meanings()}
    run_folder.update_summary({"state": "finished", **figures})
    print_metrics(
        {name: value for name, value in metrics.items() if name in protocol},
        meanings(),
        title="test: reconstructions; gen: samples; prior: decoded noise, to be beaten",
        counts={name: count_told(entry) for name, entry in protocol.items()},
    )
    for what, file in PICTURES.items():
        if (run_folder.path / file).is_file():
            log.info("%s: %s", what, run_folder.path / file)
    log.info("Chain: %s", run_folder.path)
