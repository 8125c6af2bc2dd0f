"""``~`` in words and paths, and machines without a home."""

import os
import pwd
import stat
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from ldm_lightning.checks.keys import _expand_homes
from ldm_lightning.checks.kinds import KINDS, is_path
from ldm_lightning.config import CONF_DIR, register_resolvers
from ldm_lightning.storage import home
from ldm_lightning.storage.home import cache_folder, ensure_home, expanded, expanded_override

PATH_KEYS = [key.replace("*", "features.") for key, kind in KINDS.items() if kind.name == "path"]


@pytest.fixture(params=["/home/ann", "/home/Ann Ö'Neil (2)"])
def ann(request, monkeypatch):
    monkeypatch.setenv("HOME", request.param)
    return request.param


@pytest.fixture
def homeless(monkeypatch, tmp_path):
    """No HOME, and a user without an account."""

    def unknown(uid):
        raise KeyError(uid)

    for name in ("HOME", "XDG_CACHE_HOME", "USER", "LOGNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(home.tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_every_key_of_a_path_is_known():
    assert {"data.root", "output_dir", "checkpoint", "features.weights_dir"} <= {*PATH_KEYS}
    assert len(PATH_KEYS) >= 12
    assert not is_path("name")


@pytest.mark.parametrize("key", PATH_KEYS)
@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_the_home_is_put_into_every_word(key, quote, ann):
    word = expanded_override(f"{key}={quote}~/x y{quote}" if quote else f"{key}=~/x")
    found = OverridesParser.create().parse_override(word)
    assert found.key_or_group == key
    assert found.value() == (f"{ann}/x y" if quote else f"{ann}/x")


@pytest.mark.parametrize("key", PATH_KEYS)
def test_the_home_is_put_into_every_path_of_a_file(key, ann):
    cfg = OmegaConf.create({})
    OmegaConf.update(cfg, key, ["~/a", "s3://b/~/c"] if key == "runs" else "~/a")
    OmegaConf.update(cfg, "name", "~/a")
    _expand_homes(cfg)
    found = OmegaConf.select(cfg, key)
    assert found == ([f"{ann}/a", "s3://b/~/c"] if key == "runs" else f"{ann}/a")
    assert cfg.name == "~/a"


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("runs=[~/a,~/b]", "runs=[/h/a,/h/b]"),
        ("data.root=~/a,~/b", "data.root=/h/a,/h/b"),
        ("first_stage.overrides=['data.root=~/a']", "first_stage.overrides=['data.root=/h/a']"),
        ("output_dir=~", "output_dir=/h"),
        ("data.root=s3://bucket/~x", "data.root=s3://bucket/~x"),
        ("data.root=/a/~/b", "data.root=/a/~/b"),
        ("~callbacks.ema", "~callbacks.ema"),
        ("--config-dir=~/a", "--config-dir=~/a"),
        ("name=a~b", "name=a~b"),
    ],
)
def test_words_of_several_paths_and_others(word, expected, monkeypatch):
    monkeypatch.setenv("HOME", "/h")
    assert expanded_override(word) == expected


def test_a_home_that_is_not_known_is_refused_by_name(homeless):
    with pytest.raises(ValueError, match="data.root=~nobody_of_that_name/x"):
        expanded_override("data.root=~nobody_of_that_name/x")
    with pytest.raises(ValueError, match="output_dir=~/x"):
        expanded("~/x", key="output_dir")


def test_without_home_and_account_caches_are_temporary_and_that_is_said_once(homeless, caplog):
    ensure_home()
    ensure_home()
    assert [str(homeless) in message for message in caplog.messages] == [True]
    assert cache_folder().is_relative_to(homeless)
    assert Path.home().is_relative_to(homeless)
    mode = Path.home().stat().st_mode
    assert not mode & (stat.S_IRWXG | stat.S_IRWXO)
    register_resolvers()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        assert compose("train").cache_dir == str(cache_folder())


def test_a_temporary_folder_that_somebody_prepared_is_not_used(homeless):
    waiting = homeless / f"ldm_lightning_{os.getuid()}"
    waiting.symlink_to(homeless)
    ensure_home()
    assert Path.home() != waiting
    assert Path.home().parent == homeless


def test_a_home_is_left_as_it_is(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    ensure_home()
    assert os.environ["HOME"] == str(tmp_path)
    assert cache_folder() == tmp_path / ".cache" / "ldm_lightning"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    assert cache_folder() == tmp_path / "c" / "ldm_lightning"
    assert not caplog.messages
