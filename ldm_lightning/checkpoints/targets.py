"""The allow-list of ``_target_`` in stored configurations.

A configuration inside a checkpoint or a run folder is data from somewhere else. Instantiating
whatever it names would run whatever it names, and a prefix is no protection:
``ldm_lightning.storage.files.os.system`` starts with ours. So a target must be a class or function
that is defined inside a package on a list, or stand on the list itself. Packages of the user's own
come onto the list by ``trusted_packages`` of the command that opens the file, never by the file. A
stored configuration holds plain values: ``${oc.env:...}`` would read the environment.
"""

import importlib
import inspect
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ldm_lightning.storage.small_files import read_yaml

PART_PACKAGES = (
    "ldm_lightning.autoencoder",
    "ldm_lightning.bottleneck",
    "ldm_lightning.conditioner",
    "ldm_lightning.denoiser",
    "ldm_lightning.diffusion",
    "ldm_lightning.discriminator",
    "ldm_lightning.loss",
    "ldm_lightning.nn",
)


def check_targets(
    config: Any,
    *,
    allowed: Collection[str] = PART_PACKAGES,
    source: str | Path = "the checkpoint",
) -> None:
    """Refuse a stored configuration that names anything but what is allowed.

    Args:
        config: Plain dicts, lists and values, searched to any depth.
        allowed: Packages whose own classes and functions may be named, or full names of these.
        source: Where it comes from, for the message.

    Raises:
        ValueError: If a ``_target_`` is not allowed, or a text holds an interpolation (``${...}``).
            Nothing is instantiated or resolved.
    """
    if isinstance(config, Mapping):
        if config.get("_target_") is not None:  # null builds nothing
            _check(config["_target_"], allowed, source)
        for key, value in config.items():
            check_targets(key, allowed=allowed, source=source)
            check_targets(value, allowed=allowed, source=source)
    elif isinstance(config, (list, tuple)):
        for value in config:
            check_targets(value, allowed=allowed, source=source)
    elif isinstance(config, str) and "${" in config:
        raise ValueError(
            f"The configuration stored in {source} holds the interpolation {config!r}; expected "
            "plain values."
        )


def read_stored(path: Path, *, allowed: Collection[str]) -> dict[str, Any]:
    """Return the configuration that a YAML file stores, as plain values.

    Args:
        path: The file.
        allowed: See ``check_targets``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: Naming the file, if it is no small YAML mapping, names a ``_target_`` that is
            not allowed, or holds an interpolation.
    """
    stored = read_yaml(path)
    check_targets(stored, allowed=allowed, source=path)
    return stored


def _check(target: Any, allowed: Collection[str], source: str | Path) -> None:
    """Raise unless ``target`` is an allowed class or function, or one of an allowed package."""
    refusal = f"{target!r} is refused, which the configuration stored in {source} names: "
    if not isinstance(target, str) or not _is_dotted_name(target):
        raise ValueError(f"{refusal}it is no name of a class or function.")
    if target not in allowed and not _inside(target, allowed):
        raise ValueError(refusal + _remedy(target, allowed))
    module_name, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except ImportError as err:
        raise ValueError(f"{refusal}it cannot be imported ({err}).") from err
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        raise ValueError(f"{refusal}{module_name} has no class or function {name}.")
    if target not in allowed and not _inside(f"{found.__module__}.{name}", allowed):
        raise ValueError(
            f"{refusal}it is defined in {found.__module__}. {_remedy(found.__module__, allowed)}"
        )


def _is_dotted_name(target: str) -> bool:
    return "." in target and all(part.isidentifier() for part in target.split("."))


def _inside(name: str, packages: Collection[str]) -> bool:
    return any(name.startswith(f"{package}.") for package in packages)


NOT_THE_USERS = {
    "ldm_lightning",
    "hydra",
    "lightning",
    "numpy",
    "omegaconf",
    "torch",
    "torchvision",
}
"""Packages that nobody is advised to trust: they hold functions that run code from files."""


def _remedy(name: str, allowed: Collection[str]) -> str:
    """Name what is allowed, and how to trust a package that is neither ours nor Python's."""
    package = name.partition(".")[0]
    if package in NOT_THE_USERS or package in sys.stdlib_module_names:
        known = ", ".join(sorted({".".join(entry.split(".")[:2]) for entry in allowed}))
        return f"a file may name classes and functions of {known} alone."
    return (
        f"{package} is not trusted. If you trust it and this file, add "
        f"trusted_packages=[{package}] to the command."
    )
