"""Values of a run that its configuration files do not give by themselves.

That is what the command line gave, what the run filled in, and what files said that have changed
since. What is stored wins over the files; what follows from other keys goes on following from them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm_lightning.restore.stored_config import KEY
from ldm_lightning.resume.changes import ONE_COMMAND

log = logging.getLogger(__name__)


def missed_values(
    before: DictConfig,
    after: DictConfig,
    stored: Mapping[str, Any],
    *,
    named: set[str],
    given: set[str],
) -> dict[str, Any]:
    """Values of a run that its files do not say by themselves, by key.

    Args:
        before: Composed from the run's files alone.
        after: The same with this command's overrides.
        stored: What the run had, resolved.
        named: Keys that this command names; theirs are not returned.
        given: Keys that earlier commands named, which count more than a file chosen now.
    """
    files, now = (OmegaConf.to_container(cfg, resolve=False) for cfg in (before, after))
    every = list(_silent(files, files, stored, (), set(ONE_COMMAND), given))
    silent = {key for key, _, _ in _silent(files, now, stored, (), named, given)}
    values = _own_values(before, every)
    return {key: value for key, value in values.items() if key in silent}


def _own_values(files: DictConfig, every: list[tuple[str, Any, Any]]) -> dict[str, Any]:
    """The values that make a configuration what the run had.

    What follows from other keys is left to follow from them, so that it follows from what a
    command says too; unless it was given by itself.

    Args:
        files: Composed from the run's files alone.
        every: Its keys, with what the files say, unresolved, and what the run had.
    """
    values = {
        key: was for key, said, was in every if not _interpolates(said) and not _same(said, was)
    }
    own = files.copy()
    OmegaConf.set_struct(own, False)
    for key, value in values.items():
        OmegaConf.update(own, key, value, merge=False, force_add=True)
    following = {key: (said, was) for key, said, was in every if _interpolates(said)}
    while different := {
        key: said for key, (said, was) in following.items() if not _same(_resolved(own, key), was)
    }:
        key = next(
            (key for key, said in different.items() if not _refers(said, different)),
            next(iter(different)),
        )
        values[key] = following.pop(key)[1]
        OmegaConf.update(own, key, values[key], merge=False, force_add=True)
    return values


def _silent(
    before: Any, after: Any, stored: Any, path: tuple[str, ...], named: set[str], given: set[str]
) -> Iterator[tuple[str, Any, Any]]:
    """Keys about which this command says nothing: what the files say, and what the run had."""
    key = ".".join(path)
    if any(f"{key}.".startswith(f"{name}.") for name in named):
        return
    if all(is_tree(value) for value in (before, after, stored)):
        for name, was in stored.items():
            if name in before and name in after:
                yield from _silent(before[name], after[name], was, (*path, name), named, given)
            elif name not in before and name not in after:
                yield f"{key}.{name}", None, was
    elif (_same(before, after) or key in given) and not any(
        name.startswith(f"{key}.") for name in named
    ):
        yield key, before, stored


def is_tree(value: Any) -> bool:
    """Return whether a value is a mapping whose values can be named by ``key.key=value``."""
    return isinstance(value, dict) and all(KEY.fullmatch(str(name)) for name in value)


def _interpolates(value: Any) -> bool:
    return "${" in str(value)


def _resolved(cfg: DictConfig, key: str) -> Any:
    try:
        value = OmegaConf.select(cfg, key)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException as error:
        return error


def _same(one: Any, other: Any) -> bool:
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _refers(value: Any, keys: Iterable[str]) -> bool:
    """Return whether an interpolation may read one of the keys."""
    return any(re.search(rf"\b{re.escape(key.rpartition('.')[2])}\b", str(value)) for key in keys)


def tell_drift(
    before: DictConfig, values: Mapping[str, Any], given: set[str], folder: Path, *, is_whole: bool
) -> None:
    """Say where configuration files have changed since the run began, and that it keeps its own."""
    if not is_whole:
        log.warning(
            "The experiment of the run in %s is not there (see --config-dir): its values are taken "
            "from config.yaml.",
            folder,
        )
        return
    for key, value in values.items():
        now = _resolved(before, key)
        if key not in given and now is not None:  # what was null, the run has filled in itself
            log.warning("The run keeps %s=%s; the configuration now says %s.", key, value, now)
