"""Overrides of Hydra's command line: what they say, and values written as it reads them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from ldm_lightning.storage.home import PLAIN, quoted


def parsed(overrides: Iterable[str]) -> list[Override]:
    """Parse overrides.

    Raises:
        HydraException: If one cannot be read.
    """
    return OverridesParser.create().parse_overrides(list(overrides))


def value_of(overrides: Iterable[Override], key: str) -> Any:
    """The last value that overrides give to a key; None for none."""
    return next(
        (
            override.value()
            for override in reversed(list(overrides))
            if override.key_or_group == key
        ),
        None,
    )


def key_of(override: str) -> str:
    """The key of ``key=value``, ``+key=value`` or ``~key``."""
    return override.partition("=")[0].lstrip("+~")


def literal(value: Any) -> str:
    """A plain value as Hydra's grammar writes it, so that it reads back as it is.

    Raises:
        ValueError: If the name in a mapping cannot be written.
    """
    if value is None:
        return "null"
    if isinstance(value, (bool, int, float)):
        return str(value).lower() if isinstance(value, bool) else repr(value)
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, (list, tuple)):
        return f"[{','.join(literal(item) for item in value)}]"
    if not all(re.fullmatch(r"[\w./@-]+", str(name)) for name in value):
        raise ValueError(f"A mapping with the names {sorted(map(str, value))} cannot be restored.")
    return "{" + ",".join(f"{name}:{literal(item)}" for name, item in value.items()) + "}"


def path_override(key: str, path: Path) -> str:
    """``key=path``, quoted where Hydra would read more into the path."""
    text = str(path)
    return f"{key}={text if PLAIN.fullmatch(text) else quoted(text)}"
