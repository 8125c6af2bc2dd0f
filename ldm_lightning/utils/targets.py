"""Which ``_target_`` a stored configuration may name.

A configuration inside a checkpoint is data from somewhere else. Instantiating whatever it names
would run whatever it names, and a prefix is no protection: ``ldm_lightning.utils.files.os.system``
starts with ours. So a target must be a class or function that is defined in the very module it
names, in a package of parts.
"""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

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


def check_targets(config: Any, *, allowed_packages: tuple[str, ...] = PART_PACKAGES) -> None:
    """Refuse a stored configuration that names anything but the parts of a model.

    Args:
        config: Plain dicts, lists and values, searched to any depth.
        allowed_packages: Packages whose own classes and functions may be named.

    Raises:
        ValueError: If a ``_target_`` is not allowed, or a text holds an interpolation (``${...}``),
            which could read the environment once it is resolved. Nothing is instantiated.
    """
    if isinstance(config, Mapping):
        if "_target_" in config:
            _check(config["_target_"], allowed_packages)
        for value in config.values():
            check_targets(value, allowed_packages=allowed_packages)
    elif isinstance(config, (list, tuple)):
        for value in config:
            check_targets(value, allowed_packages=allowed_packages)
    elif isinstance(config, str) and "${" in config:
        raise ValueError(
            f"The stored configuration holds the interpolation {config!r}; expected plain values. "
            "The checkpoint is refused."
        )


def _check(target: Any, allowed_packages: tuple[str, ...]) -> None:
    """Raise unless ``target`` names a class or function defined in an allowed package."""
    refusal = (
        f"The stored configuration wants to build {target!r}, which is refused: only classes and "
        f"functions defined in {', '.join(allowed_packages)} may be built from a file."
    )
    if not isinstance(target, str) or "." not in target:
        raise ValueError(refusal)
    module_name, _, name = target.rpartition(".")
    inside = any(f"{module_name}.".startswith(f"{package}.") for package in allowed_packages)
    if not inside or not all(part.isidentifier() for part in target.split(".")):
        raise ValueError(refusal)
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except ImportError as err:
        raise ValueError(refusal) from err
    callable_part = inspect.isclass(found) or inspect.isfunction(found)
    if not callable_part or getattr(found, "__module__", None) != module_name:
        raise ValueError(refusal)
