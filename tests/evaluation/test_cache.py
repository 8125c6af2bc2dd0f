import logging
import math

import pytest

from ldm_lightning.evaluation.cache import EvaluationCache, FirstStageRecord

KEY = {"weights_hash": "a", "precision": "32", "data": {"images": "b", "num_images": 3}}
RECORD = FirstStageRecord(
    scalars={"psnr": 20.125, "latent/std": 9.5},
    protocol={"psnr": {"images": "b", "num_images": 3}},
    gray_psnr=11.0,
    num_images=3,
    image_shape=(3, 32, 32),
)


@pytest.fixture
def grid(tmp_path):
    path = tmp_path / "grid.png"
    path.write_bytes(b"picture")
    return path


@pytest.fixture
def cache(tmp_path):
    return EvaluationCache(tmp_path / "cache", KEY)


def test_a_record_comes_back_as_it_was_with_its_grid(cache, grid):
    assert cache.load() is None
    cache.save(RECORD, grid)
    assert cache.load() == RECORD
    assert cache.grid.read_bytes() == b"picture"
    assert sorted(cache.directory.iterdir()) == sorted([cache.path, cache.grid])


def test_what_was_not_finite_is_nan_again(cache, grid):
    cache.save(FirstStageRecord({"psnr": math.inf, "ssim": 0.5}, {}, 11.0, 3, (3, 32, 32)), grid)
    scalars = cache.load().scalars
    assert math.isnan(scalars["psnr"])
    assert scalars["ssim"] == 0.5


@pytest.mark.parametrize("change", [{"weights_hash": "c"}, {"precision": "bf16"}, {"data": {}}])
def test_anything_else_finds_nothing(cache, grid, change):
    cache.save(RECORD, grid)
    assert EvaluationCache(cache.directory, {**KEY, **change}).load() is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"key": {}, "record": {}}', "\x00\xff"])
def test_a_damaged_record_is_not_used(cache, grid, content, caplog):
    cache.save(RECORD, grid)
    cache.path.write_text(content, encoding="latin-1")
    with caplog.at_level(logging.WARNING):
        assert cache.load() is None
    assert str(cache.path) in caplog.text


def test_an_edited_or_a_foreign_record_is_not_used(cache, grid, caplog):
    cache.save(RECORD, grid)
    text = cache.path.read_text()
    for old, new, reason in (
        ("20.125", "25.125", "changed"),
        ("20.125", '"20"', "changed"),
        ('"weights_hash": "a"', '"weights_hash": "z"', "something else"),
    ):
        caplog.clear()
        cache.path.write_text(text.replace(old, new))
        assert cache.load() is None
        assert reason in caplog.text
    cache.path.write_text(text)
    assert cache.load() == RECORD


def test_a_record_without_its_grid_is_not_used(cache, grid):
    cache.save(RECORD, grid)
    cache.grid.unlink()
    assert cache.load() is None


def test_a_cache_that_cannot_be_written_costs_a_warning_alone(tmp_path, grid, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with caplog.at_level(logging.WARNING):
        EvaluationCache(blocked, KEY).save(RECORD, grid)
    assert str(blocked) in caplog.text
