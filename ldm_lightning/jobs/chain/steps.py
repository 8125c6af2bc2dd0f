"""The steps of a chain from images to a measured second stage, and which overrides go to which.

Pure functions over the overrides of a command line; ``running.py`` runs what they give.
"""

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ldm_lightning.runs.overrides import key_of, path_override

SHARED = (
    *("data", "scale", "features", "trainer", "logger"),
    *("resolution", "image_channels", "train_crop", "eval_crop", "seed", "cache_dir"),
    *("page", "run_group"),
)
"""Groups and keys that describe images, the machine and what is written: they count for both
stages."""

LATENT_DATA_KEYS = (
    "data.batch_size",
    "data.val_batch_size",
    "data.num_workers",
    "data.worker_timeout_seconds",
    "data.max_val_images",
)
"""What ``data=latents`` takes of the overrides about data."""

OWN_KEYS = ("resume", "output_dir", "dry_run", "first_stage.overrides")
OWN_MAPPINGS = ("encode", "samples")

NOT_FOR_THE_PRIOR = ("labels", "npz", "sampler")
"""Overrides of ``sample`` that say nothing about decoded noise."""


@dataclass(frozen=True)
class Step:
    """One command of a chain.

    Attributes:
        name: Its folder in the chain.
        command: The module of ldm_lightning that it runs.
        overrides: The command line of that module.
        options: What stands before the overrides: ``--config-dir`` and its folder.
    """

    name: str
    command: str
    overrides: tuple[str, ...]
    options: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The command as a user types it."""
        return shlex.join(["python", "-m", f"ldm_lightning.{self.command}", *self.arguments])

    @property
    def arguments(self) -> tuple[str, ...]:
        """The overrides after the module."""
        return (*self.options, *self.overrides)


@dataclass(frozen=True)
class Request:
    """Arguments of a chain.

    Attributes:
        experiment: Of the second stage.
        first_stage: Experiment of the first stage.
        overrides: As the user gave them.
        first_stage_overrides: For the training of the first stage alone.
        encode_overrides: For ``encode`` alone.
        num_samples: Generated at the end.
        sample_overrides: For ``sample`` alone.
    """

    experiment: str
    first_stage: str
    overrides: tuple[str, ...]
    first_stage_overrides: tuple[str, ...] = ()
    encode_overrides: tuple[str, ...] = ()
    num_samples: int = 2000
    sample_overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageFacts:
    """Overrides of ``evaluate`` about the images, from the first stage's configuration."""

    data: str
    features: str
    eval_crop: str
    image_channels: int


# Overrides


def _head(override: str) -> str:
    """The group, or the first part of the key."""
    return key_of(override).partition(".")[0]


def overridden(overrides: Iterable[str], stronger: Iterable[str]) -> list[str]:
    """``overrides``, of which those with a key of ``stronger`` give way to these."""
    stronger = list(stronger)
    keys = {key_of(override) for override in stronger}
    return [*(override for override in overrides if key_of(override) not in keys), *stronger]


def first_stage_overrides(overrides: Iterable[str]) -> list[str]:
    """The overrides about images and the machine, without the second stage's batch size."""
    return [
        override
        for override in overrides
        if _head(override) in SHARED and key_of(override) != "data.batch_size"
    ]


def second_stage_overrides(overrides: Iterable[str]) -> list[str]:
    """The overrides for ``train`` on latents: all but the chain's own and those about images."""
    return [
        override
        for override in overrides
        if key_of(override) not in ("experiment", *OWN_KEYS)
        and _head(override) not in OWN_MAPPINGS
        and (_head(override) != "data" or key_of(override) in LATENT_DATA_KEYS)
    ]


