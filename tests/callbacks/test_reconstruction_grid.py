import os
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ldm_lightning.callbacks.ema import Ema
from ldm_lightning.callbacks.reconstruction_grid import ReconstructionGrid
from ldm_lightning.runs.run_folder import RunFolder
from ldm_lightning.utils.image import to_uint8
from tests.callbacks.recorder import Recorder
from tests.callbacks.tiny_module import (
    TinyBottleneckOutput,
    TinyModule,
    TinyOutput,
    batch_of,
    fit,
    make_trainer,
)

TILE = 96 + 4  # images of 4 pixels are enlarged 24 times; 4 pixels of white lie between tiles


def tiles(path, rows, columns):
    """Read a grid back: uint8 [rows, columns, 3, 4, 4]."""
    picture = np.asarray(Image.open(path))
    assert picture.shape == (rows * TILE + 4, columns * TILE + 4, 3)
    found = np.empty((rows, columns, 3, 4, 4), dtype=np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = 4 + row * TILE, 4 + column * TILE
            tile = picture[top : top + 96, left : left + 96]
            found[row, column] = tile[12::24, 12::24].transpose(2, 0, 1)
    return torch.from_numpy(found)


def grid_run(tmp_path, module, *, logger=False, extra=(), **options):
    folder = RunFolder.create(tmp_path)
    callbacks = [*extra, ReconstructionGrid(folder, num_images=3, **options)]
    trainer = make_trainer(callbacks, max_steps=10, enable_checkpointing=False, logger=logger)
    fit(trainer, module)
    return folder


def test_rows_are_inputs_reconstructions_and_amplified_errors(tmp_path):
    class Darker(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.tensor(0.125))

        def forward(self, images, noise=None):
            latents = images
            return TinyOutput(images - self.shift, TinyBottleneckOutput(latents, latents, {}))

    class Module(TinyModule):
        def training_step(self, batch, batch_idx):
            self.optimizers()[0].step()  # without gradients: counts, changes nothing

        def validation_step(self, batch, batch_idx):
            pass

    module = Module()
    module.autoencoder = Darker()
    folder = grid_run(tmp_path, module, error_factor=4.0)
    images = torch.cat([batch_of(0), batch_of(1)])[:3]
    found = tiles(folder.images / "reconstruction_10.png", rows=3, columns=3)
    assert torch.equal(found[0], to_uint8(images))
    assert torch.equal(found[1], to_uint8(images - 0.125))
    clipped = (images - 0.125) < -1  # shown, as saved, without what lies outside the range
    assert ((found[2].float() - 0.5 * 127.5).abs() <= 1)[~clipped].all()
    assert re.search(r"x 4\b.*\b0, .*\b0\.5\b", (folder.images / "legend.txt").read_text())


def test_the_same_images_are_drawn_every_time_and_latest_is_the_last(tmp_path):
    folder = grid_run(tmp_path, TinyModule())
    names = {"reconstruction_5.png", "reconstruction_10.png", "reconstruction_latest.png"}
    assert set(os.listdir(folder.images)) == {*names, "legend.txt"}
    first = tiles(folder.images / "reconstruction_5.png", rows=3, columns=3)
    last = tiles(folder.images / "reconstruction_10.png", rows=3, columns=3)
    assert torch.equal(first[0], last[0])
    assert not torch.equal(first[1], last[1])
    latest = (folder.images / "reconstruction_latest.png").read_bytes()
    assert latest == (folder.images / "reconstruction_10.png").read_bytes()


@pytest.mark.parametrize("ema_first", [True, False])
def test_shows_the_averaged_weights_whatever_the_order_of_callbacks(tmp_path, ema_first):
    ema, folder = Ema(decay=0.9, warm_up=False), RunFolder.create(tmp_path)
    grid = ReconstructionGrid(folder, num_images=3)
    module = TinyModule()
    trainer = make_trainer(
        [ema, grid] if ema_first else [grid, ema], max_steps=5, enable_checkpointing=False
    )
    fit(trainer, module)
    images = torch.cat([batch_of(0), batch_of(1)])[:3]
    raw = module.autoencoder(images).reconstructions.detach()
    ema.on_validation_start(trainer, module)
    averaged = module.autoencoder(images).reconstructions.detach()
    found = tiles(folder.images / "reconstruction_5.png", rows=3, columns=3)
    assert torch.equal(found[1], to_uint8(averaged))
    assert not torch.equal(found[1], to_uint8(raw))


def test_prior_samples_decode_the_same_draws_every_time(tmp_path):
    module = TinyModule()
    seen = []
    decode = module.autoencoder.decode

    def record(latents):
        seen.append(latents.clone())
        return decode(latents)

    module.autoencoder.decode = record
    folder = grid_run(tmp_path, module, prior_samples=64)
    draws = [latents for latents in seen if len(latents) == 64]
    assert len(draws) == 2
    assert torch.equal(draws[0], draws[1])
    assert draws[0].shape == (64, 2, 2, 2)
    assert abs(draws[0].mean()) < 0.2
    assert abs(draws[0].std() - 1) < 0.15
    assert tiles(folder.images / "prior_10.png", rows=8, columns=8).shape[0] == 8


def test_pictures_reach_the_dashboards_under_one_name(tmp_path):
    recorder = Recorder()
    grid_run(tmp_path, TinyModule(), logger=recorder)
    assert recorder.pictures == [
        ("images/reconstruction", f"reconstruction_{step}.png", step) for step in (5, 10)
    ]


@pytest.mark.parametrize(
    "options", [{"num_images": 0}, {"error_factor": 0.0}, {"prior_samples": -1}]
)
def test_refuses_numbers_out_of_range(tmp_path, options):
    with pytest.raises(ValueError, match="num_images >= 1"):
        ReconstructionGrid(RunFolder.create(tmp_path), **options)
