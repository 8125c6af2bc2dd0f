"""Order of the batches: complete, the same for any number of processes, and resumable."""

from itertools import chain

import pytest

from ldm_lightning.data.order.sampling import EvaluationSampler, SampleKey, TrainBatchSampler


def batches(num_samples=103, *, batch_size=4, num_batches=60, seed=7, start=0, **options):
    sampler = TrainBatchSampler(
        num_samples, batch_size=batch_size, num_batches=num_batches, seed=seed, **options
    )
    sampler.continue_from(sampler.position_after(start), num_done=start)
    return list(sampler)


def test_an_epoch_visits_each_sample_once_but_for_the_stated_rest():
    epochs = {}
    for key in chain.from_iterable(batches(num_batches=50)):  # two epochs of 25 batches
        epochs.setdefault(key.epoch, []).append(key.index)
    assert sorted(epochs) == [0, 1]
    for indices in epochs.values():
        assert len(indices) == len(set(indices)) == 100
        assert set(indices) <= set(range(103))
    assert epochs[0] != epochs[1]


def test_the_samples_left_out_change_from_epoch_to_epoch():
    left_out = [
        frozenset(range(103)) - {key.index for key in chain.from_iterable(batches()[n : n + 25])}
        for n in (0, 25)
    ]
    assert left_out[0] != left_out[1]


@pytest.mark.parametrize(("num_processes", "batch_size"), [(2, 4), (4, 2), (8, 1)])
def test_several_processes_see_what_one_sees(num_processes, batch_size):
    one = batches(batch_size=8)
    ranks = [
        batches(batch_size=batch_size, rank=rank, num_processes=num_processes)
        for rank in range(num_processes)
    ]
    assert [list(chain(*rows)) for rows in zip(*ranks, strict=True)] == one


@pytest.mark.parametrize("start", [1, 24, 25, 26, 59])
def test_a_later_start_yields_the_rest_of_the_same_run(start):
    assert batches(start=start) == batches()[start:]


def test_length_counts_the_whole_run():
    sampler = TrainBatchSampler(10, batch_size=2, num_batches=12, seed=0)
    sampler.continue_from(sampler.position_after(5), num_done=5)
    assert len(sampler) == 12
    assert len(list(sampler)) == 7


def test_seed_sets_the_order():
    assert batches(seed=1) == batches(seed=1)
    assert batches(seed=1) != batches(seed=2)


def test_a_batch_larger_than_the_data_set_is_refused():
    with pytest.raises(ValueError, match=r"\b4\b.*\b2 process.*\b1 and 3\b"):
        batches(7, num_processes=2)


@pytest.mark.parametrize("num_processes", [1, 2, 3, 8])
def test_evaluation_sees_each_sample_once_over_all_processes(num_processes):
    indices = [5, 3, 11, 8, 2, 7, 1]
    seen = [
        key
        for rank in range(num_processes)
        for key in EvaluationSampler(indices, rank=rank, num_processes=num_processes)
    ]
    assert sorted(key.index for key in seen) == sorted(indices)
    assert set(seen) == {SampleKey(0, index) for index in indices}
