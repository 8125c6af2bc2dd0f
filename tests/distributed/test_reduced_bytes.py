"""Two processes exchange each gradient once an update, however many batches and networks it has."""

import json

import pytest

from tests.distributed.reduced_bytes import NUM_UPDATES
from tests.distributed.test_ddp import finish, free_port, start


@pytest.mark.slow
def test_gradients_cross_once_an_update(tmp_path):
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    logs = [tmp_path / f"rank{rank}.log" for rank in range(2)]
    command = ["-m", "tests.distributed.reduced_bytes", str(tmp_path)]
    processes = [
        start(command, log, cwd=tmp_path, LOCAL_RANK=str(rank), **shared)
        for rank, log in enumerate(logs)
    ]
    finish(processes, logs)
    counted, same = (
        json.loads((tmp_path / f"counted_{rank}.json").read_text()) for rank in range(2)
    )
    assert counted == same
    assert counted["generator"] > counted["discriminator"] > 0
    assert counted["reduced"] == 4 * counted["generator"] * NUM_UPDATES
    assert counted["by_hand"] == 4 * counted["discriminator"] * NUM_UPDATES
