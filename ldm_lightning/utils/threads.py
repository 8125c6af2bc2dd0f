"""Waiting of OpenMP's threads for work; set before torch, which loads OpenMP, is imported."""

import os
import sys
from collections.abc import MutableMapping

WAIT_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables by which a user says how threads wait; one of them is enough."""

SPIN_COUNT = 1000
"""Turns that a thread waits for work before it sleeps: 0.01 ms.

libgomp, which torch brings along on Linux, takes 300,000 turns, 3 ms. Beside other work on the
cores its threads then hold the core that they wait for: an update of kl_f8 in two threads took 14 s
instead of 2.6 s on two cores with four other processes (``python -m benchmarks.busy_cores``).
"""


def shorten_waits(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let threads of OpenMP sleep soon, in this process and those that it starts.

    Nothing changes where the user has said how they wait, or torch is imported already.

    Args:
        environment: Of this process.
    """
    if "torch" not in sys.modules and not environment.keys() & set(WAIT_SETTINGS):
        environment["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
