"""Modules of a run before it is trained, without data and validation: to be counted or timed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from ldm_lightning.autoencoder.frozen import FrozenFirstStage
from ldm_lightning.autoencoder.normalizer import LatentNormalizer
from ldm_lightning.builders.first_stage import (
    build_adversary,
    build_term_weights,
    stored_first_stage,
)
from ldm_lightning.builders.second_stage import stored_second_stage
from ldm_lightning.builders.training import build_optimization
from ldm_lightning.conditioner.base import Conditioner
from ldm_lightning.loss.reconstruction import ReconstructionLoss
from ldm_lightning.metrics.features import tiny_features
from ldm_lightning.metrics.first_stage import FirstStageMetrics
from ldm_lightning.module.autoencoder import AutoencoderModule
from ldm_lightning.module.diffusion import DiffusionModule
from ldm_lightning.nn.condition import Condition
from ldm_lightning.restore.first_stage import build_autoencoder
from ldm_lightning.restore.second_stage import build_networks, build_process


def untrained_first_stage(
    cfg: DictConfig, reconstruction_loss: ReconstructionLoss, *, device: str
) -> AutoencoderModule:
    """Build the module of a first stage.

    Args:
        cfg: The composed configuration.
        reconstruction_loss: Its loss.
        device: Of what is trained; ``meta`` takes no memory.
    """
    stored = stored_first_stage(cfg)
    with torch.device(device):
        autoencoder = build_autoencoder(stored)
        adversary = build_adversary(cfg, num_devices=1)
    return AutoencoderModule(
        autoencoder,
        reconstruction_loss,
        term_weights=build_term_weights(cfg),
        adversary=adversary,
        optimization=build_optimization(cfg, num_devices=1),
        metrics=FirstStageMetrics(
            tiny_features(),
            latent_channels=autoencoder.latent_channels,
            num_codes=autoencoder.bottleneck.num_codes,
        ),
        seed=cfg.seed,
        log_every_steps=cfg.log_every_steps,
        stored_config=stored,
    )


def untrained_second_stage(
    cfg: DictConfig, first_stage: Mapping[str, Any], *, device: str
) -> DiffusionModule:
    """Build the module of a second stage around an untrained first stage.

    Args:
        cfg: The composed configuration, after ``resolve_condition``.
        first_stage: Description of the first stage.
        device: Of all networks; ``meta`` takes no memory.
    """
    stored = stored_second_stage(cfg)
    with torch.device(device):
        networks, autoencoder = build_networks(stored), build_autoencoder(first_stage)
    return DiffusionModule(
        networks.denoiser,
        networks.conditioner,
        build_process(stored),
        FrozenFirstStage(
            autoencoder,
            LatentNormalizer.identity(cfg.latent_channels),
            weights_hash="",
            path=Path("untrained"),
            weights="raw",
        ),
        optimization=build_optimization(cfg, num_devices=1),
        seed=cfg.seed,
        log_every_steps=cfg.log_every_steps,
        stored_config=stored,
        protocol={},
    )


class NullConditioner(nn.Module):
    """Gives every batch the condition that stands for none, which has the size of any other.

    So a plan needs no entries of the batch that only a user's own data and conditioner know.

    Args:
        conditioner: Makes that condition.
    """

    dropout = 0.0

    def __init__(self, conditioner: Conditioner) -> None:
        super().__init__()
        self.conditioner = conditioner

    def forward(self, batch: Mapping[str, Any], *, drop: Tensor | None) -> Condition:
        """Return the null condition of as many rows as ``batch`` has."""
        rows: Tensor = batch["image" if "image" in batch else "mean"]
        return self.conditioner.null(len(rows), rows.device)
