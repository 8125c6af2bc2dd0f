"""Our modules under Lightning, an update of each other way after every update of ours."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.device import now
from benchmarks.timing import Timings

OURS = "ours"


class Repeated(IterableDataset[dict[str, Any]]):
    """The same batches again and again."""

    def __init__(self, batches: Mapping[str, Mapping[str, Any]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            for way, batch in self.batches.items():
                yield {**batch, "way": way}


class InTurn(pl.Callback):
    """Times updates of ours, from the end of what ran before to the end of their own callbacks.

    It must be the last callback. The first round warms up and counts for nothing.
    """

    def __init__(self, ways: Sequence[str], others: Mapping[str, Callable[[], object]]) -> None:
        self.ways = ways
        self.others = others
        self.seconds: dict[str, list[float]] = {name: [] for name in (*ways, *others)}
        self._start = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._start = now()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stop the clock of ours; after the last of its ways run and time the others."""
        times = {batch["way"]: now() - self._start}
        if batch["way"] == self.ways[-1]:
            for name, run in self.others.items():
                start = now()
                run()
                times[name] = now() - start
        if batch_idx >= len(self.ways):
            for name, seconds in times.items():
                self.seconds[name].append(seconds)
        self._start = now()


def time_ours(
    module: pl.LightningModule,
    batches: Mapping[str, Mapping[str, Any]],
    others: Mapping[str, Callable[[], object]],
    trainer: pl.Trainer,
) -> Timings:
    """Train on each of the batches once a round, and run each of the others once.

    Args:
        module: One of ours.
        batches: What it trains on in turn, by the way's name.
        others: What is run besides.
        trainer: With its callbacks; its number of steps says how many rounds there are, of which
            the first does not count.
    """
    clock = InTurn(list(batches), others)
    trainer.callbacks.append(clock)  # type: ignore[attr-defined]
    trainer.fit(module, DataLoader(Repeated(batches), batch_size=None))
    return Timings(clock.seconds)


def plain_trainer(
    *, max_steps: int, precision: str = "32-true", callbacks: Sequence[pl.Callback] = ()
) -> pl.Trainer:
    """A Trainer that does nothing besides updates; ``precision`` as Lightning names it."""
    return pl.Trainer(
        accelerator="auto",
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        max_steps=max_steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )


def logged(module: pl.LightningModule, name: str) -> float:
    """Scalars that the last update of a module logged."""
    value = module.trainer.callback_metrics[name]
    assert isinstance(value, Tensor)
    return float(value)
