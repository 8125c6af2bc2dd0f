"""Hashes of weights and of plain values, against hashlib."""

import hashlib

import pytest
import torch

from ldm_lightning.storage.hashing import canonical_json, hash_json, hash_tensors

TENSORS = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3]], dtype=torch.int64)}


def test_it_is_the_digest_of_names_types_shapes_and_bytes_in_order():
    digest = hashlib.sha256()
    digest.update(b"a\x1ftorch.float32\x1f(2,)\x1f" + TENSORS["a"].numpy().tobytes())
    digest.update(b"b\x1ftorch.int64\x1f(1, 1)\x1f" + TENSORS["b"].numpy().tobytes())
    assert hash_tensors(TENSORS) == digest.hexdigest()
    assert hash_tensors(dict(reversed(TENSORS.items()))) == digest.hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        {"a": torch.tensor([1.0, 2.0000002])},
        {"a": torch.tensor([[1.0, 2.0]])},
        {"a": torch.tensor([1.0, 2.0], dtype=torch.float64)},
        {"c": torch.zeros(1)},
    ],
)
def test_any_change_changes_it(change):
    assert hash_tensors(TENSORS | change) != hash_tensors(TENSORS)


def test_memory_layout_does_not():
    images = torch.randn(2, 3, 4, 4)
    last = images.to(memory_format=torch.channels_last)
    assert hash_tensors({"x": images}) == hash_tensors({"x": last})


def test_plain_values_have_one_text_whatever_their_order():
    assert canonical_json({"b": [1, None], "a": "x"}) == '{"a":"x","b":[1,null]}'
    assert hash_json({"b": 1, "a": 2}) == hash_json({"a": 2, "b": 1})
    assert hash_json({"a": 1}) != hash_json({"a": "1"})
    with pytest.raises(TypeError):
        hash_json({"a": torch.zeros(1)})
    with pytest.raises(ValueError, match="JSON"):
        hash_json({"a": float("nan")})
