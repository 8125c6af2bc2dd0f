"""Runs continued with another batch size or number of processes: each image once an epoch."""

from itertools import chain, pairwise

import pytest

from ldm_lightning.data.order.position import Position, Stretch
from ldm_lightning.data.order.sampling import TrainBatchSampler
from ldm_lightning.data.order.shard_order import ShardBatchSampler, ShardShuffle

SIZES = [17, 23, 5, 30, 11, 17]
NUM_IMAGES = sum(SIZES)  # 103


def map_sampler(**settings):
    return TrainBatchSampler(NUM_IMAGES, seed=7, **settings)


def shard_sampler(**settings):
    shuffle = ShardShuffle(
        SIZES, num_together=2, fetch_ahead=lambda shards: None, check_room=lambda number, why: None
    )
    return ShardBatchSampler(shuffle, seed=7, **settings)


def run_parts(make, parts):
    """Keys a batch of runs in a row, each (batch size, processes, batches), and where they end."""
    position, num_done, seen = Position(), 0, []
    for batch_size, processes, number in parts:
        samplers = [
            make(
                batch_size=batch_size,
                num_batches=num_done + number,
                rank=rank,
                num_processes=processes,
            )
            for rank in range(processes)
        ]
        for sampler in samplers:
            sampler.continue_from(position, num_done=num_done)
        for rows in zip(*samplers, strict=True):
            assert {len(row) for row in rows} == {batch_size}
            seen.append(list(chain(*rows)))
        ends = {sampler.position_after(number) for sampler in samplers}
        assert len(ends) == 1  # whichever process saves
        position, num_done = ends.pop(), num_done + number
        assert sampler.num_batches == len(sampler) == len(seen)
    return seen, position


PARTS = [
    [(4, 1, 7), (3, 1, 90)],
    [(3, 1, 30), (8, 1, 40)],
    [(4, 1, 25), (3, 1, 40)],  # at the end of an epoch, with three images left
    [(4, 1, 26), (4, 1, 40)],
    [(4, 2, 6), (4, 1, 60)],  # one process fewer
    [(4, 1, 9), (4, 2, 30)],
    [(2, 3, 4), (5, 1, 5), (1, 4, 80)],
    [(2, 2, 30), (3, 4, 2), (2, 2, 40)],  # and back, within an epoch
]


@pytest.mark.parametrize("make", [map_sampler, shard_sampler])
@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_an_epoch_shows_each_image_once_across_changes(make, parts):
    seen, position = run_parts(make, parts)
    assert len(seen) == sum(number for *_, number in parts)
    epochs = {}
    for key in chain.from_iterable(seen):
        epochs.setdefault(key.epoch, []).append(key.index)
    assert list(epochs) == list(range(len(epochs)))
    for indices in epochs.values():
        assert len(indices) == len(set(indices))
    assert position.epoch == max(epochs)
    assert position.num_images == len(epochs.pop(position.epoch))
    # Left out: less than a batch of those that ended the epoch, and a remainder of each share.
    largest = max(batch_size * processes for batch_size, processes, _ in parts)
    shares = sum(processes for _, processes, _ in parts)
    assert all(NUM_IMAGES - len(indices) < largest + shares for indices in epochs.values())


@pytest.mark.parametrize("make", [map_sampler, shard_sampler])
@pytest.mark.parametrize("start", [1, 12, 13, 40])
def test_the_order_does_not_depend_on_the_batch_size(make, start):
    """Twice as many batches of half the size are the same images, from anywhere on."""
    whole, _ = run_parts(make, [(8, 1, start), (8, 1, 30)])
    halves, _ = run_parts(make, [(8, 1, start), (4, 1, 60)])
    first_epoch = [
        [key for batch in parts for key in batch if not key.epoch] for parts in (whole, halves)
    ]
    shorter = min(map(len, first_epoch))
    assert shorter >= 96
    assert first_epoch[0][:shorter] == first_epoch[1][:shorter]


def test_the_rest_of_an_epoch_is_dealt_out_in_whole_groups():
    """A process reads few shards at a time after a change of the number of processes too."""
    sampler = shard_sampler(batch_size=2, num_batches=100, rank=0, num_processes=2)
    sampler.continue_from(Position(0, (Stretch(3, 30),)), num_done=0)
    groups = sampler.groups(sampler.start)
    assert sum(len(group.indices) for group in groups) == (34 * 3 - 30) // 2
    assert all(len(group.shards) <= 2 for group in groups)
    shard_of = [shard for shard, size in enumerate(SIZES) for _ in range(size)]
    for group in groups:
        assert {shard_of[index] for index in group.indices} <= set(group.shards)


def test_a_position_survives_a_checkpoint():
    position = Position(3, (Stretch(2, 40), Stretch(1, 7)))
    assert Position.from_dict(position.to_dict()) == position
    assert position.num_images == 47
    for one, other in pairwise([position, position.after(3, num_processes=1)]):
        assert other.seen == (*one.seen[:-1], Stretch(1, 10))
    assert position.after(4, num_processes=4).seen[-1] == Stretch(4, 4)
