"""Threads of OpenMP sleep soon, unless the user wants otherwise."""

import os
import subprocess
import sys

import pytest

from ldm_lightning.utils.threads import SPIN_COUNT, WAIT_SETTINGS, shorten_waits


@pytest.mark.parametrize("name", WAIT_SETTINGS)
def test_what_the_user_has_set_stays(name, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    environment, given = {}, {name: "1"}
    shorten_waits(environment)
    shorten_waits(given)
    assert environment == {"GOMP_SPINCOUNT": str(SPIN_COUNT)}
    assert given == {name: "1"}


def test_it_is_too_late_after_torch():
    import torch  # noqa: F401

    environment = {}
    shorten_waits(environment)
    assert not environment


@pytest.mark.slow
def test_torchs_openmp_obeys_in_this_process_and_in_those_it_starts():
    kept = {name: value for name, value in os.environ.items() if name not in WAIT_SETTINGS}
    start = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import torch'])"
    told = [
        subprocess.run(
            [sys.executable, "-c", f"import ldm_lightning.cli; {then}"],
            env={**kept, "OMP_DISPLAY_ENV": "VERBOSE"},
            capture_output=True,
            text=True,
            check=True,
        ).stderr
        for then in ("import torch", start)
    ]
    if "GOMP_SPINCOUNT" not in told[0]:
        pytest.skip("torch brings another OpenMP here")
    assert all(f"GOMP_SPINCOUNT = '{SPIN_COUNT}'" in text for text in told)
