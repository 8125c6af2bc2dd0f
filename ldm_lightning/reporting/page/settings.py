"""Settings that tell runs apart."""

from collections.abc import Sequence
from dataclasses import dataclass

from ldm_lightning.reporting.page.runs import Run

SWEPT_FIRST = (
    "autoencoder.downsampling_factor",
    "autoencoder.latent_channels",
    "loss.kl_weight",
    "loss.perceptual_weight",
    "loss.adversarial_weight",
    "loss.commitment_weight",
    "bottleneck.num_codes",
)
"""Settings that sweeps are about; they come first."""

ABOUT_FILES = ("name", "output_dir", "output", "resume", "scale_description")
"""Not how a run was made but what it is called and where it lies, which the table says anyway."""

LAST_ABOUT_FILES = ("checkpoint", "run_folder", "cache_dir", "shard_cache_dir")
"""The same, as the last part of a key."""


@dataclass(frozen=True)
class Difference:
    """A setting that is not the same in all runs of a kind.

    Attributes:
        key: Dotted key.
        also: Other keys that have the same value in every run, because they follow from it.
    """

    key: str
    also: tuple[str, ...]


def find_differences(runs: Sequence[Run]) -> list[Difference]:
    """Settings that differ between runs of one kind, the most telling first.

    Runs without a configuration (they failed before they had one) are not asked.
    """
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    by_values: dict[tuple[str, ...], list[str]] = {}
    for key in sorted(keys, key=_order):
        if not _is_about_files(key) and _differs(key, runs):
            values = tuple(repr(run.settings.get(key)) for run in runs)
            by_values.setdefault(values, []).append(key)
    return [Difference(key=same[0], also=tuple(same[1:])) for same in by_values.values()]


def _differs(key: str, runs: Sequence[Run]) -> bool:
    by_kind: dict[str, set[str]] = {}
    for run in runs:
        if run.settings:
            by_kind.setdefault(run.kind, set()).add(repr(run.settings.get(key)))
    return any(len(values) > 1 for values in by_kind.values())


def _is_about_files(key: str) -> bool:
    last = key.rpartition(".")[2]
    return key in ABOUT_FILES or last in LAST_ABOUT_FILES or key.startswith("logger.")


def _order(key: str) -> tuple[int, int, str]:
    """Swept settings, then those with short keys."""
    if key in SWEPT_FIRST:
        return SWEPT_FIRST.index(key), 0, key
    return len(SWEPT_FIRST), key.count("."), key
