"""Statistics and features of a fixed reference set, kept on disk under a key of all they depend on.

The file's name is the key's hash, and the whole key stands in the file beside a digest of the
tensors. So another split, size, crop, number of images or feature network finds no file, and a
damaged file is computed anew.
"""

import contextlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ldm_lightning.storage.hashing import canonical_json, hash_json, hash_tensors

logger = logging.getLogger(__name__)

FORMAT = 1
"""Raised whenever the same images and network would give other statistics."""


class ReferenceStatistics(NamedTuple):
    """Gaussian of a reference set, in the form a Fréchet distance needs.

    Attributes:
        mean: float64, [D].
        covariance_root: Symmetric root of the covariance, float64, [D, D].
        num_images: Number of images.
    """

    mean: Tensor
    covariance_root: Tensor
    num_images: int


@dataclass(frozen=True)
class TensorCache:
    """Cache of tensors of one reference set under one feature network.

    Args:
        directory: Folder of everything cached; created when needed.
        kind: First word of the file's name: what the tensors are.
        key: Everything they depend on, as plain JSON values: data, split, number of images, size,
            crop, feature network and its hash.
    """

    directory: Path
    kind: str
    key: Mapping[str, object]

    @property
    def path(self) -> Path:
        """The file of these tensors."""
        return self.directory / f"{self.kind}_{hash_json(self._full_key)[:32]}.safetensors"

    @property
    def _full_key(self) -> dict[str, object]:
        return {"format": FORMAT, **self.key}

    def load(self) -> dict[str, Tensor] | None:
        """Read the tensors; ``None`` where there are none, or none that can be trusted."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            self._refuse(f"it cannot be read: {error}")
            return None
        if metadata.get("key") != canonical_json(self._full_key):
            self._refuse("it was made for something else")
            return None
        if metadata.get("digest") != hash_tensors(tensors):
            self._refuse("its content was changed")
            return None
        return tensors

    def save(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the tensors atomically; a full disk costs a warning, not the run."""
        stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        metadata = {"key": canonical_json(self._full_key), "digest": hash_tensors(stored)}
        # not utils.files.atomic_writer: runs of a sweep may write this file at the same time, and
        # each needs a temporary file of its own; a power cut is caught by the digest
        partial = self.path.with_suffix(f".{os.getpid()}.partial")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            save_file(stored, partial, metadata=metadata)
            os.replace(partial, self.path)
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            logger.warning("Reference statistics were not cached: %s", error)

    def _refuse(self, reason: str) -> None:
        logger.warning(
            "Cached reference statistics %s are not used, because %s; they are computed anew.",
            self.path,
            reason,
        )


class ReferenceCache:
    """Cache of the statistics of one reference set under one feature network.

    Args:
        directory: Folder of everything cached; created when needed.
        key: Everything the statistics depend on, as for ``TensorCache``.
    """

    def __init__(self, directory: Path, key: Mapping[str, object]) -> None:
        self._tensors = TensorCache(directory, "frechet", key)

    def load(self) -> ReferenceStatistics | None:
        """Read the statistics; ``None`` where there are none, or none that can be trusted."""
        tensors = self._tensors.load()
        if tensors is None:
            return None
        return ReferenceStatistics(
            tensors["mean"], tensors["covariance_root"], int(tensors["num_images"])
        )

    def save(self, statistics: ReferenceStatistics) -> None:
        """Write the statistics atomically; a full disk costs a warning, not the run."""
        self._tensors.save(
            {
                "mean": statistics.mean,
                "covariance_root": statistics.covariance_root,
                "num_images": torch.tensor(statistics.num_images, dtype=torch.int64),
            }
        )
