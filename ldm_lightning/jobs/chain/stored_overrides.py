"""Check of the overrides that a stored chain may hold.

``chain.json`` is read again when the chain is continued, and may have come from somewhere else. Its
overrides choose among what conf/ holds and set plain values; they name no code, no file of
configuration, no setting of Hydra and nothing of the environment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from ldm_lightning.config import CONF_DIR

CHOICE = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")
"""The name of a file of conf/: no absolute path, no ``..``, which Hydra would follow."""

HYDRAS_OWN = re.compile(r"_[a-z]+_")
"""Keys by which ``instantiate`` calls what they name."""

OVERRIDES = ("first_stage.overrides", "encode.overrides", "samples.overrides")
DECIDED_BY_THE_CHAIN = ("output", "output_dir", "resume")
"""Keys of the steps that the overrides for a single step may not set."""


def check_overrides(overrides: Iterable[str], *, source: str | Path, of_step: bool = False) -> None:
    """Refuse overrides that could do more than choose parts and set values.

    Args:
        overrides: As a command line has them.
        source: Where they come from, for the message.
        of_step: Whether they are those for a single step.

    Raises:
        ValueError: Naming the override, and why it is refused.
    """
    parser = OverridesParser.create()
    for override in overrides:
        if reason := _reason(override, parser, source, of_step=of_step):
            raise ValueError(f"{source} holds the override {override!r}: {reason}")


def _reason(override: str, parser: OverridesParser, source: str | Path, *, of_step: bool) -> str:
    """Reason to refuse an override; empty where it is not."""
    if "${" in override:
        return "a chain takes no interpolation; give the value itself."
    try:
        found = parser.parse_override(override)
        value = found.value()
    except HydraException:
        return "it is no override such as key=value."
    key = found.key_or_group
    parts = re.split(r"[./]", key)
    if parts[0] == "hydra" or found.package is not None:
        return "a chain sets no key of Hydra and moves no group."
    if found.is_sweep_override():
        return "a chain takes one value for each key."
    if any(HYDRAS_OWN.fullmatch(name) for name in (*parts, *_names_in(value))):
        return "a chain chooses parts by their group, such as denoiser=dit."
    if key == "trusted_packages":
        return "a file gives no permission; give it to the command that runs the chain."
    if of_step and key in DECIDED_BY_THE_CHAIN:
        return "the chain decides where its steps write."
    if "/" in key or (CONF_DIR / key).is_dir():
        return _reason_of_choice(found, value)
    if key in OVERRIDES and isinstance(value, list):
        check_overrides(map(str, value), source=source, of_step=True)
    return ""


def _reason_of_choice(found: Override, value: Any) -> str:
    choices = value if isinstance(value, list) else [value]
    named = all(choice is None or CHOICE.fullmatch(str(choice)) for choice in choices)
    if found.is_delete() or named:
        return ""
    return "a group takes the name of one of its files."


def _names_in(value: Any) -> list[str]:
    """The keys of nested mappings."""
    if isinstance(value, Mapping):
        return [*map(str, value), *(name for item in value.values() for name in _names_in(item))]
    if isinstance(value, list):
        return [name for item in value for name in _names_in(item)]
    return []
