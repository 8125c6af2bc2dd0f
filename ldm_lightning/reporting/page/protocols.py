"""Protocols: numbers may be compared where they were made in the same way."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ldm_lightning.reporting.page.runs import Run

NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class Protocol:
    """One way of making numbers.

    Attributes:
        label: ``P1`` for the most used, and so on.
        text: All that was recorded, in a line.
        is_small_sample: Too few images for a Fréchet distance; nothing is ranked by it.
    """

    label: str
    text: str
    is_small_sample: bool


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
                text=_text(first_use[key]),
                is_small_sample=first_use[key].get("small_sample") is True,
            )
            for number, (key, _) in enumerate(
                sorted(uses.items(), key=lambda item: (-item[1], item[0])), start=1
            )
        }
        self.all = tuple(by_key.values())
        self._of = {(run, name): by_key[_key(essence)] for run, name, essence in entries}

    def of(self, run: Run, metric: str) -> Protocol:
        """How a run made one of its metrics.

        Raises:
            KeyError: If the run has no finite value of that metric.
        """
        return self._of[run.number, metric]

    def used_by(self, metric: str) -> tuple[Protocol, ...]:
        """All protocols behind one metric, the most used first."""
        used = {protocol for (_, name), protocol in self._of.items() if name == metric}
        return tuple(protocol for protocol in self.all if protocol in used)

    def metrics_of(self, protocol: Protocol) -> tuple[str, ...]:
        """Names of all metrics made in one way."""
        return tuple(sorted({name for (_, name), one in self._of.items() if one == protocol}))


def _essence(run: Run, metric: str) -> dict[str, Any]:
    """What makes a number comparable: without paths that every run has its own of."""
    entry = dict(run.protocols.get(metric, {}))
    if metric.startswith("latent/"):  # measured on the images that were reconstructed
        names = ("test/psnr", "val/psnr")
        entry = dict(next((run.protocols[name] for name in names if name in run.protocols), {}))
    entry.pop("checkpoint", None)
    images = str(entry.get("images", ""))
    if "/" in images or "\\" in images:  # a folder of samples, not the hash of a set of images
        del entry["images"]
    elif images:
        entry.pop("root", None)  # the same images may lie elsewhere
    if "feature_network" not in entry:
        entry.pop("weights_hash", None)  # of the model that is measured
    if metric.startswith("perf/"):
        entry["device"] = run.device or "unknown"
    return entry


def _key(essence: Mapping[str, Any]) -> str:
    return json.dumps(essence, sort_keys=True)


def _text(essence: Mapping[str, Any]) -> str:
    """One line; hashes shortened, as nobody reads 64 digits."""
    parts = []
    for key, value in essence.items():
        text = str(value)
        parts.append(f"{key.replace('_', ' ')} {text[:12] if key == 'weights_hash' else text}")
    return ", ".join(parts) or NOT_RECORDED
