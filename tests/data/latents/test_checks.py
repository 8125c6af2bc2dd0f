"""Every number of a latent cache's index is compared with the shards."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm_lightning.data.latents.cache import LatentCacheError
from ldm_lightning.data.latents.module import LatentDataset
from tests.data.latents.test_module import image_module, photos, write_split, writer  # noqa: F401


@pytest.fixture(scope="module")
def written(photos, tmp_path_factory):  # noqa: F811
    """The training split of a cache, with mirrored copies, variances and classes."""
    folder = tmp_path_factory.mktemp("cache") / "train"
    split = writer(folder, image_module(photos), "train")
    split.index.provenance["images_per_shard"] = 8
    write_split(split)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "train")


def opened(folder):
    return LatentDataset(folder, seed=0, augmented=True)


def test_an_intact_cache_passes(folder):
    opened(folder).digest()


EDITS = {
    "num_samples": lambda index: index["shards"][1].update(num_samples=7),
    "num_samples as text": lambda index: index["shards"][1].update(num_samples="8"),
    "num_bytes": lambda index: index["shards"][1].update(num_bytes=5),
    "content": lambda index: index["shards"][1].update(content="00" * 16),
    "no content": lambda index: index["shards"][1].pop("content"),
    "file": lambda index: index["shards"][1].update(file="00002.safetensors"),
    "file elsewhere": lambda index: index["shards"][1].update(file="../train/00001.safetensors"),
    "fewer shards": lambda index: index["shards"].pop(),
    "no shards": lambda index: index["shards"].clear(),
    "order of shards": lambda index: index["shards"].reverse(),
    "latent_shape": lambda index: index.update(latent_shape=[4, 4, 5]),
    "transposed": lambda index: index.update(latent_shape=[4, 2, 8]),
    "has_variance": lambda index: index.update(has_variance=False),
    "has_variance as number": lambda index: index.update(has_variance=1),
    "num_classes": lambda index: index.update(num_classes=1, class_names=["cat"]),
    "num_classes as text": lambda index: index.update(num_classes="2"),
    "no classes": lambda index: index.update(num_classes=None, class_names=None),
    "class_names": lambda index: index.update(class_names=["cat"]),
    "flip": lambda index: index["provenance"].update(flip=False),
    "dtype": lambda index: index["provenance"].update(dtype="float16"),
    "num_images": lambda index: index["provenance"].update(num_images=50),
    "images": lambda index: index["provenance"].update(images="0"),
    "resolution": lambda index: index["provenance"].update(resolution="16x16"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_index_that_says_something_else_is_refused(folder, name):
    index = json.loads((folder / "index.json").read_text())
    EDITS[name](index)
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(LatentCacheError, match=str(folder)):
        opened(folder).digest()


def without_a_row(tensors):
    return {name: value[:-1] for name, value in tensors.items()}


SHARDS = {
    "a row less": without_a_row,
    "other type": lambda tensors: tensors | {"mean": tensors["mean"].half()},
    "other shape": lambda tensors: tensors | {"mean": tensors["mean"].flatten(1)},
    "a tensor less": lambda tensors: {k: v for k, v in tensors.items() if k != "variance"},
    "a tensor more": lambda tensors: tensors | {"more": torch.zeros(3)},
    "a class more": lambda tensors: tensors | {"label": tensors["label"] + 2},
    "a negative class": lambda tensors: tensors | {"label": tensors["label"] - 1},
    "names that end elsewhere": lambda tensors: tensors | {"key_ends": tensors["key_ends"] + 1},
    "names that end before": lambda tensors: (
        tensors
        | {"key_ends": torch.cat([tensors["key_ends"][:-1].flip(0), tensors["key_ends"][-1:]])}
    ),
}


@pytest.mark.parametrize("name", SHARDS)
def test_a_shard_of_other_numbers_is_refused_before_training(folder, name):
    """Even where size and hash of the index were made to fit."""
    path = folder / "00001.safetensors"
    facts = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
    tensors = {key: value.contiguous() for key, value in SHARDS[name](load_file(path)).items()}
    save_file(tensors, path, metadata=facts["__metadata__"])
    index = json.loads((folder / "index.json").read_text())
    index["shards"][1]["num_bytes"] = path.stat().st_size
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(LatentCacheError, match=r"00001\.safetensors"):
        opened(folder)


@pytest.mark.parametrize("seed", range(8))
def test_a_flipped_bit_anywhere_is_refused(folder, seed):
    random = np.random.default_rng(seed)
    number = int(random.integers(6))
    path = folder / f"{number:05}.safetensors"
    content = bytearray(path.read_bytes())
    content[int(random.integers(len(content)))] ^= 1 << int(random.integers(8))
    path.write_bytes(bytes(content))
    with pytest.raises(LatentCacheError, match=path.name):
        opened(folder).digest()
