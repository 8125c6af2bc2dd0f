"""Shared by all tests: one thread a process, no W&B, no cache outside the test's folder."""

import copy
import os

import pytest
import torch
import yaml

from ldm_lightning.utils.memory import keep_freed_memory

os.environ["WANDB_MODE"] = "disabled"
torch.set_num_threads(1)
keep_freed_memory()

_load_yaml, _contents = yaml.load, {}


def _load_yaml_once(stream, Loader):  # noqa: N803
    """Parse a text once: every command of the tests composes the same files again."""
    text = stream if isinstance(stream, str | bytes) else stream.read()
    key = (text, Loader.__name__)
    if key not in _contents:
        _contents[key] = _load_yaml(text, Loader)
    return copy.deepcopy(_contents[key])


yaml.load = _load_yaml_once


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
