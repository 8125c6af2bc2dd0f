"""Tests of a GPU. ``LDM_TEST_DEVICE=cpu pytest tests/gpu`` runs the same code without one."""

import os

import pytest
import torch

DEVICE = os.environ.get("LDM_TEST_DEVICE", "cuda")


def pytest_collection_modifyitems(config, items):
    """Deselect these tests where there is no GPU; ``pytest -m gpu`` then finds none."""
    if DEVICE != "cuda" or torch.cuda.is_available():
        return
    gone = [item for item in items if item.get_closest_marker("gpu")]
    if gone:
        config.hook.pytest_deselected(items=gone)
        items[:] = [item for item in items if item not in gone]
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line(f"torch sees no GPU: {len(gone)} tests of tests/gpu deselected")


@pytest.fixture(autouse=True)
def _full_float32():
    """Multiply float32 in float32, not in TF32, so that it can be compared with the CPU's."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.fixture
def device() -> torch.device:
    """The device under test, its memory statistics fresh."""
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return torch.device(DEVICE)
