"""The first stage in training: autoencoder, losses, discriminator, metrics."""

from collections.abc import Mapping
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from ldm_lightning.autoencoder.autoencoder import Autoencoder
from ldm_lightning.builders.image_metrics import build_image_metrics
from ldm_lightning.builders.optimizer import build_optimizer_factory
from ldm_lightning.builders.training import build_features, build_optimization, learning_rate
from ldm_lightning.config import discriminator_start, plain
from ldm_lightning.loss.adversarial import AdversarialLoss, AdversarialSchedule
from ldm_lightning.loss.pixel import pixel_loss
from ldm_lightning.loss.reconstruction import ReconstructionLoss
from ldm_lightning.loss.terms import LossTerm
from ldm_lightning.metrics.features import FeatureSet
from ldm_lightning.metrics.first_stage import FirstStageMetrics
from ldm_lightning.metrics.linear_floor import LatentDescription, LinearFloor
from ldm_lightning.metrics.names import MetricMeaning, register
from ldm_lightning.module.autoencoder import AutoencoderModule
from ldm_lightning.module.settings import Adversary
from ldm_lightning.restore.first_stage import build_autoencoder


def stored_first_stage(cfg: DictConfig) -> dict[str, Any]:
    """Plain description of the autoencoder, from which ``build_autoencoder`` makes it again."""
    resolved = plain(cfg)
    return {
        key: resolved[key] for key in ("autoencoder", "bottleneck", "image_channels", "resolution")
    }


def build_adversary(cfg: DictConfig, *, num_devices: int) -> Adversary | None:
    """Build the discriminator, its loss and optimizer; None where there is none."""
    if not cfg.discriminator._target_:
        return None
    loss = AdversarialLoss(
        form=cfg.loss.adversarial_form,
        weight=cfg.loss.adversarial_weight,
        adaptive=cfg.loss.adaptive,
        schedule=AdversarialSchedule(
            start_step=discriminator_start(cfg),
            warmup_steps=cfg.loss.discriminator_warmup_steps,
            ramp_steps=cfg.loss.discriminator_ramp_steps,
        ),
        r1_weight=cfg.loss.r1_weight,
        lecam_weight=cfg.loss.lecam_weight,
    )
    rate = learning_rate(cfg, num_devices=num_devices) * cfg.optim.discriminator_learning_rate_ratio
    return Adversary(
        discriminator=instantiate(cfg.discriminator),
        loss=loss,
        optimizer=build_optimizer_factory(cfg.optim, rate=rate),
    )


def build_reconstruction_loss(cfg: DictConfig, *, trained: bool = True) -> ReconstructionLoss:
    """Build pixel loss, perceptual distance and further terms.

    Args:
        cfg: The composed configuration.
        trained: Load the perceptual network's weights, which may have to be downloaded; without, it
            has its sizes alone (see ``Lpips.without_weights``).
    """
    perceptual_weight = float(cfg.loss.perceptual_weight)
    target = f"{cfg.loss.perceptual._target_}{'' if trained else '.without_weights'}"
    return ReconstructionLoss(
        pixel_loss(cfg.loss.pixel),
        instantiate(cfg.loss.perceptual, _target_=target) if perceptual_weight else None,
        perceptual_weight=perceptual_weight,
        reduction=cfg.loss.reduction,
        terms=build_loss_terms(cfg),
    )


def build_term_weights(cfg: DictConfig) -> dict[str, float]:
    """Weights of ``loss.<term>_weight`` by term, those of the bottleneck among them."""
    suffix = "_weight"
    return {key.removesuffix(suffix): cfg.loss[key] for key in cfg.loss if key.endswith(suffix)}


def build_loss_terms(cfg: DictConfig) -> dict[str, LossTerm]:
    """Build the further terms of ``loss.terms`` by name; those set to null are off.

    Raises:
        ValueError: If one names no class or no weight.
    """
    terms: dict[str, LossTerm] = {}
    for name, node in cfg.loss.terms.items():
        if node is None:
            continue
        arguments = dict(node)
        weight = arguments.pop("weight", None)
        if not isinstance(weight, (int, float)) or not arguments.get("_target_"):
            raise ValueError(f"loss.terms.{name} needs _target_=CLASS and weight=NUMBER.")
        terms[str(name)] = LossTerm(instantiate(arguments), float(weight))
        target = str(arguments["_target_"]).rpartition(".")[2]
        register(str(name), MetricMeaning(f"loss term {target}, mean over images", False))
    return terms


def build_first_stage_module(
    cfg: DictConfig,
    *,
    protocol: Mapping[str, str | int | float],
    num_devices: int,
    features: FeatureSet | None = None,
    reconstruction_loss: ReconstructionLoss | None = None,
) -> AutoencoderModule:
    """Build the first stage's module.

    Args:
        cfg: The composed configuration.
        protocol: Describes the images of its validation.
        num_devices: Processes that train together.
        features: Feature networks of the metrics; None builds them.
        reconstruction_loss: None builds it.
    """
    features = features or build_features(cfg)
    stored = stored_first_stage(cfg)
    autoencoder = build_autoencoder(stored)
    metrics = build_metrics(cfg, features, autoencoder=autoencoder, protocol=protocol)
    return AutoencoderModule(
        autoencoder,
        reconstruction_loss or build_reconstruction_loss(cfg),
        term_weights=build_term_weights(cfg),
        adversary=build_adversary(cfg, num_devices=num_devices),
        optimization=build_optimization(cfg, num_devices=num_devices),
        metrics=metrics,
        raw_metrics=build_metrics(cfg, features, autoencoder=autoencoder, protocol=protocol)
        if cfg.validation.raw
        else None,
        linear_floor=build_linear_floor(
            autoencoder, features, metrics=metrics, protocol=protocol, seed=cfg.seed
        )
        if cfg.validation.linear_floor
        else None,
        seed=cfg.seed,
        log_every_steps=cfg.log_every_steps,
        stored_config=stored,
    )


def build_linear_floor(
    autoencoder: Autoencoder,
    features: FeatureSet,
    *,
    metrics: FirstStageMetrics,
    protocol: Mapping[str, str | int | float],
    seed: int,
) -> LinearFloor:
    """Build the linear floor of an autoencoder, measured beside its metrics."""
    latents = LatentDescription(
        latent_channels=autoencoder.latent_channels,
        downsampling_factor=autoencoder.downsampling_factor,
        num_codes=autoencoder.bottleneck.num_codes,
    )
    return LinearFloor(
        latents, features, beside=metrics.reconstruction, protocol=protocol, seed=seed
    )


def build_metrics(
    cfg: DictConfig,
    features: FeatureSet,
    *,
    autoencoder: Autoencoder,
    protocol: Mapping[str, str | int | float],
) -> FirstStageMetrics:
    """Build what validation measures."""
    return FirstStageMetrics(
        features,
        latent_channels=autoencoder.latent_channels,
        downsampling_factor=autoencoder.downsampling_factor,
        num_codes=autoencoder.bottleneck.num_codes,
        protocol=protocol,
        cache_dir=cfg.cache_dir,
        own=build_image_metrics(cfg),
    )
