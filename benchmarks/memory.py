"""Peak memory of the update of a first stage, each way in a process of its own.

``python -m benchmarks.memory WAY`` is such a process; it prints bytes. What every way needs alike
(weights, their gradients, two moments of Adam) is not counted: what remains are activations.
"""

import functools
import subprocess
import sys
from collections.abc import Callable

import torch

from benchmarks.device import DEVICE, held_bytes, most_bytes_held
from benchmarks.first_stage import build_module
from benchmarks.networks import KL_F4, build_players, random_lpips
from benchmarks.ours import OURS, plain_trainer, time_ours
from benchmarks.results import Row
from benchmarks.rules import OneForward, TwoForwards
from benchmarks.timing import Spread, time_in_turn

PART = "memory"
PEER = "two forwards"
GOALS = {OURS: 0.95, f"{OURS}, recomputed": 0.45, f"{OURS}, bf16": None}
NUM_UPDATES = 3


def rows(*, quick: bool) -> list[Row]:
    """Every comparison of this part."""
    num_rounds = 1 if quick else 3
    peaks = {way: [peak_in_a_process(way) for _ in range(num_rounds)] for way in (PEER, *GOALS)}
    return [
        *(
            Row(
                part=PART,
                what=f"peak memory of the first-stage update: {way} / {PEER}",
                setting=str(KL_F4),
                value=Spread.of([a / b for a, b in zip(peaks[way], peaks[PEER], strict=True)]),
                num_rounds=num_rounds,
                goal=goal,
                seconds={},
                facts={"mebibytes": {w: Spread.of(peaks[w]).median / 2**20 for w in (way, PEER)}},
            )
            for way, goal in GOALS.items()
        ),
        recomputation_row(num_rounds=3 if quick else 6),
    ]


def recomputation_row(*, num_rounds: int) -> Row:
    """Time that recomputing activations costs."""
    images = KL_F4.images()
    ways: dict[str, Callable[[], object]] = {}
    for name, gradient_checkpointing in (("recomputed", True), ("kept", False)):
        rule = OneForward(
            build_players(KL_F4, random_lpips(), gradient_checkpointing=gradient_checkpointing)
        )
        noise = torch.randn(rule.players.autoencoder.latent_shape(images.shape), device=DEVICE)
        ways[name] = functools.partial(rule.update, images, noise)
    timings = time_in_turn(ways, num_rounds=num_rounds)
    return Row(
        part=PART,
        what="time of the first-stage update: activations recomputed / kept",
        setting=str(KL_F4),
        value=timings.ratio("recomputed", "kept"),
        num_rounds=timings.num_rounds,
        goal=1.35,
        seconds={way: timings.spread(way).median for way in ways},
        facts={},
    )


def peak_in_a_process(way: str) -> float:
    """Bytes of activations at their peak."""
    command = [sys.executable, "-m", "benchmarks.memory", way]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_bytes(way: str) -> int:
    """Run some updates and look at the most this process ever held."""
    images = KL_F4.images()
    if way == PEER:
        rule = TwoForwards(build_players(KL_F4, random_lpips()))
        noise = torch.randn(rule.players.autoencoder.latent_shape(images.shape), device=DEVICE)
        trained = sum(rule.players.num_parameters.values())
        before = held_bytes()
        for _ in range(NUM_UPDATES):
            rule.update(images, noise)
    else:
        module = build_module(KL_F4, gradient_checkpointing="recomputed" in way)
        trained = sum(parameter.numel() for parameter in module.parameters())
        precision = "bf16-mixed" if "bf16" in way else "32-true"
        before = held_bytes()
        time_ours(
            module,
            {OURS: {"image": images}},
            {},
            plain_trainer(max_steps=NUM_UPDATES, precision=precision),
        )
    gradients_and_moments = 3 * 4 * trained
    return most_bytes_held() - before - gradients_and_moments


if __name__ == "__main__":
    print(peak_bytes(sys.argv[1]))
