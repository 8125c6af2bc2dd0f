"""``explain=KEY`` on the command line of ``train``: who sets a key, in order, and what it becomes.

python -m ldm_lightning.train experiment=kl_f8 explain=max_steps
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm_lightning.checks.composition import ComposedFiles, Composer, leaves
from ldm_lightning.checks.kinds import said
from ldm_lightning.cli import misspelled
from ldm_lightning.runs.overrides import key_of, parsed

COMMAND_LINE = "command line"


def take_explain(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Split ``explain=KEY`` from the other arguments; the key is None where there is none."""
    keys = [override.partition("=")[2] for override in arguments if _explains(override)]
    return (keys[-1] if keys else None), [
        override for override in arguments if not _explains(override)
    ]


def _explains(override: str) -> bool:
    return "=" in override and key_of(override) == "explain"


def explanation(key: str, arguments: Sequence[str]) -> str:
    """Say which files and overrides set a key, in order, and its value.

    Args:
        key: A full key, such as ``optim.learning_rate``, or a group.
        arguments: The other arguments of ``train``.

    Raises:
        ValueError: If there is no such key or group, or the arguments start several runs.
        HydraException: If the arguments do not compose.
    """
    options = get_args_parser().parse_args(list(arguments))
    if options.multirun:
        raise ValueError(f"explain={key} explains one run: leave -m out, and give one value a key.")
    composer = Composer(
        options.config_name or "train",
        config_dir=None if options.config_dir is None else Path(options.config_dir),
    )
    composed = composer.compose(options.overrides)
    group = key.replace(".", "/")
    parent, found = _find(composed.cfg, key)
    if not found and group not in composed.choices:
        groups = [name for name in composed.choices if not name.startswith("hydra/")]
        raise ValueError(misspelled(key, {*map(str, parent), *([] if "." in key else groups)}))
    lines = []
    if group in composed.choices:
        lines += _table(
            f"The file of the group {group} is chosen in this order; the last one wins:",
            _choosers(composed, group, options.overrides),
        )
        lines += [_final_choice(composed, group), ""]
    if found:
        lines += _table(
            f"{key} is set in this order; the last one wins:",
            _setters(composed, key, options.overrides),
        )
        lines += _final(composed.cfg, key)
    return "\n".join(lines).rstrip("\n") + "\n"


def _find(cfg: DictConfig, key: str) -> tuple[DictConfig, bool]:
    """The deepest mapping on the way to a key, and whether the key is there."""
    node, names = cfg, key.split(".")
    for index, name in enumerate(names):
        if name not in node.keys():  # noqa: SIM118 - `in node` is false for ??? and null
            return node, False
        if index == len(names) - 1:
            return node, True
        below = None if OmegaConf.is_missing(node, name) else node._get_node(name)
        if not isinstance(below, DictConfig) or below._is_none() or below._is_interpolation():
            return node, False
        node = below
    return node, False


def _choosers(
    composed: ComposedFiles, group: str, overrides: Sequence[str]
) -> Iterator[tuple[str, str]]:
    for file in composed.files:
        if group in file.choices:
            yield file.name, said(file.choices[group])
    for override in parsed(overrides):
        if override.key_or_group == group and _chooses(override, composed):
            yield COMMAND_LINE, override.input_line or ""


def _final_choice(composed: ComposedFiles, group: str) -> str:
    choice = composed.choices[group]
    is_read = any(
        file.path.with_suffix("").as_posix().endswith(f"/{group}/{choice}")
        for file in composed.files
    )
    missing = "" if choice is None or is_read else ", a file that is not there: it sets nothing."
    return f"{group}={said(choice)}{missing}"


def _setters(
    composed: ComposedFiles, key: str, overrides: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """List all settings of a key, of a mapping that holds it, or of a key below it."""
    for file in composed.files:
        for name, value in leaves(file.values):
            if name == key:
                yield file.name, said(value)
            elif _holds(name, key) or _holds(key, name):
                yield file.name, f"{name}={said(value)}"
    for override in parsed(overrides):
        name = override.key_or_group
        is_about_key = name == key or _holds(name, key) or _holds(key, name)
        if is_about_key and not _chooses(override, composed):
            yield COMMAND_LINE, override.input_line or ""


def _chooses(override: Override, composed: ComposedFiles) -> bool:
    """Return whether an override chooses a group's file; ``optim={...}`` sets values instead."""
    return override.key_or_group in composed.choices and not isinstance(override.value(), dict)


def _holds(outer: str, inner: str) -> bool:
    return inner.startswith(f"{outer}.")


def _table(title: str, rows: Iterator[tuple[str, str]]) -> list[str]:
    table = list(rows)
    width = max((len(name) for name, _ in table), default=0)
    return [title, *(f"  {name:<{width}}  {value}" for name, value in table)]


def _final(cfg: DictConfig, key: str) -> list[str]:
    """The composed value; of an interpolation its text too."""
    container, name = cfg, key
    if "." in key:
        parent, _, name = key.rpartition(".")
        container = OmegaConf.select(cfg, parent)
    if OmegaConf.is_missing(container, name):
        return [f"{key}=???, which has no value yet: give {key}=VALUE."]
    node = container._get_node(name)
    raw = OmegaConf.to_container(container)
    assert isinstance(raw, dict)
    if isinstance(node, DictConfig) and isinstance(raw[name], dict):
        return [f"{key}.{line}" for below, _ in leaves(raw[name]) for line in _final(node, below)]
    if not isinstance(raw[name], str) or "${" not in raw[name]:
        return [f"{key}={said(raw[name])}"]
    try:
        value = OmegaConf.select(cfg, key, throw_on_resolution_failure=True)
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value, resolve=True)
    except OmegaConfBaseException as error:
        return [f"{key}={raw[name]}, which cannot be computed: {str(error).splitlines()[0]}"]
    return [f"{key}={said(value)}, computed from {raw[name]}"]
