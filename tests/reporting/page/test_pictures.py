import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_lightning.reporting.page import pictures
from ldm_lightning.reporting.page.pictures import compare_reconstructions, find_samples
from ldm_lightning.utils.image import save_grid, to_uint8
from tests.reporting.page.runs_on_disk import example_run, random_images, write_reconstructions


def pixels(uri):
    content = base64.b64decode(uri.partition(",")[2])
    return np.array(Image.open(io.BytesIO(content)))


def strip_of(images):
    """Images side by side as 8-bit pixels, [H, B * W, 3]."""
    return torch.cat(list(to_uint8(images).permute(0, 2, 3, 1)), dim=1).numpy()


def drawn_run(folder, number, *, size=16, count=4, image_seed=0):
    images = random_images(count, size, seed=image_seed)
    reconstructions = random_images(count, size, seed=100 + number)
    where = folder / str(number)
    write_reconstructions(where, images=images, reconstructions=reconstructions)
    run = example_run(number, folder=where, settings={"resolution": size})
    return run, images, reconstructions


@pytest.mark.parametrize("size", [16, 32, 128])
def test_pixels_are_those_that_were_drawn(tmp_path, size):
    run, images, reconstructions = drawn_run(tmp_path, 1, size=size)
    (comparison,) = compare_reconstructions([run])
    assert (comparison.width, comparison.height, comparison.count) == (size, size, 4)
    assert not comparison.is_cut
    assert np.array_equal(pixels(comparison.originals), strip_of(images))
    assert np.array_equal(pixels(comparison.reconstructions[0].strip), strip_of(reconstructions))


def test_images_need_not_be_square(tmp_path):
    images, reconstructions = (random_images(3, 32, seed=n)[:, :, :, :24] for n in (1, 2))
    write_reconstructions(tmp_path, images=images, reconstructions=reconstructions)
    run = example_run(1, folder=tmp_path, settings={"resolution": "[32, 24]"})
    (comparison,) = compare_reconstructions([run])
    assert (comparison.width, comparison.height, comparison.count) == (24, 32, 3)
    assert np.array_equal(pixels(comparison.originals), strip_of(images))


def test_a_large_grid_needs_no_configuration(tmp_path):
    images, reconstructions = (random_images(2, 100, seed=n) for n in (1, 2))
    write_reconstructions(tmp_path, images=images, reconstructions=reconstructions)
    (comparison,) = compare_reconstructions([example_run(1, folder=tmp_path)])
    assert np.array_equal(pixels(comparison.originals), strip_of(images))


def test_runs_stand_together_where_they_drew_the_same_images(tmp_path):
    runs = [drawn_run(tmp_path, n, image_seed=n % 2)[0] for n in (1, 2, 3)]
    groups = compare_reconstructions(runs)
    numbers = [[one.run.number for one in group.reconstructions] for group in groups]
    assert numbers == [[1, 3], [2]]


def test_large_images_show_their_center(tmp_path):
    run, images, _ = drawn_run(tmp_path, 1, size=320, count=2)
    (comparison,) = compare_reconstructions([run])
    assert (comparison.width, comparison.height, comparison.is_cut) == (256, 256, True)
    assert np.array_equal(pixels(comparison.originals), strip_of(images[:, :, 32:288, 32:288]))


def test_many_runs_show_fewer_images_each_but_exact_ones(tmp_path, monkeypatch):
    drawn = [drawn_run(tmp_path, n, size=64) for n in (1, 2)]
    monkeypatch.setattr(pictures, "MAX_BYTES", 2 * 2 * 3 * 64 * 64 + 2000)  # two of noise each
    (comparison,) = compare_reconstructions([run for run, _, _ in drawn])
    assert 1 <= comparison.count < 4
    for one, (_, _, reconstructions) in zip(comparison.reconstructions, drawn, strict=True):
        assert np.array_equal(pixels(one.strip), strip_of(reconstructions[: comparison.count]))


@pytest.mark.parametrize("keep", [0, 10, 1000])
def test_a_picture_that_is_being_written_is_left_out(tmp_path, keep):
    run, _, _ = drawn_run(tmp_path, 1)
    path = run.folder / "images" / "reconstruction_latest.png"
    path.write_bytes(path.read_bytes()[:keep])
    assert compare_reconstructions([run]) == []


def test_a_grid_of_another_make_is_left_out(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (101, 57)).save(tmp_path / "images" / "reconstruction_latest.png")
    assert compare_reconstructions([example_run(1, folder=tmp_path)]) == []


def test_samples_stand_beside_their_ceiling(tmp_path):
    run = example_run(1, folder=tmp_path)
    assert find_samples([run]) == []
    save_grid(random_images(4, 16), tmp_path / "images" / "samples_latest.png", num_columns=2)
    (grid,) = find_samples([run])
    assert grid.ceiling is None
    save_grid(random_images(2, 16), tmp_path / "images" / "ceiling.png", num_columns=2)
    (grid,) = find_samples([run])
    assert pixels(grid.samples.content).shape == (204, 204, 3)
    assert pixels(grid.ceiling.content).shape == (104, 204, 3)


def test_a_chain_shows_its_own_samples_and_the_ceiling_of_its_second_stage(tmp_path):
    save_grid(random_images(4, 16), tmp_path / "samples" / "grid.png", num_columns=4)
    ceiling = tmp_path / "second_stage" / "images" / "ceiling.png"
    save_grid(random_images(2, 16), ceiling, num_columns=2)
    (grid,) = find_samples([example_run(1, folder=tmp_path)])
    assert grid.ceiling is not None


def test_large_grids_become_small(tmp_path):
    save_grid(random_images(1, 800), tmp_path / "grid.png", num_columns=1)
    (grid,) = find_samples([example_run(1, folder=tmp_path)])
    assert max(pixels(grid.samples.content).shape) == pictures.MAX_GRID


def test_samples_of_a_chain_stand_for_those_of_its_second_stage(tmp_path):
    chain = example_run(1, folder=tmp_path, kind="chain")
    second = example_run(2, folder=tmp_path / "second_stage")
    for path in (tmp_path / "samples" / "grid.png", second.folder / "images" / "ceiling.png"):
        save_grid(random_images(4, 16), path, num_columns=2)
    save_grid(random_images(1, 16), second.folder / "images" / "samples_latest.png", num_columns=1)
    (grid,) = find_samples([second, chain])
    assert grid.run == chain
    assert grid.ceiling is not None


def test_only_png_is_read_whatever_a_file_is_called(tmp_path):
    for content in (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"GIF89a",
        b"\x89PNG\r\n",
    ):
        (tmp_path / "grid.png").write_bytes(content)
        assert find_samples([example_run(1, folder=tmp_path)]) == []
    Image.new("RGB", (9, 9)).save(tmp_path / "grid.png", format="JPEG")
    assert find_samples([example_run(1, folder=tmp_path)]) == []
