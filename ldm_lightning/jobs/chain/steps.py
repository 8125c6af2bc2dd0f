"""The steps of a chain from images to a measured second stage, and which words go to which.

Pure functions over the words of a command line; ``running.py`` runs what they give.
"""

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ldm_lightning.runs.overrides import key_of, path_word

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
"""What ``data=latents`` takes of the words about data."""

OWN_KEYS = ("resume", "output_dir", "dry_run", "first_stage.overrides")
OWN_MAPPINGS = ("encode", "samples")

NOT_FOR_THE_PRIOR = ("labels", "npz", "sampler")
"""Words of ``sample`` that say nothing about decoded noise."""


@dataclass(frozen=True)
class Step:
    """One command of a chain.

    Attributes:
        name: Its folder in the chain.
        command: The module of ldm_lightning that it runs.
        words: The command line of that module.
        options: What stands before the words: ``--config-dir`` and its folder.
    """

    name: str
    command: str
    words: tuple[str, ...]
    options: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The command as a user types it."""
        return shlex.join(["python", "-m", f"ldm_lightning.{self.command}", *self.line_words])

    @property
    def line_words(self) -> tuple[str, ...]:
        """The words after the module."""
        return (*self.options, *self.words)


@dataclass(frozen=True)
class Request:
    """Arguments of a chain.

    Attributes:
        experiment: Of the second stage.
        first_stage: Experiment of the first stage.
        words: As the user gave them.
        first_stage_overrides: For the training of the first stage alone.
        encode_overrides: For ``encode`` alone.
        num_samples: Generated at the end.
        sample_overrides: For ``sample`` alone.
    """

    experiment: str
    first_stage: str
    words: tuple[str, ...]
    first_stage_overrides: tuple[str, ...] = ()
    encode_overrides: tuple[str, ...] = ()
    num_samples: int = 2000
    sample_overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageFacts:
    """Words of ``evaluate`` about the images, from the first stage's configuration."""

    data: str
    features: str
    eval_crop: str
    image_channels: int


# Words


def _head(word: str) -> str:
    """The group, or the first part of the key."""
    return key_of(word).partition(".")[0]


def overridden(words: Iterable[str], overrides: Iterable[str]) -> list[str]:
    """``words``, of which those with a key of ``overrides`` give way to these."""
    overrides = list(overrides)
    keys = {key_of(word) for word in overrides}
    return [*(word for word in words if key_of(word) not in keys), *overrides]


def first_stage_words(words: Iterable[str]) -> list[str]:
    """The words about images and the machine, without the second stage's batch size."""
    return [word for word in words if _head(word) in SHARED and key_of(word) != "data.batch_size"]


def second_stage_words(words: Iterable[str]) -> list[str]:
    """The words for ``train`` on latents: all but the chain's own and those about images."""
    return [
        word
        for word in words
        if key_of(word) not in ("experiment", *OWN_KEYS)
        and _head(word) not in OWN_MAPPINGS
        and (_head(word) != "data" or key_of(word) in LATENT_DATA_KEYS)
    ]


def held_out_words(words: Sequence[str], facts: ImageFacts, *, num_samples: int) -> list[str]:
    """The words by which ``evaluate`` finds the held-out images of the first stage.

    Args:
        words: Those of the first stage's training.
        facts: What its configuration says about the images.
        num_samples: As many images are compared with, unless a word says how many.
    """
    kept = [
        word
        for word in words
        if key_of(word) in ("seed", "cache_dir")
        or key_of(word).startswith(("data.", "features."))
        and key_of(word) != "data.batch_size"
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


def _grouped(words: list[str], folder: Path) -> list[str]:
    """``words``, and a group of the chain's own, by which W&B shows both trainings together.

    It has the name of two folders: the chain's own is a time, or in a sweep a number and a hash.
    """
    if any(key_of(word) == "run_group" for word in words):
        return words
    group = re.sub(r"[^\w.-]", "_", f"{folder.parent.name}_{folder.name}", flags=re.ASCII)
    return [*words, f"run_group={group}"]


def trainings(request: Request, folder: Path, *, dry_run: bool = False) -> tuple[Step, Step]:
    """The training of the first and of the second stage in the chain's folder.

    A dry run has folders of its own: nothing may take them for the beginning of a training.
    """
    runs = folder / "dry_run" if dry_run else folder
    last = ["dry_run=true"] if dry_run else []
    first = [
        f"experiment={request.first_stage}",
        *_grouped(
            overridden(first_stage_words(request.words), request.first_stage_overrides), folder
        ),
        path_word("output_dir", runs / "first_stage"),
        *last,
    ]
    second = [
        f"experiment={request.experiment}",
        path_word("first_stage.checkpoint", folder / "first_stage"),
        "data=latents",
        path_word("data.root", folder / "latents"),
        *_grouped(second_stage_words(request.words), folder),
        path_word("output_dir", runs / "second_stage"),
        *last,
    ]
    return Step("first_stage", "train", tuple(first)), Step("second_stage", "train", tuple(second))


def all_steps(
    request: Request, first: Step, second: Step, facts: ImageFacts, folder: Path
) -> tuple[Step, ...]:
    """Every step in its order, around the two trainings."""
    trained = path_word("checkpoint", folder / "first_stage")
    cache = [word for word in first.words if key_of(word) == "cache_dir"]
    latents = overridden(
        [trained, path_word("output", folder / "latents"), *cache], request.encode_overrides
    )
    prior_overrides = [
        word for word in request.sample_overrides if _head(word) not in NOT_FOR_THE_PRIOR
    ]
    held_out = held_out_words(first.words, facts, num_samples=request.num_samples)

    def samples(name: str, own: list[str], overrides: Iterable[str]) -> Step:
        words = [path_word("checkpoint", folder / "second_stage"), *own]
        words += [f"num_samples={request.num_samples}", path_word("output", folder / name)]
        return Step(name, "sample", tuple(overridden(words, overrides)))

    def evaluation(name: str, *words: str) -> Step:
        return Step(name, "evaluate", (*words, path_word("output_dir", folder / name)))

    return (
        first,
        evaluation("first_stage_evaluation", trained, *cache),
        Step("latents", "encode", tuple(latents)),
        second,
        samples("samples", [], request.sample_overrides),
        samples("prior", ["prior=true"], prior_overrides),
        evaluation("evaluation", path_word("images", folder / "samples" / "images"), *held_out),
        evaluation("prior_evaluation", path_word("images", folder / "prior" / "images"), *held_out),
    )


def continued(step: Step, folder: Path) -> Step:
    """The step as it is to be run now: a training that has begun goes on."""
    run = folder / step.name
    if step.command == "train" and (run / "config.yaml").is_file():
        return replace(step, words=(path_word("resume", run),))
    return step
