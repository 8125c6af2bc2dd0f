"""Counts of files that are not read, by reason, with one example each."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from ldm_lightning.utils.launch import launched

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reason:
    """Number of files that are not read for one reason, and the name of the first of them."""

    count: int
    example: str


class LeftOut:
    """Files that a listing passes over.

    Args:
        reasons: Counts by reason; a reason is a few words, in the plural.
    """

    def __init__(self, reasons: Mapping[str, Reason] | None = None) -> None:
        self._reasons = dict(reasons or {})

    def add(self, reason: str, example: str, *, count: int = 1) -> None:
        """Count a file."""
        known = self._reasons.get(reason)
        self._reasons[reason] = Reason(
            count + (known.count if known else 0), known.example if known else example
        )

    def update(self, other: "LeftOut") -> None:
        """Count what another listing passed over as well."""
        for reason, entry in other.reasons.items():
            self.add(reason, entry.example, count=entry.count)

    @property
    def reasons(self) -> dict[str, Reason]:
        """Counts by reason, sorted."""
        return dict(sorted(self._reasons.items()))

    @property
    def num_files(self) -> int:
        """Number of all files that are not read."""
        return sum(entry.count for entry in self._reasons.values())

    def __str__(self) -> str:
        return "; ".join(
            f"{reason}: {entry.count:,} (e.g. {entry.example})"
            for reason, entry in self.reasons.items()
        )


def suffix_reason(suffix: str) -> str:
    """The reason for a file whose name is not that of an image."""
    return f"suffix {suffix}" if suffix else "no suffix"


def say_what_is_not_read(left_out: LeftOut, place: str) -> None:
    """Log once a run what a listing passed over.

    Args:
        left_out: Of the listing.
        place: What was listed, such as data.root=DIR.
    """
    if left_out.num_files and launched().is_first:
        log.warning("%s, not read: %s.", place, left_out)
