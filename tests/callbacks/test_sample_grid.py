from types import SimpleNamespace

import pytest
import torch

from ldm_lightning.callbacks.sample_grid import SampleGrid
from ldm_lightning.runs.run_folder import RunFolder


def drawn(folder, step, samples, *, is_global_zero=True, sanity_checking=False):
    """What is in the folder of images after a validation."""
    trainer = SimpleNamespace(
        global_step=step, is_global_zero=is_global_zero, sanity_checking=sanity_checking, loggers=[]
    )
    pictures = {"samples": samples, "ceiling": samples, "prior": samples}
    generated = None if samples is None else SimpleNamespace(**pictures)
    module = SimpleNamespace(generated=generated, generation=SimpleNamespace(num_columns=2))
    SampleGrid(RunFolder.create(folder)).on_validation_end(trainer, module)
    images = folder / "images"
    return {path.name: path.read_bytes() for path in images.iterdir()} if images.is_dir() else {}


def test_samples_are_drawn_every_time_and_what_never_changes_once(tmp_path):
    first = drawn(tmp_path, 4, torch.zeros(4, 3, 8, 8))
    both = drawn(tmp_path, 8, torch.ones(4, 3, 8, 8))
    fixed = {"ceiling.png", "prior.png", "legend.txt"}
    assert set(first) == fixed | {"samples_4.png", "samples_latest.png"}
    assert set(both) == set(first) | {"samples_8.png"}
    assert all(both[name] == first[name] for name in fixed)
    assert both["samples_8.png"] == both["samples_latest.png"] != first["samples_latest.png"]


@pytest.mark.parametrize("case", [{"is_global_zero": False}, {"sanity_checking": True}])
def test_nothing_is_drawn_elsewhere_or_before_training(tmp_path, case):
    assert drawn(tmp_path, 0, torch.zeros(4, 3, 8, 8), **case) == {}
    assert drawn(tmp_path, 0, None) == {}
