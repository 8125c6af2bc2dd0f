"""The allow-list of ``_target_`` in stored configurations.

A configuration inside a checkpoint or a run folder is data from somewhere else. Instantiating
whatever it names would run whatever it names, and a prefix is no protection:
``ldm_lightning.storage.files.os.system`` starts with ours. So a target must be a class or function
that is defined in the very module it names, and that or its package must be on a list. A stored
configuration holds plain values: an interpolation (``${oc.env:...}``) would read the environment.
"""

import importlib
import inspect
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
    named = ", ".join(sorted({".".join(name.split(".")[:2]) for name in allowed}))
    refusal = (
        f"The configuration stored in {source} wants to build {target!r}, which is refused: only "
        f"classes and functions of {named} may be built from a file."
    )
    if not isinstance(target, str) or "." not in target:
        raise ValueError(refusal)
    module_name, _, name = target.rpartition(".")
    inside = target in allowed or any(
        f"{module_name}.".startswith(f"{package}.") for package in allowed
    )
    if not inside or not all(part.isidentifier() for part in target.split(".")):
        raise ValueError(refusal)
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except ImportError as err:
        raise ValueError(refusal) from err
    callable_part = inspect.isclass(found) or inspect.isfunction(found)
    if not callable_part or getattr(found, "__module__", None) != module_name:
        raise ValueError(refusal)