def held_out_overrides(
    overrides: Sequence[str], facts: ImageFacts, *, num_samples: int
) -> list[str]:
    """The overrides by which ``evaluate`` finds the held-out images of the first stage.

    Args:
        overrides: Those of the first stage's training.
        facts: What its configuration says about the images.
        num_samples: As many images are compared with, unless an override says how many.
    """
    kept = [
        override
        for override in overrides
        if key_of(override) in ("seed", "cache_dir")
        or key_of(override).startswith(("data.", "features."))
        and key_of(override) != "data.batch_size"
    ]
    return overridden(
        [
            f"data={facts.data}",
            f"features={facts.features}",
            f"eval_crop={facts.eval_crop}",
            f"image_channels={facts.image_channels}",
            f"data.max_val_images={num_samples}",
        ],
        kept,
    )


# Steps


def _grouped(overrides: list[str], folder: Path) -> list[str]:
    """``overrides``, and a group of the chain's own, by which W&B shows both trainings together.

    It has the name of two folders: the chain's own is a time, or in a sweep a number and a hash.
    """
    if any(key_of(override) == "run_group" for override in overrides):
        return overrides
    group = re.sub(r"[^\w.-]", "_", f"{folder.parent.name}_{folder.name}", flags=re.ASCII)
    return [*overrides, f"run_group={group}"]


def trainings(request: Request, folder: Path, *, dry_run: bool = False) -> tuple[Step, Step]:
    """The training of the first and of the second stage in the chain's folder.

    A dry run has folders of its own: nothing may take them for the beginning of a training.
    """
    runs = folder / "dry_run" if dry_run else folder
    last = ["dry_run=true"] if dry_run else []
    first = [
        f"experiment={request.first_stage}",
        *_grouped(
            overridden(first_stage_overrides(request.overrides), request.first_stage_overrides),
            folder,
        ),
        path_override("output_dir", runs / "first_stage"),
        *last,
    ]
    second = [
        f"experiment={request.experiment}",
        path_override("first_stage.checkpoint", folder / "first_stage"),
        "data=latents",
        path_override("data.root", folder / "latents"),
        *_grouped(second_stage_overrides(request.overrides), folder),
        path_override("output_dir", runs / "second_stage"),
        *last,
    ]
    return Step("first_stage", "train", tuple(first)), Step("second_stage", "train", tuple(second))


def all_steps(
    request: Request, first: Step, second: Step, facts: ImageFacts, folder: Path
) -> tuple[Step, ...]:
    """Every step in its order, around the two trainings."""
    trained = path_override("checkpoint", folder / "first_stage")
    cache = [override for override in first.overrides if key_of(override) == "cache_dir"]
    latents = overridden(
        [trained, path_override("output", folder / "latents"), *cache], request.encode_overrides
    )
    prior_overrides = [
        override
        for override in request.sample_overrides
        if _head(override) not in NOT_FOR_THE_PRIOR
    ]
    held_out = held_out_overrides(first.overrides, facts, num_samples=request.num_samples)

    def samples(name: str, own: list[str], stronger: Iterable[str]) -> Step:
        overrides = [path_override("checkpoint", folder / "second_stage"), *own]
        overrides += [f"num_samples={request.num_samples}", path_override("output", folder / name)]
        return Step(name, "sample", tuple(overridden(overrides, stronger)))

    def evaluation(name: str, *overrides: str) -> Step:
        return Step(name, "evaluate", (*overrides, path_override("output_dir", folder / name)))

    return (
        first,
        evaluation("first_stage_evaluation", trained, *cache),
        Step("latents", "encode", tuple(latents)),
        second,
        samples("samples", [], request.sample_overrides),
        samples("prior", ["prior=true"], prior_overrides),
        evaluation("evaluation", path_override("images", folder / "samples" / "images"), *held_out),
        evaluation(
            "prior_evaluation", path_override("images", folder / "prior" / "images"), *held_out
        ),
    )


def continued(step: Step, folder: Path) -> Step:
    """The step as it is to be run now: a training that has begun goes on."""
    run = folder / step.name
    if step.command == "train" and (run / "config.yaml").is_file():
        return replace(step, overrides=(path_override("resume", run),))
    return step
