"""Rules about nested plain values: what stands where, of which type.

A rule is a ``Leaf``, a dict of rules by key (all of which must be there, but for ``IfThere``;
others may be too), ``Each`` for any keys with values alike, ``ListOf``, or ``OrNone``.
"""

import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Leaf:
    """A single value: in words, and as a test."""

    what: str
    fits: Callable[[Any], bool]


@dataclass(frozen=True)
class Each:
    """A mapping from text to values of one rule."""

    rule: Any


@dataclass(frozen=True)
class ListOf:
    """A list or tuple of values of one rule; ``length`` None allows any."""

    rule: Any
    length: int | None = None


@dataclass(frozen=True)
class OrNone:
    """A value of a rule, or None."""

    rule: Any


@dataclass(frozen=True)
class IfThere:
    """In a dict of rules: the rule of a key that may be missing."""

    rule: Any


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


ANYTHING = Leaf("anything", lambda value: True)
COUNT = Leaf(
    "a whole number of at least 0",
    lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0,
)
NUMBER = Leaf("a number", _is_number)
FLAG = Leaf("true or false", lambda value: isinstance(value, bool))
TEXT = Leaf("text", lambda value: isinstance(value, str))
MAPPING = Leaf("a dictionary", lambda value: isinstance(value, dict))
SIZE = Leaf(
    "a side, or height and width",
    lambda value: all(
        COUNT.fits(side) for side in (value if isinstance(value, (list, tuple)) else [value])
    ),
)


CLASSES = {"names": OrNone(ListOf(TEXT)), "without_images": ListOf(COUNT)}
"""What a second stage says of its classes."""


def like(value: Any, *, integer: Leaf = NUMBER) -> Any:
    """The rule that a value of the same kind keeps, such as a fresh object's state.

    Args:
        value: Nested plain values; None stands for a flag that may be left open.
        integer: What may stand in place of a whole number.
    """
    if isinstance(value, dict):
        return {key: like(inner, integer=integer) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return ListOf(like(value[0], integer=integer) if value else ANYTHING, len(value))
    for kind, leaf in ((bool, FLAG), (int, integer), (float, NUMBER), (str, TEXT)):
        if isinstance(value, kind):
            return leaf
    return OrNone(FLAG)


def check(found: Any, rule: Any, place: str) -> None:
    """Refuse values that break a rule.

    Args:
        found: What is there.
        rule: What must be there.
        place: Its name in messages, such as ``callbacks.Ema``.

    Raises:
        ValueError: Naming the first place that does not fit, what it holds and what belongs there.
    """
    if isinstance(rule, IfThere):
        check(found, rule.rule, place)
    elif isinstance(rule, OrNone):
        if found is not None:
            check(found, rule.rule, place)
    elif isinstance(rule, Leaf):
        if not rule.fits(found):
            raise ValueError(f"{place} is {shown(found)}; expected {rule.what}")
    elif isinstance(rule, ListOf):
        if not isinstance(found, (list, tuple)):
            raise ValueError(f"{place} is {shown(found)}; expected a list")
        if rule.length is not None and len(found) != rule.length:
            raise ValueError(f"{place} has {len(found)} entries; expected {rule.length}")
        for index, inner in enumerate(found):
            check(inner, rule.rule, f"{place}[{index}]")
    elif not isinstance(found, dict):
        raise ValueError(f"{place} is {shown(found)}; expected a dictionary")
    elif isinstance(rule, Each):
        for key, inner in found.items():
            check(key, TEXT, f"a key of {place}")
            check(inner, rule.rule, f"{place}.{key}")
    else:
        for key, inner in rule.items():
            where = f"{place}.{key}" if place else str(key)
            if key in found:
                check(found[key], inner, where)
            elif not isinstance(inner, IfThere):
                raise ValueError(f"{where} is missing")


def check_tensors(found: Any, expected: dict[str, Tensor], place: str) -> None:
    """Refuse anything but a dict of tensors with the names, shapes and kinds expected.

    Raises:
        ValueError: Naming the first tensor that does not fit.
    """
    check(found, MAPPING, place)
    for name, wanted in expected.items():
        if name not in found:
            raise ValueError(f"{place}.{name} is missing")
        check_tensor(found[name], wanted, f"{place}.{name}")
    if unexpected := [name for name in found if name not in expected]:
        raise ValueError(f"{place}.{unexpected[0]} belongs to nothing")


def check_tensor(found: Any, expected: Tensor, place: str) -> None:
    """Refuse anything but a tensor of the same shape, of the same kind of numbers.

    Raises:
        ValueError: Saying what is there.
    """
    if not isinstance(found, Tensor):
        raise ValueError(f"{place} is {shown(found)}; expected a tensor")
    if found.shape != expected.shape:
        raise ValueError(
            f"{place} has the shape {tuple(found.shape)}; expected {tuple(expected.shape)}"
        )
    kinds = [(t.is_floating_point(), t.is_complex()) for t in (found, expected)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"{place} holds {found.dtype}; expected {expected.dtype}")


def shown(value: Any) -> str:
    """A value in a message: short, and with its type."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    return f"{reprlib.repr(value)} ({type(value).__name__})"
