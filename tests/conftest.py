"""Shared by all tests: one thread a process, no W&B, no cache outside the test's folder."""

import os

import pytest
import torch

from ldm_lightning.utils.memory import keep_freed_memory

os.environ["WANDB_MODE"] = "disabled"
torch.set_num_threads(1)
keep_freed_memory()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
