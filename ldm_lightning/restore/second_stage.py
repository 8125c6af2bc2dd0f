"""A trained second stage from its checkpoint, with the first stage it belongs to."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from ldm_lightning.autoencoder.frozen import FrozenFirstStage
from ldm_lightning.autoencoder.normalizer import LatentNormalizer
from ldm_lightning.checkpoints.checkpoint import load_checkpoint, load_strict, trained_weights
from ldm_lightning.checkpoints.contents import (
    CLASSES,
    COUNT,
    MAPPING,
    SIZE,
    TEXT,
    IfThere,
    OrNone,
    check,
)
from ldm_lightning.checkpoints.targets import PART_PACKAGES, check_targets
from ldm_lightning.conditioner.base import Conditioner
from ldm_lightning.data.class_names import trained_classes
from ldm_lightning.diffusion.process import Process
from ldm_lightning.restore.first_stage import open_first_stage
from ldm_lightning.runs.run_folder import find_checkpoint
from ldm_lightning.sampler.images import ImageSampler
from ldm_lightning.sampler.sampler import Sampler
from ldm_lightning.storage.hashing import hash_tensors
from ldm_lightning.utils.errors import CheckpointError, error_line

DESCRIPTION = {
    **dict.fromkeys(("denoiser", "conditioner", "diffusion", "sampler", "normalizer"), MAPPING),
    "resolution": SIZE,
    "image_channels": COUNT,
    "classes": IfThere(CLASSES),
    "first_stage": {"path": TEXT, "weights": TEXT, "hash": TEXT},
}
"""What a checkpoint says of its second stage."""


@dataclass(frozen=True)
class Networks:
    """Networks that a second stage trains."""

    denoiser: nn.Module
    conditioner: Conditioner

    @property
    def model(self) -> nn.ModuleDict:
        """Both, under the names of a checkpoint."""
        return nn.ModuleDict({"denoiser": self.denoiser, "conditioner": self.conditioner})


@dataclass(frozen=True)
class OpenedSecondStage:
    """A second stage as its checkpoint holds it, on the CPU in float32, in evaluation mode.

    Attributes:
        networks: With the trained weights.
        process: What they were trained with.
        first_stage: With the normalizer it was trained under.
        description: What it was rebuilt from.
        weights: ``ema`` or ``raw``: which weights it holds.
        weights_hash: SHA-256 of the networks' tensors.
        path: The checkpoint file.
        step: Updates it was trained for; None where the file does not say.
        trusted_packages: Of the user's own, which the file may name too.
    """

    networks: Networks
    process: Process
    first_stage: FrozenFirstStage
    description: dict[str, Any]
    weights: str
    weights_hash: str
    path: Path
    step: int | None
    trusted_packages: tuple[str, ...] = ()

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes by id, where they are known."""
        return (self.description.get("classes") or {}).get("names")

    @property
    def trained_classes(self) -> tuple[int, ...]:
        """Ids of the classes it has seen images of; none without classes."""
        num_classes = self.networks.conditioner.num_classes
        return trained_classes(self.description, num_classes) or ()


