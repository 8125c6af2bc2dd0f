"""From configuration to a diffusion model in a first stage's latent space."""

import logging
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.progress import track

from ldm_lightning.autoencoder.frozen import FrozenFirstStage
from ldm_lightning.autoencoder.normalizer import (
    MODES,
    LatentNormalizer,
    StoredStatistics,
    statistics_path,
)
from ldm_lightning.builders.data import build_images
from ldm_lightning.builders.hardware import choose_computing
from ldm_lightning.builders.training import build_optimization
from ldm_lightning.config import plain
from ldm_lightning.data.class_names import describe_classes
from ldm_lightning.data.image_module import ImageDataModule
from ldm_lightning.data.latents.module import LatentDataModule
from ldm_lightning.data.module import MapDataModule
from ldm_lightning.data.samples import image_facts
from ldm_lightning.metrics.features import FeatureSet
from ldm_lightning.metrics.generation import GenerationMetrics
from ldm_lightning.metrics.latents import frozen_moments, measure_statistics
from ldm_lightning.module.diffusion import DiffusionModule
from ldm_lightning.module.generation import GenerationValidation
from ldm_lightning.restore.first_stage import open_first_stage
from ldm_lightning.restore.run_defaults import with_run_defaults
from ldm_lightning.restore.second_stage import build_networks, build_process, image_sampler

log = logging.getLogger(__name__)

NUM_SHOWN = 64
"""Samples in a picture."""


def resolve_condition(cfg: DictConfig, *, num_classes: int | None) -> None:
    """Fill in what the conditioner takes from the denoiser and from the data.

    Args:
        cfg: Is changed: ``conditioner.width`` and ``conditioner.num_classes`` where they are null.
        num_classes: Of the data; None where they have no labels, or are not known.

    Raises:
        ValueError: If classes are needed and there are none, or more than the model has.
    """
    conditioner = cfg.conditioner
    if "num_classes" not in conditioner:
        return
    if conditioner.num_classes is None:
        if num_classes is None:
            raise ValueError(
                "conditioner=class_label needs images with labels, and these data have none. Use "
                "data with class folders or .cls entries, or conditioner=none."
            )
        conditioner.num_classes = num_classes
    elif num_classes is not None and num_classes > conditioner.num_classes:
        raise ValueError(
            f"The data have {num_classes} classes, labels 0 to {num_classes - 1}, but "
            f"conditioner.num_classes={conditioner.num_classes}; set it to {num_classes}."
        )
    if conditioner.width is None:
        if conditioner.kind == "context":
            conditioner.width = cfg.denoiser.context_width
        else:
            with torch.device("meta"):
                conditioner.width = instantiate(cfg.denoiser).vector_width


def stored_second_stage(cfg: DictConfig) -> dict[str, Any]:
    """Plain description, from which ``build_networks`` and ``build_process`` make them again."""
    resolved = plain(cfg)
    names = ("denoiser", "conditioner", "diffusion", "sampler", "resolution", "image_channels")
    return {name: resolved[name] for name in names}


# The first stage in use


def build_frozen_first_stage(cfg: DictConfig, data: MapDataModule) -> FrozenFirstStage:
    """The frozen first stage of a run, without a normalizer yet: measuring one may take long.

    Raises:
        ValueError: If it is missing or does not fit the configuration, or if a latent cache was
            made with other weights.
    """
    kind = cfg.first_stage.normalizer
    if not isinstance(kind, (int, float)) and kind not in MODES:
        raise ValueError(
            f"first_stage.normalizer must be one of {', '.join(MODES)}, or a number such as "
            f"0.18215; got {kind!r}."
        )
    given = cfg.first_stage
    try:
        first_stage = open_first_stage(
            given.checkpoint, weights=given.weights, trusted_packages=cfg.trusted_packages
        ).frozen()
    except ValueError as error:
        raise ValueError(f"The first stage cannot be built: {error}") from error
    autoencoder = first_stage.autoencoder
    for key, own in (
        ("latent_channels", autoencoder.latent_channels),
        ("downsampling_factor", autoencoder.downsampling_factor),
    ):
        if cfg[key] != own:
            raise ValueError(
                f"{key}={cfg[key]}, but the first stage {first_stage.path} has {own}; give "
                f"{key}={own}, or the first stage this experiment was written for."
            )
    if isinstance(data, LatentDataModule):
        data.check(first_stage.weights_hash)
        size = [cfg.resolution] * 2 if isinstance(cfg.resolution, int) else list(cfg.resolution)
        wanted = first_stage.latent_shape((1, cfg.image_channels, *size))[1:]
        if data.latent_shape != wanted:
            raise ValueError(
                f"The latents of {data.root} are {list(data.latent_shape)}, but "
                f"resolution={cfg.resolution} gives {list(wanted)}; give the resolution that they "
                "were encoded at."
            )
    return first_stage


