"""A file that names a package of the user's own is opened by a command that names it too."""

import re

import pytest
import torch
import yaml

from ldm_lightning.checkpoints.targets import check_targets
from ldm_lightning.restore.first_stage import open_first_stage, rebuild_autoencoder
from tests.autoencoder.first_stages import write_checkpoint

PACKAGE = "bottlenecks_from_outside"
SOURCE = """
from pathlib import Path
import torch
from ldm_lightning.bottleneck.base import Bottleneck, BottleneckOutput
Path(__file__).with_name("imported").touch()
class Tanh(Bottleneck):
    def forward(self, encoded, *, noise=None):
        return BottleneckOutput(latents=encoded.tanh(), continuous=encoded.tanh())
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package; its main module re-exports a class of another one."""
    folder = tmp_path / "installed" / PACKAGE
    folder.mkdir(parents=True)
    (folder / "tanh.py").write_text(SOURCE)
    (folder / "__init__.py").write_text("")
    (folder / "exports.py").write_text(f"from {PACKAGE}.tanh import Tanh, torch\n")
    monkeypatch.syspath_prepend(folder.parent)
    return folder


def checkpoint(folder, **says):
    """A first stage whose bottleneck is of the package; the file says that it is trusted."""
    path = write_checkpoint(folder / "run" / "checkpoints" / "last.ckpt", "identity")
    content = torch.load(path, weights_only=True)
    content["first_stage"]["bottleneck"] = {"_target_": f"{PACKAGE}.tanh.Tanh"}
    content |= says
    content["first_stage"] |= says
    torch.save(content, path)
    config = {"trusted_packages": [PACKAGE], "data": {"_target_": f"{PACKAGE}.tanh.Tanh"}}
    (path.parent.parent / "config.yaml").write_text(yaml.safe_dump(config))
    return path


def test_a_file_that_names_its_own_package_is_refused_and_nothing_is_imported(package, tmp_path):
    path = checkpoint(tmp_path, trusted_packages=[PACKAGE])
    with pytest.raises(ValueError, match=re.escape(f"trusted_packages=[{PACKAGE}]")):
        open_first_stage(path, weights="ema")
    with pytest.raises(ValueError, match=PACKAGE):
        open_first_stage(path, weights="ema", trusted_packages=["another_package", PACKAGE[:-1]])
    assert not (package / "imported").exists()


def test_whoever_opens_it_names_the_package_again(package, tmp_path):
    opened = open_first_stage(checkpoint(tmp_path), weights="ema", trusted_packages=[PACKAGE])
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert float(opened.autoencoder.encode(images).latents.abs().max()) <= 1
    assert opened.run_config().data._target_ == f"{PACKAGE}.tanh.Tanh"


def test_a_run_may_name_what_its_first_stage_may(package, tmp_path):
    path = write_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    stored = {"data": {"_target_": f"{PACKAGE}.tanh.Tanh"}, "loss": {"kl_weight": 1e-6}}
    stored["loss"]["terms"] = {"own": {"_target_": f"{PACKAGE}.tanh.Tanh"}}
    config = path.parent.parent / "config.yaml"
    config.write_text(yaml.safe_dump(stored))
    with pytest.raises(ValueError, match=re.escape(f"trusted_packages=[{PACKAGE}]")):
        open_first_stage(path, weights="ema").run_config()
    config.write_text(yaml.safe_dump({"loss": stored["loss"]}))
    # Of the loss one number is read: its terms need no permission.
    assert open_first_stage(path, weights="ema").run_config() == {"loss": {"kl_weight": 1e-6}}


def test_a_trusted_package_may_export_its_own_classes_and_no_others(package):
    allowed = [PACKAGE]
    check_targets({"_target_": f"{PACKAGE}.exports.Tanh"}, allowed=allowed)
    for target in (f"{PACKAGE}.exports.torch", f"{PACKAGE}.tanh.Path", f"{PACKAGE}.exports.Gone"):
        with pytest.raises(ValueError, match=re.escape(target)):
            check_targets({"_target_": target}, allowed=allowed)


@pytest.mark.parametrize("target", ["os.system", "builtins.eval", "ldm_lightning.train.main"])
def test_trust_is_not_proposed_for_python_and_ourselves(target):
    with pytest.raises(ValueError, match=re.escape(target)) as refused:
        rebuild_autoencoder({"autoencoder": {"_target_": target}, "bottleneck": {}})
    assert "trusted_packages" not in str(refused.value)
