"""An order of the images in which each process reads whole shards, one group after another.

An epoch shuffles the images within each shard and then the shards, deals the images out in equal
consecutive shares, one a process, and shuffles each share within groups of a few shards. So every
image is seen at most once an epoch, fewer than a global batch are left out, and only the shards at
the border of two shares are read by both. Differs from streaming pipelines: all of this is known
beforehand from (seed, epoch, number of processes), so that a run may be resumed at any image. Batch
size has no part in it.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch

from ldm_lightning.data.order.position import Position
from ldm_lightning.data.order.sampling import TrainBatchSampler
from ldm_lightning.utils.random import generator_for


@dataclass(frozen=True)
class ShardShuffle:
    """Order in which shards are read.

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
        num_batches: Batches of the whole run, those already done included.
        seed: The run's seed.
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
        rank: int = 0,
        num_processes: int = 1,
    ) -> None:
        super().__init__(
            sum(shuffle.sizes),
            batch_size=batch_size,
            num_batches=num_batches,
            seed=seed,
            rank=rank,
            num_processes=num_processes,
        )
        self.shuffle = shuffle
        self._firsts = [0, *accumulate(shuffle.sizes)]

    @property
    def order_facts(self) -> dict[str, int]:
        """Inputs of the order."""
        return super().order_facts | {"shuffle_shards": self.shuffle.num_together}

    def batches_left(self, position: Position) -> int:
        """Full global batches from a place to the end of its epoch."""
        stretches = position.stretches(self.num_processes)
        share = self.num_samples // stretches[0].num_processes
        for stretch, following in pairwise(stretches):
            rest = (share - stretch.num_images // stretch.num_processes) * stretch.num_processes
            share = rest // following.num_processes
        return max(0, share - stretches[-1].num_images // self.num_processes) // self.batch_size

    def groups(self, position: Position) -> list[Group]:
        """Images that this process reads from a place to the end of its epoch.

        Where the number of processes has changed within the epoch, what the earlier ones have left
        is dealt out again in equal consecutive shares.
        """
        stretches = position.stretches(self.num_processes)
        first = stretches[0]
        ranks = range(first.num_processes) if len(stretches) > 1 else [self.rank]
        shares = {r: self._dealt(position.epoch, r, first.num_processes) for r in ranks}
        for stretch, following in pairwise(stretches):
            seen = stretch.num_images // stretch.num_processes
            rest = [group for share in shares.values() for group in _cut(share, seen)]
            size = sum(len(group.indices) for group in rest) // following.num_processes
            shares = {
                r: _cut(rest, r * size, (r + 1) * size) for r in range(following.num_processes)
            }
        return _cut(shares[self.rank], stretches[-1].num_images // self.num_processes)

    def _dealt(self, epoch: int, rank: int, num_processes: int) -> list[Group]:
        """Images that one of several processes reads in a whole epoch."""
        share = self.num_samples // num_processes
        low, high = rank * share, (rank + 1) * share
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
            generator = generator_for(self.seed, "group", epoch, rank, number)
            mixed = indices[torch.randperm(len(indices), generator=generator)]
            groups.append(Group(list(shards), mixed.tolist()))
        return groups

    def batches_from(
        self, position: Position, num_batches: int, *, goes_on: bool
    ) -> Iterator[list[int]]:
        """Yield this process's indices of batches of one epoch; tell of the shards to come."""
        groups = self.groups(position)
        indices = [index for group in groups for index in group.indices]
        ends = list(accumulate(len(group.indices) for group in groups))
        latest = -1
        for first in range(0, num_batches * self.batch_size, self.batch_size):
            number = bisect_right(ends, first)
            if number != latest:
                latest = number
                if number + 1 < len(groups):
                    self.shuffle.fetch_ahead(groups[number + 1].shards)
                elif goes_on:
                    self.shuffle.fetch_ahead(self.groups(Position(position.epoch + 1))[0].shards)
            yield indices[first : first + self.batch_size]


def _cut(groups: Sequence[Group], first: int, last: int | None = None) -> list[Group]:
    """Images ``first`` to ``last`` of groups in a row, and the shards they are in."""
    kept, place = [], 0
    for group in groups:
        end = len(group.indices) if last is None else max(0, last - place)
        if indices := group.indices[max(0, first - place) : end]:
            kept.append(Group(group.shards, indices))
        place += len(group.indices)
    return kept