def fit_normalizer(cfg: DictConfig, first_stage: FrozenFirstStage, data: MapDataModule) -> None:
    """Give a first stage the normalizer of its training data.

    Raises:
        ValueError: If the statistics of a latent cache are of other latents.
    """
    first_stage.set_normalizer(_normalizer(cfg.first_stage.normalizer, first_stage, data))


def _normalizer(
    kind: str | float, first_stage: FrozenFirstStage, data: MapDataModule
) -> LatentNormalizer:
    """The normalizer that ``first_stage.normalizer`` asks for."""
    num_channels = first_stage.latent_channels
    if isinstance(kind, (int, float)):
        return LatentNormalizer(torch.zeros(num_channels), torch.full((num_channels,), float(kind)))
    if kind == "identity":
        return LatentNormalizer.identity(num_channels)
    if isinstance(data, LatentDataModule):
        statistics = data.statistics
    else:
        assert isinstance(data, ImageDataModule)
        statistics = _stored_or_measured(first_stage, data)
    return LatentNormalizer.from_statistics(statistics, mode=kind)


def _stored_or_measured(first_stage: FrozenFirstStage, data: ImageDataModule) -> StoredStatistics:
    """Statistics of the training images: those stored beside the first stage, or measured now.

    Other images, transforms and weights have files of their own.
    """
    loader = data.unaugmented_dataloader()
    dataset = data.train_dataset.without_augmentation()
    facts = image_facts(dataset, list(range(len(dataset))))
    protocol = {name: value for name, value in facts.items() if name != "root"}
    path = statistics_path(
        first_stage.path, first_stage_hash=first_stage.weights_hash, protocol=protocol
    )
    if path.is_file():
        try:
            statistics = StoredStatistics.load(path)
            LatentNormalizer.from_statistics(statistics, mode="identity").check(
                first_stage.weights_hash, protocol=protocol
            )  # the name says so; the content must too
            return statistics
        except ValueError as error:
            log.warning("%s is not used, the latents are measured anew: %s", path, error)
    batches = track(loader, description="latent statistics")
    device = choose_computing("32").device
    statistics = measure_statistics(
        frozen_moments(first_stage.to(device), (batch["image"] for batch in batches)),
        num_channels=first_stage.latent_channels,
        first_stage_hash=first_stage.weights_hash,
        protocol=protocol,
    )
    first_stage.cpu()
    try:
        statistics.save(path)
    except OSError as error:
        log.warning("The statistics of the latents could not be kept in %s: %s", path, error)
    return statistics


# Training


def build_second_stage_module(
    cfg: DictConfig,
    *,
    data: MapDataModule,
    first_stage: FrozenFirstStage,
    features: FeatureSet,
    num_devices: int,
) -> DiffusionModule:
    """Build the second stage's module.

    Args:
        cfg: The composed configuration, after ``resolve_condition``.
        data: What it is trained on.
        first_stage: Of the latents; its normalizer may be set later.
        features: Feature networks of the metrics.
        num_devices: Processes that train together.
    """
    stored = stored_second_stage(cfg)
    networks, process = build_networks(stored), build_process(stored)
    if (num_classes := networks.conditioner.num_classes) is not None:
        stored["classes"] = describe_classes(
            num_classes,
            num_known=data.num_classes or 0,
            names=data.class_names,
            without_images=data.classes_without_images(),
        )
    generation = None
    if cfg.validation.num_samples:
        real = data if isinstance(data, ImageDataModule) else real_images(cfg, first_stage)
        generation = GenerationValidation(
            image_sampler(
                instantiate(cfg.sampler), networks, process, first_stage, stored, seed=cfg.seed
            ),
            GenerationMetrics(features, protocol=real.protocol("val"), cache_dir=cfg.cache_dir),
            real.val_dataloader,
            num_samples=cfg.validation.num_samples,
            batch_size=cfg.validation.sample_batch_size,
            num_shown=NUM_SHOWN,
        )
    return DiffusionModule(
        networks.denoiser,
        networks.conditioner,
        process,
        first_stage,
        optimization=build_optimization(cfg, num_devices=num_devices),
        seed=cfg.seed,
        log_every_steps=cfg.log_every_steps,
        stored_config=stored,
        protocol=data.protocol("val"),
        generation=generation,
    )


def real_images(cfg: DictConfig, first_stage: FrozenFirstStage) -> ImageDataModule:
    """Images of the first stage's own run, against which samples are measured.

    A latent cache holds no images.
    """
    opened = open_first_stage(
        first_stage.path, weights=first_stage.weights, trusted_packages=cfg.trusted_packages
    )
    unknown = dict.fromkeys(("data", "resolution", "image_channels", "eval_crop", "precision"))
    features = OmegaConf.to_container(cfg.features, resolve=True)
    known = {"features": features, "cache_dir": cfg.cache_dir}
    defaults = with_run_defaults(OmegaConf.create({**unknown, **known}), opened)
    return build_images(defaults)
