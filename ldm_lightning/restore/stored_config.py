"""Readers of a run's stored configuration, which may come from a stranger.

``config.yaml`` holds the resolved values; ``overrides.yaml`` which file of each group they were
composed from, and which keys the command line gave.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ldm_lightning.checkpoints.targets import check_targets, read_stored
from ldm_lightning.config import CONF_DIR
from ldm_lightning.storage.files import atomic_writer
from ldm_lightning.storage.small_files import read_yaml

OVERRIDES = "overrides.yaml"

FORMAT = 1
"""Of run folders; raised when a run of before can no longer be continued."""

OPTIMIZERS = "torch.optim"
"""Package of another project whose classes a run may name."""

GROUP = re.compile(r"[a-z_]+(/[a-z_]+)*")
CHOICE = re.compile(r"(\w[\w.-]*)(/\w[\w.-]*)*")
"""No absolute path and no ``..``: Hydra would read a file outside its folders."""

KEY = re.compile(r"\w+(\.\w+)*")


@functools.cache
def own_targets() -> frozenset[str]:
    """Every class and function that the configuration files of this package name."""
    pattern = re.compile(r"_target_:\s*(ldm_lightning\.[\w.]+)")
    files = (file.read_text(encoding="utf-8") for file in CONF_DIR.rglob("*.yaml"))
    return frozenset(name for text in files for name in pattern.findall(text))


def read_config(folder: Path, *, trusted: Collection[str] = ()) -> dict[str, Any]:
    """Return the configuration of a run, checked; nothing in it is built or resolved.

    Args:
        folder: The run folder.
        trusted: Packages of the user's own whose classes and functions may be named besides ours.

    Raises:
        ValueError: Naming the file; see ``read_stored``.
    """
    return read_stored(folder / "config.yaml", allowed={*own_targets(), OPTIMIZERS, *trusted})


def read_config_keys(
    folder: Path, keys: Iterable[str], *, trusted: Collection[str] = ()
) -> dict[str, Any]:
    """Return those of some keys that a run's configuration has, checked alone.

    Args:
        folder: The run folder.
        keys: Top-level ones, or one level below such as ``loss.kl_weight``.
        trusted: Packages of the user's own whose classes and functions may be named besides ours.

    Raises:
        ValueError: As ``read_config`` does.
    """
    path = folder / "config.yaml"
    content = read_yaml(path)
    used: dict[str, Any] = {}
    for key in keys:
        parent, _, name = key.partition(".")
        if not name and parent in content:
            used[parent] = content[parent]
        elif isinstance(content.get(parent), Mapping) and name in content[parent]:
            used[parent] = {name: content[parent][name]}
    check_targets(used, allowed={*own_targets(), *trusted}, source=path)
    return used


@dataclass(frozen=True)
class Composition:
    """Composition of a run's configuration.

    Attributes:
        choices: File of each group; None for none.
        given: Keys that command lines gave.
    """

    choices: Mapping[str, str | None]
    given: tuple[str, ...]

    def write(self, folder: Path) -> None:
        """Write it into a run folder, atomically."""
        content = {
            "format": FORMAT,
            "choices": dict(self.choices),
            "given": sorted(set(self.given)),
        }
        with atomic_writer(folder / OVERRIDES) as file:
            file.write(yaml.safe_dump(content, sort_keys=True).encode())


def read_composition(folder: Path) -> Composition:
    """Return how the configuration of a run was composed.

    Raises:
        ValueError: Naming the file, if it is missing or holds anything else.
    """
    path = folder / OVERRIDES
    try:
        content = read_stored(path, allowed=())
    except FileNotFoundError as error:
        raise ValueError(
            f"{path} does not exist, so the run cannot be continued; start a new one from its "
            f"weights with checkpoint={folder}."
        ) from error
    if (found := content.get("format")) != FORMAT:
        raise ValueError(
            f"{path} has format={found}, and this version of ldm_lightning continues runs of "
            f"format={FORMAT}. Continue the run with the version that began it, or start a new one "
            f"from its weights with checkpoint={folder}."
        )
    choices, given = content.get("choices"), content.get("given")
    if not isinstance(choices, dict) or not isinstance(given, list):
        raise ValueError(f"{path} needs a mapping `choices` and a list `given`.")
    for group, choice in choices.items():
        named = choice is None or (isinstance(choice, str) and CHOICE.fullmatch(choice))
        if not isinstance(group, str) or not GROUP.fullmatch(group) or not named:
            raise ValueError(f"{path} names the group {group!r} with {choice!r}; expected names.")
    for key in given:
        if not isinstance(key, str) or not KEY.fullmatch(key):
            raise ValueError(f"{path} names the key {key!r}; expected one such as data.root.")
    return Composition(choices, tuple(given))
