"""Comparing what a stored thing was made of with what is wanted now."""

from collections.abc import Mapping

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
