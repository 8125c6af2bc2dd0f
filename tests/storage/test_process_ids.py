"""Which processes live."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ldm_lightning.storage.process_ids import CLOCK_SECONDS, pid_exists


@pytest.fixture
def process():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.stdin.close()
    process.wait()


def test_a_process_lives_until_it_has_ended(process):
    assert pid_exists(process.pid)
    assert pid_exists(process.pid, seen=time.time())
    process.kill()
    deadline = time.monotonic() + 10
    # Nobody has asked how it ended, so its number is still taken.
    while Path(f"/proc/{process.pid}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, 0)
    assert not pid_exists(process.pid)
    process.wait()
    assert not pid_exists(process.pid)


def test_a_process_that_began_later_is_another_one_with_the_same_number(process):
    assert not pid_exists(process.pid, seen=time.time() - CLOCK_SECONDS - 5)


def test_a_process_that_has_run_for_long_is_still_the_same():
    assert pid_exists(os.getppid(), seen=time.time())
    assert pid_exists(1, seen=time.time())  # another user's, unless the tests run as root


def test_a_number_that_no_process_can_have_is_none():
    assert not pid_exists(2**40)
