"""A bar with the time left for work that may take long; lines now and then where no bar shows."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

from ldm_lightning.utils.launch import launched

logger = logging.getLogger(__name__)

DELAY_SECONDS = 1.0
"""Work that is done by then shows nothing."""

EVERY_SECONDS = 30.0


@contextmanager
def long_task(name: str, *, total: float, unit: str) -> Iterator[Callable[[float], None]]:
    """Show how far a task has come, once it has taken ``DELAY_SECONDS``.

    The first process alone shows something: a bar on a terminal, else a line every
    ``EVERY_SECONDS``.

    Args:
        name: What is done, such as ``encoding train``.
        total: How much there is to do.
        unit: Of ``total``, for the lines.

    Yields:
        A function to call with the amount that was done since the last call.
    """
    console = Console(stderr=True)
    shows_bar = console.is_terminal and launched().is_first
    bar = Progress(console=console)
    task = bar.add_task(name, total=total)
    done, start = 0.0, time.monotonic()
    told = start

    def advance(amount: float) -> None:
        nonlocal done, told
        done += amount
        now = time.monotonic()
        if shows_bar:
            bar.update(task, completed=done)
            if now - start >= DELAY_SECONDS:
                bar.start()  # a second call does nothing
        elif now - told >= EVERY_SECONDS and done > 0:
            told = now
            left = (now - start) / done * (total - done)
            logger.info("%s: %.4g of %.4g %s, %.0f s left.", name, done, total, unit, left)

    try:
        yield advance
    finally:
        if shows_bar:
            bar.stop()
