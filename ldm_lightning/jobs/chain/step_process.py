"""A step as a process of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from ldm_lightning.distributed.processes import STARTER
from ldm_lightning.jobs.chain.steps import Step


def run_command(step: Step, working_folder: Path) -> int:
    """Run a step as a process that writes where this one does; returns its exit code.

    The process is never left behind: on Ctrl-C and SIGTERM it is told, and waited for while it
    saves what it has. Where this process is killed, a training notices, saves and ends.

    Raises:
        KeyboardInterrupt: After Ctrl-C, when the process has ended.
    """
    command = [sys.executable, "-m", f"ldm_lightning.{step.command}", *step.arguments]
    environment = {**os.environ, STARTER: str(os.getpid())}
    # A folder that a stored chain names lends no modules, unless this process has it too.
    if working_folder.resolve() not in {Path(entry).resolve() for entry in sys.path}:
        environment["PYTHONSAFEPATH"] = "1"
    process = subprocess.Popen(command, cwd=working_folder, env=environment)
    with _forwarding(signal.SIGTERM, process):
        try:
            return process.wait()
        except KeyboardInterrupt:
            # A terminal has told the process too, and telling it twice could end its saving.
            if not (sys.stdin and sys.stdin.isatty()):
                process.send_signal(signal.SIGINT)
            previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
            process.wait()
            signal.signal(signal.SIGINT, previous)
            raise


@contextmanager
def _forwarding(number: signal.Signals, process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Hand a signal on to a process instead of dying of it."""

    def forward(_number: int, _frame: FrameType | None) -> None:
        process.send_signal(number)

    previous = signal.signal(number, forward)
    try:
        yield
    finally:
        signal.signal(number, previous)
