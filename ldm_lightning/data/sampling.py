"""Which samples make up a batch: a function of (seed, batch), for any number of processes."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler

from ldm_lightning.utils.random import generator_for


@dataclass(frozen=True, slots=True)
class SampleKey:
    """What a sampler yields and a data set receives: all that augmentation depends on."""

    epoch: int
    index: int


@dataclass(frozen=True)
class EpochCounts:
    """What is trained on and what is not.

    Attributes:
        num_train_images: Images of the training split.
        num_val_images: Images of the validation split.
        num_evaluated_images: Those of them that validation looks at.
        windows_per_image: Windows cut from each of these, which metrics count one by one; 1 where
            images are not cut into several.
        global_batch_size: Images per batch, of all processes together.
        batches_per_epoch: Batches of one pass over the training split.
        dropped_per_epoch: Images that do not fill a batch at its end, others in each epoch.
    """

    num_train_images: int
    num_val_images: int
    num_evaluated_images: int
    windows_per_image: int
    global_batch_size: int
    batches_per_epoch: int
    dropped_per_epoch: int

    def __str__(self) -> str:
        evaluated = f"{self.num_evaluated_images} are evaluated"
        if self.windows_per_image > 1:
            num_windows = self.num_evaluated_images * self.windows_per_image
            evaluated += f", as {num_windows:,} windows of {self.num_evaluated_images:,} images"
        return (
            f"{self.num_train_images} images to train on, {self.num_val_images} held out, of which "
            f"{evaluated}. An epoch is {self.batches_per_epoch} batches of "
            f"{self.global_batch_size} images and drops {self.dropped_per_epoch}."
        )


class TrainBatchSampler(Sampler[list[SampleKey]]):
    """Batches of one long training run, which may begin anywhere.

    The order of an epoch is a permutation drawn from (seed, epoch). Global batch n holds
    ``batch_size * num_processes`` samples, and process r takes rows [r * batch_size, (r + 1) *
    batch_size) of it, so that N processes with B samples each see what one process with N * B
    samples sees. Samples that do not fill a global batch at the end of an epoch are left out of
    that epoch.

    Args:
        num_samples: Size of the data set.
        batch_size: Samples per process and batch.
        num_batches: Batches of the whole run, those before ``start`` included.
        seed: The run's seed.
        start: First batch to yield; the number of batches already trained on.
        rank: This process's number.
        num_processes: Number of processes.

    Raises:
        ValueError: If the data set cannot fill one global batch.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        batch_size: int,
        num_batches: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        num_processes: int = 1,
    ) -> None:
        global_batch_size = batch_size * num_processes
        if batch_size < 1 or num_samples < global_batch_size:
            raise ValueError(
                f"A batch of {batch_size} image(s) in each of {num_processes} process(es) cannot "
                f"be filled from the {num_samples} of the training split. Choose a data.batch_size "
                f"between 1 and {max(1, num_samples // num_processes)}, or add images."
            )
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.global_batch_size = global_batch_size
        self.num_batches = num_batches
        self.seed = seed
        self.start = start
        self.rank = rank

    @property
    def batches_per_epoch(self) -> int:
        """Full global batches in one pass over the data set."""
        return self.num_samples // self.global_batch_size

    def order(self, epoch: int) -> list[int]:
        """Return the indices of one epoch in the order of that epoch, of all processes together."""
        generator = generator_for(self.seed, "order", epoch)
        return torch.randperm(self.num_samples, generator=generator).tolist()

    def rows(self, epoch: int) -> list[int]:
        """Return this process's indices of one epoch, in order: ``batch_size`` for each batch."""
        order = self.order(epoch)
        firsts = range(
            self.rank * self.batch_size,
            self.batches_per_epoch * self.global_batch_size,
            self.global_batch_size,
        )
        return [index for first in firsts for index in order[first : first + self.batch_size]]

    @property
    def facts(self) -> dict[str, int]:
        """What the order depends on, besides the data."""
        return {"global_batch_size": self.global_batch_size, "seed": self.seed}

    def __len__(self) -> int:
        """Batches of the whole run: on resuming, Lightning counts those before ``start`` too."""
        return self.num_batches

    def __iter__(self) -> Iterator[list[SampleKey]]:
        current_epoch, rows = -1, []
        for batch in range(self.start, self.num_batches):
            epoch, position = divmod(batch, self.batches_per_epoch)
            if epoch != current_epoch:
                current_epoch, rows = epoch, self.rows(epoch)
            first = position * self.batch_size
            yield [SampleKey(epoch, index) for index in rows[first : first + self.batch_size]]


class EvaluationSampler(Sampler[SampleKey]):
    """Each sample exactly once over all N processes: process r takes every N-th from r on.

    Args:
        indices: Samples to evaluate, in this order.
        rank: This process's number.
        num_processes: Number of processes.
    """

    def __init__(self, indices: list[int], *, rank: int = 0, num_processes: int = 1) -> None:
        self.indices = indices[rank::num_processes]

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[SampleKey]:
        return (SampleKey(0, index) for index in self.indices)
