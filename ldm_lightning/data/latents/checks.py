"""Every number of a latent cache's index compared with the shards that lie beside it.

Shapes, types and counts stand in the headers and are compared whenever a cache is opened; what the
shards hold is compared with its hash when a training begins, once as long as the files stay as they
are.
"""

from pathlib import Path

import numpy as np

from ldm_lightning.data.latents.cache import (
    LatentCacheError,
    LatentIndex,
    ShardEntry,
    ShardReader,
    shard_name,
)
from ldm_lightning.storage.content import FileHashes
from ldm_lightning.utils.metadata import count_fact

DTYPES = {"float32": "F32", "float16": "F16"}
"""Names of safetensors."""

REMEDY = (
    "Run ldm_lightning.encode again with the words that made the cache: it makes damaged shards "
    "anew and keeps the others."
)


def check_index(index: LatentIndex, folder: Path) -> None:
    """Compare what an index says of itself and of its shards with the shards' headers.

    Raises:
        LatentCacheError: Naming the file, what it says and what was expected.
    """
    _require(index, folder)
    for number, entry in enumerate(index.shards or ()):
        _check_size(folder / entry.file, entry.num_bytes)
        reader = ShardReader(folder, number, provenance_hash=index.provenance_hash)
        _check_header(reader, index, entry)


def check_contents(index: LatentIndex, folder: Path, hashes: FileHashes) -> list[str]:
    """Compare the shards with the hashes in their index; what is new or changed is read.

    Returns:
        The hashes, shard by shard.

    Raises:
        LatentCacheError: Naming the first shard that was changed since it was written.
    """
    entries = index.shards or ()
    found = hashes.of(folder, [entry.file for entry in entries])
    for entry, row in zip(entries, found, strict=True):
        if (content := row.tobytes().hex()) != entry.content:
            raise LatentCacheError(
                f"The shard {folder / entry.file} is damaged: its content has the hash {content}, "
                f"expected {entry.content}. Delete it. {REMEDY}"
            )
    return [entry.content for entry in entries]


def _require(index: LatentIndex, folder: Path) -> None:
    """Compare the numbers of an index with one another."""
    shards = index.shards or ()
    found: dict[str, object] = {
        "shards": [entry.file for entry in shards],
        "class_names": None if index.class_names is None else len(index.class_names),
    }
    expected: dict[str, object] = {
        "shards": [shard_name(number) for number in range(max(1, len(shards)))],
        "class_names": None if index.class_names is None else index.num_classes,
    }
    per_shard = index.provenance.get("images_per_shard")
    num_samples = index.provenance.get(count_fact(index.provenance))
    if isinstance(per_shard, int) and per_shard > 0 and isinstance(num_samples, int):
        found["number of shards"] = len(shards)
        expected["number of shards"] = -(-num_samples // per_shard)
    for name, value in found.items():
        if value != expected[name]:
            raise LatentCacheError(
                f"The index of {folder} is damaged: {name} is {value}, expected {expected[name]}. "
                f"Delete {folder / 'index.json'}. {REMEDY}"
            )


def _check_header(reader: ShardReader, index: LatentIndex, entry: ShardEntry) -> None:
    """Compare names, shapes, types and labels of a shard's tensors with the index."""
    n, shape = entry.num_samples, list(index.latent_shape)
    dtype = DTYPES.get(str(index.provenance.get("dtype")).removeprefix("torch."))
    moments = ["mean", *(["variance"] if index.has_variance else [])]
    moments += [f"{name}_flipped" for name in moments] if index.has_flips else []
    expected = {name: (dtype, [n, *shape]) for name in moments} | {"key_ends": ("I64", [n])}
    if index.num_classes is not None:
        expected["label"] = ("I64", [n])
    found = {name: reader.layout(name) for name in reader.names}
    ends = reader.key_ends() if found.get("key_ends") == expected["key_ends"] else np.array([0])
    expected["key_bytes"] = ("U8", [int(ends[-1]) if len(ends) else 0])
    for name in sorted({*expected, *found}):
        if found.get(name) != expected.get(name):
            raise LatentCacheError(
                f"The shard {reader.path} and its index differ: {name} is {_told(found, name)} in "
                f"the shard, {_told(expected, name)} by the index. {REMEDY}"
            )
    if (np.diff(ends, prepend=0) < 0).any():
        raise LatentCacheError(f"The shard {reader.path} is damaged: key_ends fall. {REMEDY}")
    if index.num_classes is not None:
        labels = reader.labels()
        if n and (labels.min() < 0 or labels.max() >= index.num_classes):
            raise LatentCacheError(
                f"The shard {reader.path} and its index differ: label goes from {labels.min()} to "
                f"{labels.max()}, num_classes={index.num_classes} by the index. {REMEDY}"
            )


def _told(layouts: dict, name: str) -> str:
    if name not in layouts:
        return "missing"
    dtype, shape = layouts[name]
    return f"{dtype} {shape}"


def _check_size(path: Path, num_bytes: int) -> None:
    """Find a missing or cut-off shard before training does."""
    found = path.stat().st_size if path.is_file() else None
    if found != num_bytes:
        what = "does not exist" if found is None else f"has {found} bytes instead of {num_bytes}"
        raise LatentCacheError(f"The shard {path} {what}. {REMEDY}")
