"""``python -m ldm_lightning.floor``: against numpy, on any size, and what it refuses."""

import csv
import json

import numpy as np
import pytest
import torch

from ldm_lightning.autoencoder.linear_fit import COLOR_GAIN
from ldm_lightning.evaluation.floors import LatentShape, fit_floors, measure_floors
from ldm_lightning.metrics.features import tiny_features
from tests.cli.run import command, run_folder, write_images

SMALL = ["data.val_fraction=0.3", "data.num_workers=0", "data.val_crops_per_image=2"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    write_images(folder, 30, size=48)
    return folder


@pytest.fixture(scope="module")
def measured(photos, tmp_path_factory):
    """The rows of a full run on images of 24x16, and what was said."""
    folder = tmp_path_factory.mktemp("floor")
    words = [
        *(f"data.root={photos}", *SMALL, "resolution=[24,16]", "full=true", "num_codes=[8]"),
        *("downsampling_factors=[4,8,5]", "latent_channels=[2,16]"),
    ]
    ended = command("floor", words, folder)
    assert ended.code == 0, ended.output
    return run_folder(folder, "floor"), ended


def numpy_floor(train, held_out, factor, channels):
    """Mean PSNR in dB of the held-out images, all in float64 with plain numpy."""

    def patches(images):
        n, c, h, w = images.shape
        cut = images.reshape(n, c, h // factor, factor, w // factor, factor)
        return cut.transpose(0, 2, 4, 1, 3, 5).reshape(n, h // factor, w // factor, -1)

    def around(latents):
        rows, columns = latents.shape[1:3]
        padded = np.pad(latents, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        parts = [padded[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
        return np.concatenate([*parts, np.ones((*latents.shape[:3], 1))], axis=-1)

    def latents(cut):
        centered = (cut - mean).reshape(*cut.shape[:3], train.shape[1], -1)
        gray = centered.mean(3, keepdims=True)
        color = (centered - gray).mean(4, keepdims=True)
        return (centered + (COLOR_GAIN - 1) * color).reshape(cut.shape) @ directions

    cut = patches(train)
    mean = cut.reshape(-1, cut.shape[-1]).mean(0)
    directions = np.eye(cut.shape[-1])
    weighed = latents(cut).reshape(-1, cut.shape[-1])
    directions = np.linalg.svd(weighed, full_matrices=False)[2][:channels].T
    inputs = around(latents(cut)).reshape(-1, 9 * directions.shape[1] + 1)
    decoder = np.linalg.lstsq(inputs, cut.reshape(-1, cut.shape[-1]), rcond=None)[0]
    found, truth = (around(latents(patches(held_out))) @ decoder, patches(held_out))
    shown = np.round((found.clip(-1, 1) + 1) * 127.5) / 127.5 - 1
    error = shown - truth
    return float((-10 * np.log10(np.square(error / 2).mean((1, 2, 3)))).mean())


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_equals_numpy(channels):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(160, channels, 6, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bicubic").clamp(0, 1)
    uint8 = (smooth * 255).to(torch.uint8)
    train, held_out = uint8[:120], uint8[120:]
    data = _Held(held_out)
    floors = fit_floors(
        train, downsampling_factors=[4, 8], latent_channels=[2, 6], num_codes=[], seed=0
    )
    rows = measure_floors(floors, data, None, protocol={"num_images": 40})
    assert [row.shape for row in rows] == [
        LatentShape(factor, count) for factor in (4, 8) for count in (2, 6)
    ]
    as_numpy = [part.numpy().astype(np.float64) / 127.5 - 1 for part in (train, held_out)]
    for row in rows:
        shape = row.shape
        expected = numpy_floor(*as_numpy, shape.downsampling_factor, shape.latent_channels)
        assert row.scalars["psnr"] == pytest.approx(expected, abs=0.02)
        assert row.num_images == 40
    full = measure_floors(floors, data, tiny_features(), protocol={"num_images": 40})
    for row, other in zip(rows, full, strict=True):
        assert other.scalars["psnr"] == row.scalars["psnr"]
        assert other.scalars["ssim"] == pytest.approx(row.scalars["ssim"], abs=1e-12)


class _Held:
    """Held-out images in batches of 16."""

    def __init__(self, images):
        self.images = images.float() / 127.5 - 1

    def val_dataloader(self):
        return [{"image": part} for part in self.images.split(16)]


def test_rows_files_and_what_does_not_divide(measured):
    folder, ended = measured
    facts = json.loads((folder / "floor.json").read_text())
    with (folder / "floor.csv").open() as file:
        lines = list(csv.DictReader(file))
    shapes = [
        tuple(row[name] for name in ("downsampling_factor", "latent_channels", "num_codes"))
        for row in facts["rows"]
    ]
    assert shapes == [(f, c, k) for f in (4, 8) for c in (2, 16) for k in (None, 8)]
    assert "Left out: f 5" in ended.output
    for row, line in zip(facts["rows"], lines, strict=True):
        assert float(line["psnr"]) == row["psnr"]
        assert {"ssim", "perceptual_tiny", "rfd_tiny"} <= row.keys()
        assert row["compression"] == 3 * row["downsampling_factor"] ** 2 / row["latent_channels"]
    plain = {row[:2]: facts["rows"][i] for i, row in enumerate(shapes) if row[2] is None}
    coded = {row[:2]: facts["rows"][i] for i, row in enumerate(shapes) if row[2] == 8}
    for shape, row in plain.items():
        assert row["psnr"] > coded[shape]["psnr"]
        assert 1 < coded[shape]["codebook_perplexity"] <= 8
    assert plain[8, 16]["psnr"] > plain[8, 2]["psnr"]
    four, eight = plain[4, 2], plain[8, 2]
    assert eight["denoiser_flops"] is None  # latents of 3x2
    assert four["denoiser_flops"] > 0
    assert (folder / "floor.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["latent_channels=[]"], "latent_channels"),
        (["downsampling_factors=[0]"], "downsampling_factors"),
        (["latent_channels=[many]"], "latent_channels"),
        (["downsampling_factors=[7]"], "downsampling_factors"),
        (["full=true", "num_codes=[1]"], "num_codes"),
        (["second_stage=kl_f8"], "second_stage"),
    ],
)
def test_wrong_input_is_named(photos, tmp_path, words, named):
    ended = command("floor", [f"data.root={photos}", *SMALL, *words], tmp_path)
    assert ended.code == 1
    (line,) = ended.output.strip().splitlines()
    assert named in line


def test_images_must_be_named(tmp_path):
    ended = command("floor", [], tmp_path)
    assert ended.code == 1
    assert "data.root" in ended.output
