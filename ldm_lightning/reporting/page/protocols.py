"""Protocols: numbers may be compared where they were made in the same way."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ldm_lightning.reporting.page.runs import Run

NOT_RECORDED = "not recorded"
MAX_LETTERS = 200


@dataclass(frozen=True)
class Protocol:
    """One way of making numbers.

    Attributes:
        label: ``P1`` for the most used, and so on.
        parts: All that was recorded, as words: what, and its value.
        is_small_sample: Too few images for a Fréchet distance; nothing is ranked by it.
    """

    label: str
    parts: tuple[tuple[str, str], ...]
    is_small_sample: bool

    @property
    def text(self) -> str:
        """All that was recorded, in a line."""
        return ", ".join(f"{what} {value}" for what, value in self.parts) or NOT_RECORDED

    @property
    def short(self) -> str:
        """Enough to recognize it by, for a figure that stands alone."""
        known = dict(self.parts)
        count = f"{known['num images']} images" if "num images" in known else ""
        if "num windows" in known:
            count = f"{known['num windows']} windows of {count}"
        if self.is_small_sample:
            count = f"small sample of {count}" if count else "small sample"
        split = f"split {known['split']}" if "split" in known else ""
        told = (count, known.get("data", ""), split, known.get("resolution", ""))
        words = [text for text in told if text]
        return ", ".join(words) or self.text


class Protocols:
    """The protocols of some runs.

    Args:
        runs: The runs that are compared.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        entries = [
            (run.number, name, _essence(run, name))
            for run in runs
            for name, value in run.metrics.items()
            if value is not None
        ]
        uses = Counter(_key(essence) for _, _, essence in entries)
        first_use = {_key(essence): essence for _, _, essence in reversed(entries)}
        by_key = {
            key: Protocol(
                label=f"P{number}",
                parts=_parts(first_use[key]),
                is_small_sample=first_use[key].get("small_sample") is True,
            )
            for number, (key, _) in enumerate(
                sorted(uses.items(), key=lambda item: (-item[1], item[0])), start=1
            )
        }
        self.all = tuple(by_key.values())
        self._of = {(run, name): by_key[_key(essence)] for run, name, essence in entries}
        used: dict[str, set[Protocol]] = {}
        for (_, name), protocol in self._of.items():
            used.setdefault(name, set()).add(protocol)
        self._used_by = {
            name: tuple(one for one in self.all if one in group) for name, group in used.items()
        }

    def of(self, run: Run, metric: str) -> Protocol:
        """Protocol of one metric of a run.

        Raises:
            KeyError: If the run has no finite value of that metric.
        """
        return self._of[run.number, metric]

    def used_by(self, metric: str) -> tuple[Protocol, ...]:
        """All protocols behind one metric, the most used first."""
        return self._used_by.get(metric, ())

    def metrics_of(self, protocol: Protocol) -> tuple[str, ...]:
        """Names of all metrics made in one way."""
        return tuple(sorted(name for name, used in self._used_by.items() if protocol in used))


def _essence(run: Run, metric: str) -> dict[str, Any]:
    """Protocol entries that make a number comparable, without paths."""
    entry = dict(run.protocols.get(metric, {}))
    if metric.startswith("latent/"):  # measured on the images that were reconstructed
        names = ("test/psnr", "val/psnr")
        entry = dict(next((run.protocols[name] for name in names if name in run.protocols), {}))
    for name in ("checkpoint", "measured", "measured_images"):  # what the number is of
        entry.pop(name, None)
    if "images" in entry:  # hash of a set of images
        entry.pop("root", None)  # the same images may lie elsewhere
    if "feature_network" not in entry:
        entry.pop("weights_hash", None)  # of the model that is measured
    if metric.startswith("perf/"):
        entry["device"] = run.device or "unknown"
    return entry


def _key(essence: Mapping[str, Any]) -> str:
    return json.dumps(essence, sort_keys=True)


def _parts(essence: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Protocol in words, with shortened hashes."""
    parts = []
    for key, value in essence.items():
        text = str(value)
        text = text[:12] if key == "weights_hash" else text
        parts.append((key.replace("_", " "), text[:MAX_LETTERS]))
    return tuple(parts)
