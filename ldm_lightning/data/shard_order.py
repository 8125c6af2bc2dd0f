"""An order of the images in which each process reads whole shards, one group after another.

An epoch shuffles the images within each shard and then the shards, deals the images out in equal
consecutive shares, one a process, and shuffles each share within groups of a few shards. So every
image is seen at most once an epoch, fewer than a global batch are left out, and only the shards at
the border of two shares are read by both. Differs from streaming pipelines: all of this is known
beforehand from (seed, epoch), so that a run may be resumed at any batch.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from ldm_lightning.data.sampling import SampleKey, TrainBatchSampler
from ldm_lightning.utils.random import generator_for


@dataclass(frozen=True)
class ShardShuffle:
    """How shards are gone through.

    Attributes:
        sizes: Images of each shard, in the order of the data set.
        num_together: Shards whose images are shuffled together; a process reads from these alone.
        fetch_ahead: Told the numbers of the shards of a group while the one before is read.
        check_room: Told how many shards are in use on this machine at once, and why.
    """

    sizes: Sequence[int]
    num_together: int
    fetch_ahead: Callable[[Sequence[int]], None]
    check_room: Callable[[int, str], None]

    def __post_init__(self) -> None:
        if self.num_together < 1:
            raise ValueError(
                f"data.shuffle_shards must be at least 1, or null, got {self.num_together}."
            )

    def check_processes(self, num_on_machine: int) -> None:
        """Check that what the processes of a machine read, and read next, fits on its disk.

        Raises:
            ValueError: If it does not.
        """
        self.check_room(
            2 * self.num_together * num_on_machine,
            f"data.shuffle_shards={self.num_together} in {num_on_machine} process(es), which read "
            "one group of shards while the next is fetched,",
        )


@dataclass(frozen=True)
class Group:
    """Shards that a process reads together, and its images of them in order."""

    shards: list[int]
    indices: list[int]


class ShardBatchSampler(TrainBatchSampler):
    """Batches whose images come from a few shards at a time; see this module.

    Args:
        shuffle: The shards.
        batch_size: Samples per process and batch.
        num_batches: Batches of the whole run, those before ``start`` included.
        seed: The run's seed.
        start: First batch to yield.
        rank: This process's number.
        num_processes: Number of processes.

    Raises:
        ValueError: If the data set cannot fill one global batch.
    """

    def __init__(
        self,
        shuffle: ShardShuffle,
        *,
        batch_size: int,
        num_batches: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        num_processes: int = 1,
    ) -> None:
        super().__init__(
            sum(shuffle.sizes),
            batch_size=batch_size,
            num_batches=num_batches,
            seed=seed,
            start=start,
            rank=rank,
            num_processes=num_processes,
        )
        self.shuffle = shuffle
        self._firsts = [0, *accumulate(shuffle.sizes)]

    @property
    def facts(self) -> dict[str, int]:
        """What the order depends on."""
        return super().facts | {
            "shuffle_shards": self.shuffle.num_together,
            "num_processes": self.global_batch_size // self.batch_size,
        }

    def groups(self, epoch: int) -> list[Group]:
        """What this process reads in an epoch."""
        share = self.batches_per_epoch * self.batch_size
        low, high = self.rank * share, (self.rank + 1) * share
        generator = generator_for(self.seed, "shards", epoch)
        place, parts = 0, []
        for shard in torch.randperm(len(self.shuffle.sizes), generator=generator).tolist():
            size = self.shuffle.sizes[shard]
            first, last = max(low - place, 0), min(high - place, size)
            if first < last:
                order = torch.randperm(
                    size, generator=generator_for(self.seed, "shard", epoch, shard)
                )
                parts.append((shard, order[first:last] + self._firsts[shard]))
            place += size
        groups = []
        for number in range(0, len(parts), self.shuffle.num_together):
            shards, chosen = zip(*parts[number : number + self.shuffle.num_together], strict=True)
            indices = torch.cat(chosen)
            generator = generator_for(self.seed, "group", epoch, self.rank, number)
            mixed = indices[torch.randperm(len(indices), generator=generator)]
            groups.append(Group(list(shards), mixed.tolist()))
        return groups

    def rows(self, epoch: int) -> list[int]:
        """Return this process's indices of one epoch, in order."""
        return [index for group in self.groups(epoch) for index in group.indices]

    def __iter__(self) -> Iterator[list[SampleKey]]:
        groups: list[Group] = []
        ends: list[int] = []
        latest = (-1, -1)
        for batch, keys in enumerate(super().__iter__(), start=self.start):
            epoch, position = divmod(batch, self.batches_per_epoch)
            if epoch != latest[0]:
                groups = self.groups(epoch)
                ends = list(accumulate(len(group.indices) for group in groups))
            number = bisect_right(ends, position * self.batch_size)
            if (epoch, number) != latest:
                latest = epoch, number
                if number + 1 < len(groups):
                    self.shuffle.fetch_ahead(groups[number + 1].shards)
                elif (epoch + 1) * self.batches_per_epoch < self.num_batches:
                    self.shuffle.fetch_ahead(self.groups(epoch + 1)[0].shards)
            yield keys
