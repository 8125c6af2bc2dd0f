"""A finished run's record of the weights of one of its checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm_lightning.reporting.metrics_file import read_metrics
from ldm_lightning.runs.run_folder import read_summary
from ldm_lightning.storage.small_files import SmallFileError

SAME_IMAGES = ("images", "resolution", "crop", "channels")
"""Entries of a protocol that must agree for two figures to be of the same images."""


@dataclass(frozen=True)
class TrainingRecord:
    """Validation of one checkpoint by its own run.

    Attributes:
        validated: Values by full name, as ``val/*`` and ``latent/*``, at the checkpoint's update;
            empty where the run did not validate there.
        psnr_rise: PSNR gained since the validation before, in dB; None where there is none.
        protocol: How ``val/psnr`` was measured last; empty where that is unknown.
    """

    validated: Mapping[str, float] = field(default_factory=dict)
    psnr_rise: float | None = None
    protocol: Mapping[str, Any] = field(default_factory=dict)

    def is_of(self, protocol: Mapping[str, Any]) -> bool:
        """Return whether the run validated on the images of another figure."""
        return all(
            key in self.protocol and self.protocol[key] == protocol.get(key) for key in SAME_IMAGES
        )


def read_training_record(folder: Path, *, step: int, stage: str = "val") -> TrainingRecord:
    """Read ``metrics.csv`` and ``summary.json`` of a run folder.

    Args:
        folder: The run folder; files that are missing or cannot be read tell nothing.
        step: Update of the checkpoint.
        stage: ``val``, or ``val_raw`` for raw weights beside validated averages; the values are
            called ``val/*`` either way.
    """
    # latent/* belongs to the weights that val/* measured
    prefixes = ("val/", "latent/") if stage == "val" else (f"{stage}/",)
    validations: dict[int, dict[str, float]] = {}
    try:
        rows = read_metrics(folder / "metrics.csv")
    except (OSError, ValueError):
        rows = []
    for at, name, value in rows:
        if at <= step and name.startswith(prefixes):
            validations.setdefault(at, {})[name.replace(f"{stage}/", "val/", 1)] = value
    if step not in validations:
        return TrainingRecord()
    psnrs = [
        values["val/psnr"] for _, values in sorted(validations.items()) if "val/psnr" in values
    ]
    try:
        summary = read_summary(folder)
    except SmallFileError:
        summary = {}
    protocol = summary.get("protocol", {}).get("val/psnr", {})
    return TrainingRecord(
        validated=validations[step],
        psnr_rise=psnrs[-1] - psnrs[-2] if len(psnrs) > 1 else None,
        protocol=protocol if isinstance(protocol, dict) else {},
    )
