"""Wherever a run is killed, its continuation ends as if nothing had happened, bit for bit.

``make test-kills`` kills sixty times and prints the table of ``docs/resuming.md``; ``make
test-slow`` kills three times.
"""

import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm_lightning.checkpoints.checkpoint import load_checkpoint
from ldm_lightning.reporting.metrics_file import read_metrics
from tests.cli.run import ROOT, process, summary_of, tensors_of
from tests.kills.runs import (
    FROM_OUTSIDE,
    KINDS,
    NUM_UPDATES,
    VALIDATED_EVERY,
    Counts,
    Kill,
    counts_of,
    run_forked,
    run_real,
    update_reached,
    words_of,
)

CONFIGURATIONS = ("KL", "VQ with restarts", "second stage on latents")
KILLS_EACH = 20
SEED = 13


def drawn(kind: str, counts: Counts, source: random.Random) -> Kill:
    """A kill of a kind at a moment drawn from all that a whole run consists of."""
    if kind == "SIGKILL in a write":
        stage = source.choice(("half", "whole", "moved"))
        return Kill(kind, source.randint(1, counts.writes), stage=stage)
    if kind == "SIGKILL in a validation":
        return Kill(kind, source.randint(1, counts.validation_steps))
    updates = sorted(counts.calls)
    if kind == "SIGTERM, SIGKILL before the second save":
        updates = [update for update in updates if update % VALIDATED_EVERY == 0]
    update = source.choice(updates)
    return Kill(kind, update, call=source.randint(1, counts.calls[update]))


def place_of(content: dict[str, Any]) -> tuple[Any, ...]:
    """Updates done, place in the images, and which update was validated."""
    loop = content["loops"]["fit_loop"]
    validated = loop["epoch_loop.val_loop.state_dict"]
    return content["global_step"], loop["state_dict"]["combined_loader"], validated


def differences(expected: Path, actual: Path) -> list[str]:
    """What of a run's end differs from another's; empty where nothing does."""
    found = []
    for name in ("last", "best"):
        one, other = (
            load_checkpoint(run / "checkpoints" / f"{name}.ckpt") for run in (expected, actual)
        )
        tensors = [tensors_of(content) for content in (one, other)]
        if tensors[0].keys() != tensors[1].keys():
            found.append(f"{name}.ckpt: names")
        else:
            different = [n for n, t in tensors[0].items() if not torch.equal(t, tensors[1][n])]
            found += [f"{name}.ckpt: {n}" for n in different]
        if place_of(one) != place_of(other):
            found.append(f"{name}.ckpt: place")
    parts = ("/state_dict/", "/ema/", "/optimizer_states/")
    assert all(any(name.startswith(part) for name in tensors[0]) for part in parts)
    if read_metrics(expected / "metrics.csv") != read_metrics(actual / "metrics.csv"):
        found.append("metrics.csv")
    one, other = summary_of(expected), summary_of(actual)
    found += [key for key in ("state", "step", "metrics", "protocol") if one[key] != other[key]]
    files = [
        {str(path.relative_to(run)) for path in run.rglob("*") if ".hydra" not in path.parts}
        for run in (expected, actual)
    ]
    return found + [
        f"file {name}" for name in sorted(files[0] ^ files[1]) if "train.log" not in name
    ]


def kill_and_continue(
    words: list[str], whole: Path, folder: Path, kill: Kill, *, real: bool = False
) -> tuple[int, list[str]]:
    """Returns the update reached when the run was killed, and how the continued one differs."""
    code = (run_real if real else run_forked)(words, folder, kill=kill)
    reached = update_reached(folder)
    if "SIGKILL" in kill.kind and code != -signal.SIGKILL:
        return reached, [f"was not killed, but ended with code {code}"]
    assert code != 70, "the test itself failed"
    if code == 0:
        return reached, differences(whole, folder / "run")
    ended = run_forked(["resume=run"], folder)
    if ended:
        return reached, [f"exit code {ended}: {(folder / 'said.txt').read_text()[-300:]}"]
    return reached, differences(whole, folder / "run")


@pytest.fixture(scope="module")
def table() -> Iterator[list[tuple[str, str, int, bool]]]:
    """Rows of all configurations; printed at the end."""
    rows: list[tuple[str, str, int, bool]] = []
    yield rows
    print("\n| configuration | kind of kill | update reached | equal |\n| --- | --- | --- | --- |")
    for configuration, kind, reached, equal in rows:
        print(f"| {configuration} | {kind} | {reached} | {'yes' if equal else 'NO'} |")


@pytest.mark.kills
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_a_killed_run_ends_as_one_that_was_not(tmp_path, table, configuration):
    words = words_of(configuration, tmp_path)
    code = run_forked(words, tmp_path / "whole", counts=True)
    assert code == 0, (tmp_path / "whole/said.txt").read_text()
    counts = counts_of(tmp_path / "whole")
    assert len(counts.calls) == NUM_UPDATES
    source = random.Random(f"{SEED} {configuration}")
    failed = {}
    for number in range(KILLS_EACH):
        kind = KINDS[number % len(KINDS)]
        real = number >= KILLS_EACH - len(FROM_OUTSIDE)  # the last ones
        kind = sorted(FROM_OUTSIDE)[number % len(FROM_OUTSIDE)] if real else kind
        kill = drawn(kind, counts, source)
        folder = tmp_path / str(number)
        reached, found = kill_and_continue(words, tmp_path / "whole/run", folder, kill, real=real)
        table.append(
            (configuration, f"{kind}{', from outside' if real else ''}", reached, not found)
        )
        if found:
            failed[f"{number}: {kill}"] = found
    assert not failed


SHORTER = (
    "max_steps=5",
    "validation.every_steps=3",
    "callbacks.checkpointing.every_num_steps=2",
    "bottleneck.restart_every_steps=2",
    "bottleneck.quantize_start_step=1",
)
SHORT = (
    Kill("SIGTERM, SIGKILL before the second save", 3, call=100),
    Kill("SIGKILL in a write", 1, stage="whole"),  # the best, after the validation made up
    Kill("SIGKILL", 5, call=700),
)


def kill_three_times(folder: Path) -> None:
    """Compare a short run that was killed three times with one that was not."""
    words = [*words_of("VQ with restarts", folder), *SHORTER]
    code = run_forked(words, folder / "whole")
    assert code == 0, (folder / "whole" / "said.txt").read_text()
    for kill in SHORT:
        assert run_forked(words, folder / "killed", kill=kill) == -signal.SIGKILL, kill
        words = ["resume=run"]
    assert update_reached(folder / "killed") in (4, 5)
    assert run_forked(words, folder / "killed") == 0
    assert not differences(folder / "whole/run", folder / "killed/run")


@pytest.mark.slow
def test_a_short_run_killed_three_times_ends_as_one_that_was_not(tmp_path):
    code = (
        "import pathlib, sys; from tests.kills.test_kills import kill_three_times; "
        "kill_three_times(pathlib.Path(sys.argv[1]))"
    )
    # What other tests left in this process would be in every fork of it.
    ended = process(["-c", code, tmp_path], tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert ended.code == 0, ended.output
