"""The numbers of an update: means over its batches, taken once."""

import pytest
import torch

from ldm_lightning.module.update_log import UpdateLog

CPU = torch.device("cpu")


def test_added_values_are_averaged_over_the_batches_and_set_ones_are_kept():
    log = UpdateLog(2)
    for value in (1.0, 4.0):
        log.add("loss", torch.tensor(value, requires_grad=True))
        log.set("rate", value)
    taken = log.take(CPU)
    assert {name: value.item() for name, value in taken.items()} == {"loss": 2.5, "rate": 4.0}
    assert not any(value.requires_grad for value in taken.values())
    assert all(value.dtype == torch.float64 for value in taken.values())


@pytest.mark.parametrize("forget", [UpdateLog.clear, lambda log: log.take(CPU)])
def test_the_next_update_begins_with_nothing(forget):
    log = UpdateLog(1)
    log.add("loss", torch.tensor(1.0))
    forget(log)
    log.add("loss", torch.tensor(5.0))
    assert {name: value.item() for name, value in log.take(CPU).items()} == {"loss": 5.0}
