"""Words around numbers: units, directions, digits."""

import math
import re
from collections.abc import Sequence

from ldm_lightning.metrics.names import FLOOR_PREFIX, describe

UNITS = {
    "psnr": "dB",
    "kl": "nats/image",
    "nll": "nats/image",
    "elbo": "nats/image",
    "encode_images_per_s": "images/s",
    "decode_images_per_s": "images/s",
    "bits_per_pixel": "bits",
}
"""By the last part of a metric's name; others are pure numbers."""


def meaning_of(metric: str) -> str:
    """One line on a metric, empty for one that is unknown."""
    try:
        return describe(metric).meaning
    except KeyError:
        return ""


def is_higher_better(metric: str) -> bool | None:
    """The better direction; None where neither is, or unknown."""
    try:
        return describe(metric).higher_is_better
    except KeyError:
        return None


def unit_of(metric: str) -> str | None:
    """Unit of a metric, and of its linear floor; None for a pure number."""
    return UNITS.get(metric.rpartition("/")[2].removeprefix(FLOOR_PREFIX))


def axis_label(metric: str) -> str:
    """A metric with its unit and direction: ``val/psnr in dB, more is better``."""
    unit = unit_of(metric)
    higher = is_higher_better(metric)
    direction = {True: ", more is better", False: ", less is better", None: ""}[higher]
    return f"{metric}{f' in {unit}' if unit else ''}{direction}"


def digits(value: float) -> str:
    """Four digits, as people write them: ``25.55``, ``2607``, ``1e-06``."""
    if 1000 <= abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.4g}"


def axis_number(value: float) -> str:
    """A power of ten without filling zeros: ``1e-6``; other numbers as ``digits``."""
    if value > 0 and math.log10(value).is_integer() and not 0.001 <= value < 10000:
        return f"1e{round(math.log10(value))}"
    return digits(value)


def setting_words(key: str, value: object) -> tuple[str, str]:
    """The last word of a setting and its value; of a class its group and its name alone."""
    group, _, name = key.rpartition(".")
    if name == "_target_":
        return group.rpartition(".")[2] or "class", str(value).rpartition(".")[2]
    return name, str(value)


def clipped(text: str, letters: int) -> str:
    """The beginning of a text that is too long."""
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


def listed(names: Sequence[str]) -> str:
    """Names in a line; those that end in other numbers alone are one: ``val/loss_level_0-9``."""
    groups: dict[str, list[int]] = {}
    for name in names:
        found = re.fullmatch(r"(.*\D)(\d{1,4})", name)
        key, digit = (found[1], int(found[2])) if found else (name, -1)
        groups.setdefault(key, []).append(digit)
    return ", ".join(
        key if ends == [-1] else f"{key}{min(ends)}" + (f"-{max(ends)}" if len(ends) > 1 else "")
        for key, ends in groups.items()
    )
