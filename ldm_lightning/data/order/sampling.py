"""Choice of the samples of a batch: a function of (seed, place), for any number of processes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler

from ldm_lightning.data.order.position import Position
from ldm_lightning.utils.random import derive_seed, generator_for


@dataclass(frozen=True, slots=True)
class SampleKey:
    """Request that a sampler yields and a data set receives: all that augmentation depends on."""

    epoch: int
    index: int


@dataclass(frozen=True)
class EpochCounts:
    """Images of the two splits.

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

    The order of an epoch is a permutation drawn from (seed, epoch). A global batch holds the next
    ``batch_size * num_processes`` samples of it, and process r takes rows [r * batch_size, (r + 1)
    * batch_size), so that N processes with B samples each see what one process with N * B samples
    sees. Samples that do not fill a global batch at the end of an epoch are left out of that epoch.
    So batch size and number of processes may change within an epoch: what follows is the rest of
    the same permutation.

    Args:
        num_samples: Size of the data set.
        batch_size: Samples per process and batch.
        num_batches: Batches of the whole run, those already done included.
        seed: The run's seed.
        rank: This process's number.
        num_processes: Number of processes.

    Attributes:
        start: Where the first batch begins; ``continue_from`` sets it.
        num_done: Batches of the run before it.

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
        self.num_processes = num_processes
        self.global_batch_size = global_batch_size
        self.num_batches = num_batches
        self.seed = seed
        self.rank = rank
        self.start = Position()
        self.num_done = 0

    def continue_from(self, position: Position, *, num_done: int) -> None:
        """Begin at a place, with the batch of the run that follows ``num_done`` others."""
        self.start = position
        self.num_done = num_done

    @property
    def batches_per_epoch(self) -> int:
        """Full global batches in one pass over the data set."""
        return self.batches_left(Position())

    @property
    def order_facts(self) -> dict[str, int]:
        """Inputs of the order of an epoch, besides the data."""
        return {"seed": self.seed}

    def batches_left(self, position: Position) -> int:
        """Full global batches from a place to the end of its epoch."""
        return max(0, self.num_samples - position.num_images) // self.global_batch_size

    def position_after(self, num_batches: int) -> Position:
        """The place after so many batches from ``start`` on."""
        place, left = self.start, self.batches_left(self.start)
        if num_batches > left:
            epochs, num_batches = divmod(num_batches - left - 1, self.batches_per_epoch)
            place, num_batches = Position(place.epoch + 1 + epochs), num_batches + 1
        num_images = num_batches * self.global_batch_size
        return place.after(num_images, num_processes=self.num_processes)

    def order(self, epoch: int) -> list[int]:
        """Return the indices of one epoch in the order of that epoch, of all processes together."""
        generator = generator_for(self.seed, "order", epoch)
        return torch.randperm(self.num_samples, generator=generator).tolist()

    def batches_from(
        self, position: Position, num_batches: int, *, goes_on: bool
    ) -> Iterator[list[int]]:
        """Yield this process's indices of batches of one epoch.

        Args:
            position: Where they begin.
            num_batches: How many; at most ``batches_left(position)``.
            goes_on: Whether the run goes on with another epoch.
        """
        order = self.order(position.epoch)
        first = position.num_images + self.rank * self.batch_size
        for _ in range(num_batches):
            yield order[first : first + self.batch_size]
            first += self.global_batch_size

    def __len__(self) -> int:
        """Batches of the whole run: on resuming, Lightning counts those already done."""
        return self.num_batches

    def __iter__(self) -> Iterator[list[SampleKey]]:
        position, left = self.start, self.num_batches - self.num_done
        while left > 0:
            number = min(left, self.batches_left(position))
            left -= number
            for indices in self.batches_from(position, number, goes_on=left > 0):
                yield [SampleKey(position.epoch, index) for index in indices]
            position = Position(position.epoch + 1)


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


def evaluated_indices(
    num_samples: int, key: Callable[[int], str], *, windows_per_image: int, max_images: int | None
) -> list[int]:
    """All samples, or those of the ``max_images`` whose names have the smallest hash, in order.

    Args:
        num_samples: Of the data set.
        key: Name of a sample.
        windows_per_image: Samples that follow one another are so many windows of one image.
        max_images: None for all.
    """
    firsts = list(range(0, num_samples, windows_per_image))
    if max_images is not None and max_images < len(firsts):
        firsts.sort(key=lambda index: derive_seed("subset", key(index)))
        firsts = sorted(firsts[:max_images])
    return [index for first in firsts for index in range(first, first + windows_per_image)]
