"""The command line that continues a run: ``resume=RUN`` and what is to be other than before.

Hydra composes a configuration before any code of ours runs, and knows nothing of the run. So the
overrides are completed first: by the run's own file of each group, and by ``++key=value`` for each
value that the run had and these files no longer say. What this command says comes last and wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.conf import HydraConf
from hydra.core.override_parser.types import Override
from hydra.errors import MissingConfigException
from omegaconf import DictConfig

from ldm_lightning.cli import misspelled
from ldm_lightning.config import CONF_DIR
from ldm_lightning.restore.stored_config import KEY, Composition, read_composition, read_config
from ldm_lightning.resume.changes import FIXED_GROUPS, ONE_COMMAND
from ldm_lightning.resume.kept_values import missed_values, tell_drift
from ldm_lightning.runs.folder_choice import resumed_folder
from ldm_lightning.runs.overrides import key_of, literal, parsed, value_of
from ldm_lightning.utils.launch import launched

CHOSEN_AT_START = ("experiment", "scale", "stage", "recipe")
"""Of the fixed groups those that are chosen; the others follow from them."""

NO_EXPERIMENT = "~experiment"
"""The override that composes without an experiment."""


def continued_arguments(arguments: Sequence[str]) -> list[str]:
    """Complete the arguments of ``ldm_lightning.train``; as they are where no run is continued.

    Raises:
        ValueError: If what ``resume=`` names is no run, its files cannot be used, or an override of
            this command cannot be applied to it.
    """
    options = get_args_parser().parse_args(list(arguments))
    overrides = parsed(options.overrides)
    resume = value_of(overrides, "resume")
    if options.multirun or resume is None:
        return list(arguments)
    command = _Command(
        overrides, config_dir=options.config_dir, config_name=options.config_name or "train"
    )
    folder = command.run_folder(str(resume))
    if not (folder / "config.yaml").is_file():
        return list(arguments)
    completed = command.continuing(folder)
    first = _place(arguments, options.overrides)
    return [*arguments[:first], *arguments[first + len(overrides) :], *completed]


@dataclass(frozen=True)
class _OwnFiles:
    """Configuration from the files of a run.

    Attributes:
        overrides: Choose them.
        composed: The configuration that they make by themselves.
        is_whole: Whether the experiment was found.
    """

    overrides: list[str]
    composed: DictConfig
    is_whole: bool


class _Command:
    """One command line: its overrides and its configuration folders.

    Args:
        overrides: Its overrides.
        config_dir: Of ``--config-dir``.
        config_name: Of ``--config-name``.
    """

    def __init__(
        self, overrides: Sequence[Override], *, config_dir: str | None, config_name: str
    ) -> None:
        self.overrides = overrides
        self.config_dir = config_dir
        self.config_name = config_name

    def run_folder(self, resume: str) -> Path:
        """The folder of the run that is continued; of ``auto`` one that may be a new one.

        Raises:
            ValueError: If ``resume`` names no run, or another override another folder.
        """
        given = value_of(self.overrides, "output_dir")
        if resume != "auto":
            folder = resumed_folder(resume)
            if given is not None and Path(str(given)).resolve() != folder.resolve():
                raise ValueError(
                    f"output_dir={given} is not the folder of resume={resume}; leave it out."
                )
            return folder
        if (started_in := value_of(self.overrides, "hydra.run.dir")) is not None:
            return Path(str(started_in))  # of the process that started this one
        naming = [
            override.input_line
            for override in self.overrides
            if "." not in override.key_or_group and not override.is_delete() and override.input_line
        ]
        return Path(self._compose(naming).output_dir)

    def continuing(self, folder: Path) -> list[str]:
        """The overrides that compose the run's configuration with this command's on top."""
        stored = read_config(folder, trusted=self._trusted())
        composition = read_composition(folder)
        chosen = self._chosen(composition, folder)
        own = self._own_files(composition, folder)
        kept = [
            override
            for override in own.overrides
            if not any(f"{key_of(override)}/".startswith(f"{group}/") for group in chosen)
        ]
        known = [str(key) for key in own.composed]
        if unknown := [name for name in stored if name not in known]:
            raise ValueError(f"{folder / 'config.yaml'}: {misspelled(unknown[0], known)}")
        named = {override.key_or_group for override in self.overrides} - chosen
        after = self._compose([*kept, *self._own_overrides()])
        given = set(composition.given)
        values = missed_values(own.composed, after, stored, named=named, given=given)
        if launched().is_first:
            tell_drift(own.composed, values, given, folder, is_whole=own.is_whole)
        restored = [f"++{key}={literal(value)}" for key, value in values.items()]
        found = [
            f"resume={literal(str(folder))}" if override == "resume=auto" else override
            for override in self._own_overrides()
        ]
        return [*kept, *restored, *found]

    def _trusted(self) -> set[str]:
        """Packages that this command trusts, and classes that it names itself."""
        named = (
            override.value()
            for override in self.overrides
            if override.key_or_group.endswith("_target_")
        )
        return {*(value_of(self.overrides, "trusted_packages") or ()), *map(str, named)}

    def _own_overrides(self) -> list[str]:
        return [override.input_line for override in self.overrides if override.input_line]

    def _chosen(self, composition: Composition, folder: Path) -> set[str]:
        """The groups of which this command names a file; those it may not change are compared.

        Raises:
            ValueError: Naming a group that is fixed.
        """
        groups = {*composition.choices, *FIXED_GROUPS}
        chosen = set()
        for override in self.overrides:
            group = override.key_or_group
            if group not in groups:
                continue
            chosen.add(group)
            was = composition.choices.get(group)
            if group in FIXED_GROUPS and override.value() != was:
                raise ValueError(
                    f"{group}={override.value()} cannot be applied to the run in {folder}, which "
                    f"has {group}={was}. Leave it out and give single keys, or start a new run."
                )
        return chosen

    def _own_files(self, composition: Composition, folder: Path) -> _OwnFiles:
        """Compose the run from its file of each group; without its experiment if that is gone.

        Raises:
            ValueError: Naming another file that is not there.
        """
        choices = {
            group: choice
            for group, choice in composition.choices.items()
            if choice is not None and (group not in FIXED_GROUPS or group in CHOSEN_AT_START)
        }
        overrides = [f"{group}={choice}" for group, choice in choices.items()]
        try:
            return _OwnFiles(overrides, self._compose(overrides), is_whole=True)
        except MissingConfigException as error:
            if error.missing_cfg_file != f"experiment/{choices.get('experiment')}":
                raise ValueError(
                    f"The run in {folder} was composed from {error.missing_cfg_file}, which is not "
                    "there; give --config-dir with the folder that holds it."
                ) from error
        overrides = [
            NO_EXPERIMENT,
            *(override for override in overrides if key_of(override) != "experiment"),
        ]
        return _OwnFiles(overrides, self._compose(overrides), is_whole=False)

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        """Compose what ``train`` would, without Hydra's own part."""
        overrides = [
            override for override in overrides if not override.lstrip("+~").startswith("hydra")
        ]
        if self.config_dir is not None:
            path = Path(self.config_dir).absolute()
            overrides.append(f"hydra.searchpath=[{literal(f'file://{path}')}]")
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            return compose(self.config_name, overrides=overrides)


def composition_of(runtime: HydraConf, before: Composition | None) -> Composition:
    """Return the composition to be stored.

    Args:
        runtime: Hydra's own configuration: group choices, overrides.
        before: What the run has stored already, if it is continued.
    """
    choices = dict(before.choices) if before else {}
    choices |= {
        group: choice
        for group, choice in runtime.runtime.choices.items()
        if not group.startswith("hydra/")
    }
    keys = [override.key_or_group for override in parsed(runtime.overrides.task)]
    given = {
        key for key in keys if KEY.fullmatch(key) and key not in choices and key not in ONE_COMMAND
    }
    return Composition(choices, (*(before.given if before else ()), *given))


def _place(arguments: Sequence[str], overrides: Sequence[str]) -> int:
    """Index of the overrides in the arguments, where they stand together."""
    starts = range(len(arguments) - len(overrides) + 1)
    return next(
        i for i in reversed(starts) if list(arguments[i : i + len(overrides)]) == list(overrides)
    )
