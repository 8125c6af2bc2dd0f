"""Return whether two values of a metric may be compared: a continued run may measure otherwise."""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl


def protocol_of(pl_module: pl.LightningModule, metric: str) -> dict[str, Any]:
    """Protocol of the last validation's metrics, by full name; empty where the module does not say.

    The number of images is left out: it changes by a file that could not be read once.
    """
    report: Any = getattr(pl_module, "report", None)
    protocol: Mapping[str, Mapping[str, Any]] = getattr(report, "protocol", {})
    entry = protocol.get(metric, protocol.get(metric.removeprefix("val/"), {}))
    return {name: value for name, value in entry.items() if name != "num_images"}


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The names of entries that differ, joined."""
    return ", ".join(name for name in sorted({*one, *other}) if one.get(name) != other.get(name))
