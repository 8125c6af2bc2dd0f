"""Check a composed configuration key by key against the files of conf/."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError

from ldm_lightning.checks.constructors import wrong_keywords
from ldm_lightning.checks.kinds import OPEN_MAPPINGS, is_path, wrong_values
from ldm_lightning.cli import misspelled
from ldm_lightning.config import CONF_DIR
from ldm_lightning.storage.home import expanded

GROUPS_OF_VALUES = (
    *("experiment", "scale", "scale/stage", "scale/denoiser", "scale/optim", "optim/stage"),
    *("recipe", "hparams_search"),
)
"""Groups whose files only change values of keys that stand elsewhere."""

NO_RECIPE = "none"
"""Chosen on a command line, where Hydra takes no null for a group."""

FOLLOWING_GROUP = "features/stage"
"""Follows from two other groups, which Hydra allows in train.yaml alone."""


def check_keys(
    cfg: DictConfig, choices: Mapping[str, str | None], *, command: str = "train"
) -> None:
    """Refuse keys that no file of conf/ declares or no part takes, and values of another type.

    Hydra refuses unknown keys on the command line, but merges whatever an experiment file holds, so
    that a misspelled key there silently changes nothing; and it takes any text for a number.

    Args:
        cfg: The composed configuration; the home that a path means by ``~`` is put in.
        choices: Hydra's group choices.
        command: Which one's configuration it is.

    Raises:
        ValueError: Naming the key, and the nearest one there is, or what it may hold, or what its
            part takes.
    """
    _check_recipe(choices.get("recipe"))
    reference = _defaults(command, choices)
    unknown = _unknown_keys(OmegaConf.to_container(cfg), reference, prefix="")
    if unknown:
        raise ValueError(misspelled(*unknown[0]))
    values = OmegaConf.to_container(cfg)
    assert isinstance(values, dict)
    if wrong_of_parts := list(wrong_keywords({str(key): item for key, item in values.items()})):
        raise ValueError(" ".join(wrong_of_parts))
    _expand_homes(cfg)
    if wrong := wrong_values(_given_values(cfg, reference), reference):
        raise ValueError(" ".join(sorted(wrong)))


def _check_recipe(choice: str | None) -> None:
    """Refuse a recipe that is there at no scale; Hydra skips what is missing, as it may be at one.

    Raises:
        ValueError: Naming it, and those there are.
    """
    if choice is None or choice == NO_RECIPE:
        return
    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else []
    folders = [CONF_DIR, *(Path(source.path) for source in sources if source.schema == "file")]
    recipes = [folder / "recipe" for folder in folders]
    name = choice.rpartition("/")[2]
    known = {file.stem for folder in recipes for file in folder.glob("*/*.yaml")}
    if name not in known and not any((folder / f"{choice}.yaml").is_file() for folder in recipes):
        raise ValueError(
            f"recipe={choice}: there is no recipe {name!r} at any scale. Choose from "
            f"{', '.join(sorted(known))}; put one into recipe/cpu/ of the folder of --config-dir; "
            f"or give recipe={NO_RECIPE}."
        )


def _defaults(command: str, choices: Mapping[str, str | None]) -> Any:
    """Every key of a command with its default, before an experiment or a scale changes it."""
    own = OmegaConf.load(CONF_DIR / f"{command}.yaml")
    assert isinstance(own, DictConfig)
    trains = "base" in own.defaults
    overrides = [
        f"{'+' if group == FOLLOWING_GROUP else ''}{group}={choice}"
        for group, choice in choices.items()
        if choice and group not in GROUPS_OF_VALUES and not group.startswith("hydra/")
    ]
    composed = compose(config_name="base" if trains else command, overrides=overrides)
    if not trains:
        return OmegaConf.to_container(composed)
    OmegaConf.set_struct(composed, False)
    del own["defaults"], own["hydra"]
    return OmegaConf.to_container(OmegaConf.merge(composed, own))


def _given_values(cfg: DictConfig, reference: Any) -> Any:
    """Plain values of a configuration; interpolations are resolved but for those of conf/."""

    def given(value: Any, default: Any, key: str) -> Any:
        if isinstance(value, dict):
            defaults = default if isinstance(default, dict) else {}
            return {
                name: given(item, defaults.get(name), f"{key}.{name}" if key else str(name))
                for name, item in value.items()
            }
        if not isinstance(value, str) or "${" not in value or value == default:
            return value
        try:
            found = OmegaConf.select(cfg, key, throw_on_resolution_failure=True)
        except InterpolationToMissingValueError:  # check_values asks for what is missing
            return "???"
        return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found

    return given(OmegaConf.to_container(cfg), reference, "")


def _expand_homes(cfg: DictConfig, prefix: str = "") -> None:
    """Put the home in the place of ``~`` in every path; words of the command line had it put in."""
    for name in map(str, cfg):
        key = f"{prefix}{name}"
        if OmegaConf.is_missing(cfg, name) or OmegaConf.is_interpolation(cfg, name):
            continue  # an interpolation of another path finds it expanded
        value = cfg[name]
        if isinstance(value, DictConfig):
            _expand_homes(value, f"{key}.")
        elif is_path(key) and isinstance(value, str):
            cfg[name] = expanded(value, key=key)
        elif is_path(key) and isinstance(value, ListConfig):
            cfg[name] = [
                expanded(path, key=key) if isinstance(path, str) else path for path in value
            ]


def _unknown_keys(value: Any, reference: Any, *, prefix: str) -> list[tuple[str, list[str]]]:
    """Keys of nested mappings that the reference lacks, each with those it has at that place."""
    if not isinstance(value, dict) or not isinstance(reference, dict):
        return []
    if prefix.removesuffix(".") in OPEN_MAPPINGS:  # what an entry takes, its class says
        return []
    unknown = [
        (f"{prefix}{key}", sorted(map(str, reference))) for key in value if key not in reference
    ]
    for key in value.keys() & reference.keys():
        unknown += _unknown_keys(value[key], reference[key], prefix=f"{prefix}{key}.")
    return unknown
