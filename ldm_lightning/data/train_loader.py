"""Loader of training batches, which goes on at any image."""

import logging
from collections.abc import Callable
from typing import Any

from ldm_lightning.data.order.position import Position
from ldm_lightning.data.order.sampling import TrainBatchSampler
from ldm_lightning.data.samples import MapDataset
from ldm_lightning.data.workers import Collate, WorkerLoader

logger = logging.getLogger(__name__)


class TrainLoader(WorkerLoader):
    """Loader whose position Lightning stores in checkpoints.

    Lightning calls ``state_dict`` when it saves, and ``load_state_dict`` before it makes the first
    iterator. What counts is what the trainer has consumed; workers have fetched more by then.

    Args:
        dataset: The training split.
        batch_sampler: Chooses the samples.
        collate: Joins samples to a batch.
        num_workers: Worker processes; 0 loads in this process.
        timeout_seconds: Longest wait for a worker.
        batches_consumed: Counts the batches whose training step is over.

    The position counts images (``data/position.py``), so that a run may be continued with another
    batch size, other ``accumulate_batches`` and another number of processes.
    """

    def __init__(
        self,
        dataset: MapDataset,
        batch_sampler: TrainBatchSampler,
        *,
        collate: Collate,
        num_workers: int,
        timeout_seconds: float,
        batches_consumed: Callable[[], int],
    ) -> None:
        super().__init__(
            dataset,  # type: ignore[arg-type]
            batch_sampler=batch_sampler,
            collate=collate,
            num_workers=num_workers,
            timeout_seconds=timeout_seconds,
            persistent=True,
        )
        self._dataset = dataset
        self._train_sampler = batch_sampler
        self._batches_consumed = batches_consumed

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the images, and what their order depends on."""
        num_batches = self._batches_consumed() - self._train_sampler.num_done
        return {**self._train_sampler.position_after(num_batches).to_dict(), "order": self._order()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the images that were seen when the state was stored.

        Where they come in another order by now, no place in it corresponds to the one stored: the
        run continues with the next epoch, so that none shows an image twice.
        """
        position, stored, now = Position.from_dict(state), state["order"], self._order()
        changed = [name for name in sorted({*stored, *now}) if stored.get(name) != now.get(name)]
        for name in changed:
            logger.warning(
                "The checkpoint was made with %s=%s of the training data, now it is %s: the run "
                "continues, but not with the images of an uninterrupted run; it begins epoch %d.",
                name,
                stored.get(name),
                now.get(name),
                position.epoch + 1,
            )
        self._train_sampler.continue_from(
            Position(position.epoch + 1) if changed else position,
            num_done=self._batches_consumed(),
        )

    def _order(self) -> dict[str, int | str]:
        """Inputs of the order of an epoch."""
        images = self._dataset.digest()
        return {"images": images, **self._train_sampler.order_facts}
