"""The networks of a run by name, without memory: what a dry run counts and a plan prices."""

import logging
from collections.abc import Mapping

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from ldm_lightning import build, second_stage
from ldm_lightning.first_stage import rebuild_autoencoder

log = logging.getLogger(__name__)


def networks_without_memory(cfg: DictConfig) -> dict[str, nn.Module]:
    """Build what a run trains on the meta device; of a first stage its parts, then the whole.

    Args:
        cfg: The composed configuration; ``second_stage.resolve_condition`` changes it.

    Raises:
        ValueError: If the parts do not go together.
    """
    if cfg.stage == "second":
        try:
            second_stage.resolve_condition(cfg, num_classes=None)
        except ValueError:
            log.warning("conditioner.num_classes follows from the data: counted with 1 class.")
            second_stage.resolve_condition(cfg, num_classes=1)
        stored = second_stage.stored_second_stage(cfg)
        instantiate(cfg.sampler).check(second_stage.build_process(stored))
        with torch.device("meta"):
            return dict(second_stage.build_networks(stored).model.items())
    with torch.device("meta"):
        autoencoder = rebuild_autoencoder(build.stored_first_stage(cfg))
        adversary = build.build_adversary(cfg, num_devices=1)
    networks: dict[str, nn.Module] = {
        "encoder": autoencoder.encoder,
        "decoder": autoencoder.decoder,
        "bottleneck": autoencoder.bottleneck,
        "autoencoder": autoencoder,
    }
    return networks | ({"discriminator": adversary.discriminator} if adversary else {})


def count_parameters(networks: Mapping[str, nn.Module]) -> dict[str, int]:
    """Parameters of each network."""
    return {
        name: sum(parameter.numel() for parameter in network.parameters())
        for name, network in networks.items()
    }
