"""What a notebook gets: the same latents and images as the commands, and no torch before."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import ldm_lightning
from ldm_lightning.utils.image import to_uint8
from tests.autoencoder.first_stages import write_checkpoint
from tests.cli.run import command
from tests.cli.second_stage import tiny_second, trained_first_stage


@pytest.mark.parametrize("kind", ["gaussian", "quantizer"])
def test_a_first_stage_encodes_to_what_its_decoder_receives(tmp_path, kind):
    path = write_checkpoint(tmp_path / "last.ckpt", kind)
    first_stage = ldm_lightning.open_first_stage(path)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        expected = first_stage.opened.autoencoder(images)
    latents = first_stage.encode(images)
    assert latents.shape == (2, 4, 4, 4)
    assert torch.equal(latents, expected.bottleneck.latents)
    assert torch.equal(first_stage.decode(latents), expected.reconstructions.clamp(-1, 1))
    raw = ldm_lightning.open_first_stage(path, weights="raw").encode(images)
    assert not torch.equal(raw, latents)
    with pytest.raises(ValueError, match="15"):
        first_stage.encode(images[..., :15])
    with pytest.raises(ValueError, match=r"\[3, 16, 16\]"):
        first_stage.encode(images[0])


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    """A class-conditional model after two updates, and its folder."""
    folder = tmp_path_factory.mktemp("generator")
    first = trained_first_stage(folder, max_steps=2)
    words = tiny_second(first, max_steps=2, conditioner="class_label", trainer__precision=32)
    ended = command("train", [*words, "output_dir=second"], folder)
    assert ended.code == 0, ended.output
    return folder / "second"


def test_a_generator_makes_the_images_of_the_command(generator):
    words = [f"checkpoint={generator}", "num_samples=3", "seed=5", "labels=[2,0]"]
    ended = command("sample", [*words, "output=samples"], generator.parent)
    assert ended.code == 0, ended.output
    files = sorted((generator.parent / "samples" / "images").iterdir())
    expected = np.stack([np.asarray(Image.open(file)) for file in files])
    images = ldm_lightning.open_generator(generator).sample(3, [2, 0], seed=5, batch_size=2)
    assert images.dtype == torch.float32
    assert float(images.abs().max()) <= 1
    difference = to_uint8(images).permute(0, 2, 3, 1).numpy().astype(int) - expected
    assert abs(difference).max() <= 1  # batches of another size round otherwise


def test_labels_are_one_for_all_or_taken_in_turn(generator):
    opened = ldm_lightning.open_generator(generator)
    ones, turns = opened.sample(2, 1), opened.sample(2, [1, 0])
    assert torch.equal(ones[0], turns[0])
    assert not torch.equal(ones[1], turns[1])
    torch.testing.assert_close(opened.sample(2), opened.sample(2, [0, 1]))
    with pytest.raises(ValueError, match="99"):
        opened.sample(1, 99)
    with pytest.raises(ValueError, match="-1"):
        opened.sample(-1)


def test_the_package_imports_nothing_until_it_is_used():
    code = "import sys, ldm_lightning; print(sorted({'torch', 'hydra', 'numpy'} & {*sys.modules}))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
    assert {"open_first_stage", "open_generator"} <= set(dir(ldm_lightning))
    with pytest.raises(AttributeError, match=re.escape("'open_nothing'")):
        _ = ldm_lightning.open_nothing
