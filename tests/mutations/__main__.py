"""Plant one mistake after the other, and see that the tests notice each within seconds.

``python -m tests.mutations [PART...]`` plants those whose description or file holds one of the
parts. The package is copied; the mistake is made in the copy, and a child of this process, which
has already imported torch, runs the named tests there.
"""

import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch  # noqa: F401 - imported once, for all children
import pytest
import torchvision  # noqa: F401
from torch import multiprocessing

from tests.mutations.diffusion import NORMALIZERS, PROCESSES, SAMPLERS
from tests.mutations.losses import BOTTLENECKS, LOSSES
from tests.mutations.mistake import Mistake
from tests.mutations.steps import AVERAGES, FIRST_STAGE, SECOND_STAGE, UPDATES

ROOT = Path(__file__).resolve().parents[2]
MISTAKES: list[Mistake] = [
    *(LOSSES + BOTTLENECKS + FIRST_STAGE + UPDATES + SECOND_STAGE),
    *(AVERAGES + PROCESSES + SAMPLERS + NORMALIZERS),
]
LONGEST_SECONDS = 10.0
"""Of the test that notices."""


@dataclass(frozen=True)
class Noticed:
    """How the tests of a mistake ended.

    Attributes:
        code: Exit code of pytest: 1 where a test has failed.
        by: The first test that failed.
        seconds: Which that test took.
    """

    code: int
    by: str = ""
    seconds: float = 0.0


class FirstFailure:
    """Plugin of pytest that keeps which test failed first, and its seconds with its fixtures'."""

    def __init__(self) -> None:
        self.by, self.seconds = "", 0.0
        self._seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add the seconds of set-up, call and tear-down."""
        spent = self._seconds[report.nodeid] = (
            self._seconds.get(report.nodeid, 0.0) + report.duration
        )
        if report.failed and not self.by:
            self.by, self.seconds = report.nodeid, spent


def copied(folder: Path) -> Path:
    """Copy what tests run on; return the package's copy."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("ldm_lightning", "hydra_plugins", "conf", "experiments", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder / "ldm_lightning"


def run_tests(tests: list[str], folder: Path, results: multiprocessing.SimpleQueue) -> None:
    """Run tests on the copy in a folder, in a child."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "ldm_lightning")]:
        del sys.modules[name]  # they are those of the checkout
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    with (folder / "output.txt").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    failure = FirstFailure()
    places = [f"tests/{test}" for test in tests]
    options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", "--basetemp", "pytest"]
    code = pytest.main([*options, *places], plugins=[failure])
    results.put(Noticed(int(code), failure.by.removeprefix("tests/"), failure.seconds))


def tried(tests: list[str], folder: Path) -> Noticed:
    """Run tests in a child, and wait for it."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=run_tests, args=(tests, folder, results))
    child.start()
    child.join()
    return Noticed(-1) if results.empty() else results.get()


def verdict(noticed: Noticed) -> str:
    """Empty where the mistake was noticed in time."""
    if noticed.code != pytest.ExitCode.TESTS_FAILED:
        return "SURVIVED" if noticed.code == 0 else f"pytest ended with {noticed.code}"
    return "LATE" if noticed.seconds > LONGEST_SECONDS else ""


def main(*parts: str) -> int:
    """Plant the mistakes and print a table; return the number that was not noticed in time."""
    sys.dont_write_bytecode = True  # a file may change twice within the second that Python sees
    chosen = [
        mistake
        for mistake in MISTAKES
        if not parts or any(part in mistake.what or part in mistake.file for part in parts)
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        package = copied(folder)
        tests = sorted({test for mistake in chosen for test in mistake.tests.split()})
        if tried(tests, folder).code:
            print((folder / "output.txt").read_text())
            raise SystemExit("The tests fail without any mistake.")
        print("| mistake | file | noticed by | seconds |\n| --- | --- | --- | --- |")
        start, bad = time.monotonic(), 0
        for mistake in chosen:
            file = package / mistake.file
            original = file.read_bytes()
            file.write_text(mistake.made_in(package), encoding="utf-8")
            noticed = tried(mistake.tests.split(), folder)
            file.write_bytes(original)
            told = verdict(noticed)
            bad += bool(told)
            by = " ".join(filter(None, (told, noticed.by)))
            print(f"| {mistake.what} | {mistake.file} | {by} | {noticed.seconds:.1f} |", flush=True)
        print(f"\n{len(chosen)} mistakes in {time.monotonic() - start:.0f} s, {bad} not noticed.")
    return bad


if __name__ == "__main__":
    sys.exit(min(main(*sys.argv[1:]), 1))
