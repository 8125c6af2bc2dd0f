"""Two processes exchange each gradient once an update, however many batches and networks it has."""

import json

import pytest

from tests.module.reduced_bytes import NUM_UPDATES, SCENARIOS
from tests.module.test_two_processes import finish, free_port, start


@pytest.fixture(scope="module")
def counted(tmp_path_factory) -> dict[str, dict[str, int]]:
    folder = tmp_path_factory.mktemp("reduced")
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    logs = [folder / f"rank{rank}.log" for rank in range(2)]
    command = ["-m", "tests.module.reduced_bytes", str(folder)]
    processes = [
        start(command, log, cwd=folder, LOCAL_RANK=str(rank), **shared)
        for rank, log in enumerate(logs)
    ]
    finish(processes, logs)
    one, two = (json.loads((folder / f"counted_{rank}.json").read_text()) for rank in range(2))
    assert one == two
    return one


@pytest.mark.parametrize("name", SCENARIOS)
def test_gradients_cross_once_an_update(counted, name):
    bytes_of = counted[name]
    assert bytes_of["generator"] > bytes_of["discriminator"] > 0
    assert bytes_of["reduced"] == 4 * bytes_of["generator"] * NUM_UPDATES
    assert bytes_of["by_hand"] == 4 * bytes_of["discriminator"] * NUM_UPDATES
