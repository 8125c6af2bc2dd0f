"""Figures of a first stage, kept under a key of all they depend on, with the grid that shows them.

The file's name is the key's hash, and the whole key stands in the file. So other weights, other
images, another precision or another feature network find nothing, and a record that was cut off or
edited is measured anew.
"""

import contextlib
import json
import logging
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ldm_lightning.metrics.frechet import Protocol
from ldm_lightning.storage.hashing import canonical_json, hash_json
from ldm_lightning.storage.small_files import read_json

logger = logging.getLogger(__name__)

FORMAT = 3
"""Raised whenever the same first stage and images would give other figures."""


@dataclass(frozen=True)
class FirstStageRecord:
    """Figures of one first stage on one set of images.

    Attributes:
        scalars: By name without stage (``psnr``), and ``latent/mean`` and ``latent/std``.
        protocol: How each was made.
        gray_psnr: PSNR of plain mid-gray images, in dB: what knowing nothing gives.
        num_images: Number of images that were seen.
        image_shape: [C, H, W] of them.
    """

    scalars: dict[str, float]
    protocol: dict[str, Protocol]
    gray_psnr: float
    num_images: int
    image_shape: tuple[int, ...]


@dataclass(frozen=True)
class EvaluationCache:
    """Cache of the figures of one first stage under one protocol.

    Args:
        directory: Folder of all records; created when needed.
        key: Everything the figures depend on, as plain JSON values.
    """

    directory: Path
    key: Mapping[str, object]

    @property
    def path(self) -> Path:
        """The file of these figures."""
        return self.directory / f"evaluation_{hash_json(self._full_key)[:32]}.json"

    @property
    def grid(self) -> Path:
        """The picture beside it: a row of images, a row of reconstructions."""
        return self.path.with_suffix(".png")

    @property
    def _full_key(self) -> dict[str, object]:
        return {"format": FORMAT, **self.key}

    def load(self) -> FirstStageRecord | None:
        """Read the figures; None where there are none, or none that can be trusted."""
        if not self.path.is_file() or not self.grid.is_file():
            return None
        try:
            stored = read_json(self.path, dict)
            if canonical_json(stored["key"]) != canonical_json(self._full_key):
                raise ValueError("it was made for something else")
            record = stored["record"]
            if stored["digest"] != hash_json(record):
                raise ValueError("its content was changed")
            return FirstStageRecord(
                scalars={name: _number(value) for name, value in record["scalars"].items()},
                protocol={name: dict(entry) for name, entry in record["protocol"].items()},
                gray_psnr=_number(record["gray_psnr"]),
                num_images=int(record["num_images"]),
                image_shape=tuple(map(int, record["image_shape"])),
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            logger.warning(
                "The earlier evaluation %s is not used, because it cannot be trusted (%s: %s); the "
                "first stage is measured anew.",
                self.path,
                type(error).__name__,
                error,
            )
            return None

    def save(self, record: FirstStageRecord, grid: Path) -> None:
        """Keep figures and a copy of their grid; a full disk costs a warning, not the run."""
        plain = asdict(record)
        plain["scalars"] = {
            name: value if math.isfinite(value) else None for name, value in record.scalars.items()
        }
        # not utils.files.atomic_writer: several processes may write this file at the same time
        partial = self.path.with_suffix(f".{os.getpid()}.partial")
        try:
            content = {"key": self._full_key, "digest": hash_json(plain), "record": plain}
            self.directory.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(grid, partial)
            os.replace(partial, self.grid)
            partial.write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")
            os.replace(partial, self.path)
        except (OSError, ValueError) as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            logger.warning("The evaluation was not kept for later: %s", error)


def _number(value: object) -> float:
    """A stored number; what was not finite is NaN again."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)
