"""A lock lives exactly as long as the process that took it."""

import os
import signal
import socket
import subprocess
import sys
import textwrap

import pytest

from ldm_lightning.storage.locking import Holder, LockedError, holder_of, sole_holder

HOLDS = """
    import os, sys, time
    from pathlib import Path
    from ldm_lightning.storage.locking import sole_holder

    with sole_holder(Path(sys.argv[1]), what="busy", remedy=""):
        child = os.fork()  # as a loader does, whose workers may outlive it
        if not child:
            time.sleep(60)
        print(child, flush=True)
        time.sleep(60)
"""


@pytest.fixture
def held(tmp_path):
    """A lock file, the process that holds it, and a child of that."""
    path = tmp_path / ".lock"
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDS), path], stdout=subprocess.PIPE, text=True
    )
    child = int(process.stdout.readline())
    yield path, process, child
    os.kill(child, signal.SIGKILL)
    process.kill()
    process.stdout.close()
    process.wait()


def lock(path):
    return sole_holder(path, what=f"writing to {path.parent}", remedy="Wait.")


def test_the_holder_is_named_and_its_end_frees_the_lock_whatever_it_has_started(held):
    path, process, child = held
    holder = Holder(process.pid, socket.gethostname())
    assert holder_of(path) == holder
    with pytest.raises(LockedError) as refusal, lock(path):
        pass
    assert refusal.value.holder == holder
    for part in (process.pid, socket.gethostname(), path.parent):
        assert str(part) in str(refusal.value)
    assert holder_of(path) == holder  # asking and trying take nothing away
    process.kill()
    process.wait()
    os.kill(child, 0)  # lives on
    assert holder_of(path) is None
    with lock(path):
        assert holder_of(path) == Holder(os.getpid(), socket.gethostname())
    assert holder_of(path) is None


def test_one_process_does_not_hold_a_lock_twice(tmp_path):
    with lock(tmp_path / "a"), lock(tmp_path / "b"):
        with pytest.raises(LockedError), lock(tmp_path / "a"):
            pass
        assert holder_of(tmp_path / "a").pid == os.getpid()


def test_nobody_holds_what_is_not_there(tmp_path):
    assert holder_of(tmp_path / "missing" / ".lock") is None


@pytest.mark.parametrize("record", [b"", b"no number\n", b"\xff\xfe", b"12" * 10_000])
def test_a_damaged_record_names_nobody(tmp_path, record):
    path = tmp_path / ".lock"
    with lock(path):
        path.write_bytes(record)
        with pytest.raises(LockedError) as refusal, lock(path):
            pass
    assert refusal.value.holder.host is None


# Where the file system has no locks


@pytest.fixture
def without_locks(monkeypatch):
    def refuse(file, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)


@pytest.mark.usefixtures("without_locks")
def test_what_cannot_be_locked_is_used_and_told(tmp_path, caplog):
    with lock(tmp_path / ".lock"):
        pass
    assert str(tmp_path / ".lock") in caplog.text
    assert "Function not implemented" in caplog.text


@pytest.mark.usefixtures("without_locks")
def test_a_living_process_of_this_machine_is_refused_without_locks_too(tmp_path):
    path = tmp_path / ".lock"
    path.write_text(f"{os.getppid()} {socket.gethostname()}\n")
    assert holder_of(path).pid == os.getppid()
    with pytest.raises(LockedError, match=str(os.getppid())), lock(path):
        pass
    path.write_text(f"{os.getppid()} another-machine\n")
    with lock(path):
        pass
