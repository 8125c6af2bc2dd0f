"""Operations of an experiment's denoiser on latents of any size, counted without memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from hydra import compose
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from ldm_lightning.nn.condition import Condition
from ldm_lightning.planning.counter import empty_weights, without_memory
from ldm_lightning.planning.update_cost import count_forward


@dataclass(frozen=True)
class DenoiserDescription:
    """Denoiser of an experiment, and the latents it was made for.

    Attributes:
        experiment: Its name.
        node: Configuration of the denoiser, plain values.
        latent_channels: c of the experiment.
        downsampling_factor: f of the experiment.
    """

    experiment: str
    node: Mapping[str, Any]
    latent_channels: int
    downsampling_factor: int


def describe_denoiser(experiment: str, *, scale: str) -> DenoiserDescription:
    """Compose a second stage's experiment and return its denoiser.

    Raises:
        ValueError: If the experiment is none of a second stage.
    """
    cfg = compose("train", overrides=[f"experiment={experiment}", f"scale={scale}"])
    if "denoiser" not in cfg:
        raise ValueError(
            f"second_stage={experiment} has no denoiser; give an experiment such as ldm_kl_f8."
        )
    node = OmegaConf.to_container(cfg.denoiser, resolve=True)
    assert isinstance(node, dict)
    return DenoiserDescription(
        experiment,
        {str(key): value for key, value in node.items()},
        latent_channels=int(cfg.latent_channels),
        downsampling_factor=int(cfg.downsampling_factor),
    )


def denoiser_flops(description: DenoiserDescription, *, height: int, width: int) -> int | None:
    """Count one unconditional forward pass on one latent of height and width.

    It has the experiment's channels; others change the first and last convolution alone, less than
    1 % of the sum.

    Returns:
        Floating-point operations; None where the denoiser cannot take latents of that size.
    """
    with torch.device("meta"):
        denoiser: nn.Module = instantiate(dict(description.node))
    with without_memory():
        network = empty_weights(denoiser, device=torch.device("cpu"), dtype=torch.float32)
        noisy = torch.empty(1, description.latent_channels, height, width)
        try:
            return count_forward(lambda: network(noisy, torch.empty(1), Condition()), network).flops
        except ValueError:  # it cannot halve them so often
            return None
