"""The files that make a configuration, in the order in which Hydra merges them.

Hydra composes them without a record of who set what, so this reads its list of files and each file
again, as ``--info defaults-tree`` does. Nothing here imports torch or writes a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.defaults_list import create_defaults_list
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.default_element import GroupDefault, InputDefault
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ldm_lightning.config import CONF_DIR


@dataclass(frozen=True)
class ConfigFile:
    """One file of a composition.

    Attributes:
        path: Where it is; Hydra's own files have none and are left out.
        values: What it sets, by full keys, nested and unresolved.
        choices: The groups whose file it names, and that file.
    """

    path: Path
    values: dict[str, Any]
    choices: Mapping[str, str | None]

    @property
    def name(self) -> str:
        """The path as a user reads it: ours as ``conf/...``, others from the working folder on."""
        for folder in (CONF_DIR.parent, Path.cwd()):
            if self.path.is_relative_to(folder):
                return str(self.path.relative_to(folder))
        return str(self.path)


@dataclass(frozen=True)
class ComposedFiles:
    """A composition.

    Attributes:
        files: In the order in which they are merged; a later one wins.
        choices: File of each group; None for none.
        cfg: What they and the command line compose to.
    """

    files: tuple[ConfigFile, ...]
    choices: Mapping[str, str | None]
    cfg: DictConfig


class Composer:
    """Composes command lines of one command.

    Args:
        config_name: The command's file in conf/.
        config_dir: Folder of further files, as of ``--config-dir``.
    """

    def __init__(self, config_name: str = "train", *, config_dir: Path | None = None) -> None:
        search_path = create_config_search_path(f"file://{CONF_DIR}")
        if config_dir is not None:
            search_path.prepend(
                provider="command-line",
                path=f"file://{config_dir.absolute()}",
                anchor=SearchPathQuery(provider="schema"),
            )
        self._config_name = config_name
        self._loader = ConfigLoaderImpl(config_search_path=search_path)

    def compose(self, overrides: Sequence[str]) -> ComposedFiles:
        """Compose a command line.

        Args:
            overrides: Its overrides.

        Raises:
            HydraException: If the overrides or the files do not compose.
        """
        cfg = self._loader.load_configuration(self._config_name, list(overrides), RunMode.RUN)
        choices = cfg.hydra.runtime.choices
        without_hydra = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
        OmegaConf.set_struct(without_hydra, True)
        return ComposedFiles(self.files(overrides), dict(choices), without_hydra)

    def files(self, overrides: Sequence[str]) -> tuple[ConfigFile, ...]:
        """The files alone, in the order in which they are merged.

        Args:
            overrides: The overrides of a command line.

        Raises:
            HydraException: If the overrides or the files do not compose.
        """
        return tuple(self._files(overrides))

    def _files(self, overrides: Sequence[str]) -> Iterator[ConfigFile]:
        parsed, repository = self._loader._parse_overrides_and_create_caching_repo(
            self._config_name, list(overrides)
        )
        defaults = create_defaults_list(
            repo=repository,
            config_name=self._config_name,
            overrides_list=parsed,
            prepend_hydra=True,
            skip_missing=False,
        )
        for default in defaults.defaults:
            loaded = self._loader._load_single_config(default=default, repo=repository)
            if not loaded.path.startswith("file://") or default.config_path is None:
                continue
            folder = Path(loaded.path.removeprefix("file://"))
            values = OmegaConf.to_container(loaded.config)
            assert isinstance(values, dict)
            yield ConfigFile(
                folder / f"{default.config_path}.yaml",
                {str(key): value for key, value in values.items() if key != "defaults"},
                _chosen(loaded.defaults_list or (), default.config_path),
            )


def _chosen(defaults: Sequence[InputDefault], config_path: str) -> dict[str, str | None]:
    """The groups that the defaults of a file choose; its ``${...}`` are left as they stand."""
    own_group = PurePosixPath(config_path).parent
    chosen = {}
    for default in defaults:
        if isinstance(default, GroupDefault) and default.group is not None:
            group = default.group.removeprefix("/")
            is_absolute = group != default.group
            value = None if default.value is None else str(default.value)
            chosen[group if is_absolute else str(own_group / group)] = value
    return chosen


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each full key of nested mappings with its value; an empty mapping is a value."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