def open_second_stage(
    checkpoint: str | Path,
    *,
    weights: str,
    first_stage_checkpoint: str | None,
    trusted_packages: Collection[str] = (),
) -> OpenedSecondStage:
    """Rebuild a second stage and find its first stage again.

    Args:
        checkpoint: A ``.ckpt`` or a run folder: ``best.ckpt``, else ``last.ckpt``.
        weights: ``ema`` takes the moving average where there is one, else the raw weights; ``raw``
            takes the raw weights.
        first_stage_checkpoint: Where the first stage is now; None looks where it was, and beside
            the run as in the folder of a chain.
        trusted_packages: Of the user's own, whose classes and functions both files may name.

    Raises:
        ValueError: If one of the two is missing or damaged, names a part of a package that is not
            trusted, or the first stage is another one.
    """
    path = find_checkpoint(checkpoint)
    content = load_checkpoint(path)
    if "second_stage" not in content:
        raise ValueError(
            f"checkpoint={path} holds no second stage; expected a run of an ldm_* experiment."
        )
    try:
        check(content["second_stage"], DESCRIPTION, "second_stage")
        check(content.get("global_step"), OrNone(COUNT), "global_step")
        stored = dict(content["second_stage"])
        normalizer = LatentNormalizer.from_dict(stored["normalizer"])
        parts = {name: stored[name] for name in ("denoiser", "conditioner", "diffusion")}
        check_targets(parts, allowed=(*PART_PACKAGES, *trusted_packages))
        with torch.random.fork_rng(devices=[]):  # layers are initialized before they are loaded
            networks = build_networks(stored)
        process = build_process(stored)
    except Exception as error:  # any type: constructors meet values they were not written for
        raise CheckpointError(
            f"checkpoint={path}: second_stage describes no diffusion model ({error_line(error)})."
        ) from error
    chosen = trained_weights(content, weights, path=path, part="model")
    model = networks.model
    load_strict(model, chosen.tensors, path)
    model.eval().requires_grad_(False)
    known = stored["first_stage"]
    place = first_stage_checkpoint or _find_first_stage(Path(known["path"]), path)
    try:
        first_stage = open_first_stage(
            place, weights=known["weights"], trusted_packages=trusted_packages
        ).frozen()
    except ValueError as error:
        raise ValueError(
            f"{path} needs its first stage with the weights {known['hash'][:12]} "
            f"(weights={known['weights']}), formerly {known['path']}. {error} Give "
            "first_stage.checkpoint=RUN."
        ) from error
    try:
        first_stage.check_weights(known["hash"])
        first_stage.set_normalizer(normalizer)
    except ValueError as error:
        raise CheckpointError(f"checkpoint={path} does not fit its first stage: {error}") from error
    return OpenedSecondStage(
        networks,
        process,
        first_stage,
        stored,
        chosen.kind,
        hash_tensors(model.state_dict()),
        path,
        content.get("global_step"),
        tuple(trusted_packages),
    )


def opened_sampler(opened: OpenedSecondStage, sampler: DictConfig, *, seed: int) -> ImageSampler:
    """Build the sampler of a checkpoint."""
    return image_sampler(
        instantiate(sampler),
        opened.networks,
        opened.process,
        opened.first_stage,
        opened.description,
        seed=seed,
    )


def stored_sampler(opened: OpenedSecondStage) -> dict[str, Any]:
    """Configuration of the sampler that a checkpoint names, after checking its targets."""
    stored = opened.description["sampler"]
    check_targets(stored, allowed=("ldm_lightning.sampler", *opened.trusted_packages))
    return dict(stored)


def _find_first_stage(formerly: Path, checkpoint: Path) -> Path:
    """Path of the first stage: its old one, or beside the run if a chain's folder was moved."""
    moved = checkpoint.absolute().parents[2] / "first_stage" / "checkpoints" / formerly.name
    return moved if moved.is_file() and not formerly.is_file() else formerly


def build_networks(stored: Mapping[str, Any]) -> Networks:
    """Build the networks of a description that is the user's own, or was checked."""
    return Networks(instantiate(stored["denoiser"]), instantiate(stored["conditioner"]))


def build_process(stored: Mapping[str, Any]) -> Process:
    """Build the diffusion process of a description that is the user's own, or was checked."""
    return instantiate(stored["diffusion"])


def image_sampler(
    sampler: Sampler,
    networks: Networks,
    process: Process,
    first_stage: FrozenFirstStage,
    stored: Mapping[str, Any],
    *,
    seed: int,
) -> ImageSampler:
    """Join what turns noise into images of the resolution that a description names."""
    size = stored["resolution"]
    size = [size] * 2 if isinstance(size, int) else list(size)
    _, _, height, width = first_stage.latent_shape((1, stored["image_channels"], *size))
    return ImageSampler(
        sampler=sampler,
        process=process,
        denoiser=networks.denoiser,
        conditioner=networks.conditioner,
        first_stage=first_stage,
        latent_size=(height, width),
        seed=seed,
        classes=trained_classes(stored, networks.conditioner.num_classes),
    )
