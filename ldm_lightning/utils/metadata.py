"""Facts about how something was made: comparing them, and saying how many images stand behind."""

from collections.abc import Mapping
from typing import Any

Fact = str | int | float | bool


def check_facts(
    found: Mapping[str, Fact], expected: Mapping[str, Fact], *, what: str, remedy: str
) -> None:
    """Refuse something that was made of other things than those expected.

    Args:
        found: What it was made of, by name.
        expected: What it should have been made of; what is not named here is not compared.
        what: The thing, as the message calls it.
        remedy: What to do about it, a sentence.

    Raises:
        ValueError: Naming each fact that differs, with both values.
    """
    differing = [
        f"{name} is {found[name]!r}" if name in found else f"{name} is not known"
        for name in expected
        if name not in found or found[name] != expected[name]
    ]
    wanted = [
        f"{name}={value!r}"
        for name, value in expected.items()
        if name not in found or found[name] != value
    ]
    if differing:
        raise ValueError(
            f"{what} was made of something else: {', '.join(differing)}; expected "
            f"{', '.join(wanted)}. {remedy}"
        )


def count_fact(protocol: Mapping[str, Any]) -> str:
    """Name of the fact that counts samples: ``num_windows`` where images are cut into several."""
    return "num_windows" if "num_windows" in protocol else "num_images"


def count_told(protocol: Mapping[str, Any]) -> str:
    """Number of samples behind a figure: ``512``, or ``1,600 windows of 100 images``."""
    if "num_windows" not in protocol:
        return str(protocol["num_images"])
    return f"{protocol['num_windows']:,} windows of {protocol['num_images']:,} images"
