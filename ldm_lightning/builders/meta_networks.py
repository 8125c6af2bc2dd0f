"""The networks of a run by name, without memory: counted by a dry run and by ``plan``."""

import logging
from collections.abc import Mapping

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from ldm_lightning.builders.first_stage import build_adversary, stored_first_stage
from ldm_lightning.builders.second_stage import resolve_condition, stored_second_stage
from ldm_lightning.restore.first_stage import build_autoencoder
from ldm_lightning.restore.second_stage import build_networks, build_process

log = logging.getLogger(__name__)


def networks_without_memory(cfg: DictConfig) -> dict[str, nn.Module]:
    """Build what a run trains on the meta device; of a first stage its parts, then the whole.

    Args:
        cfg: The composed configuration; ``resolve_condition`` changes it.

    Raises:
        ValueError: If the parts do not go together.
    """
    if cfg.stage == "second":
        try:
            resolve_condition(cfg, num_classes=None)
        except ValueError:
            log.warning("conditioner.num_classes follows from the data: counted with 1 class.")
            resolve_condition(cfg, num_classes=1)
        stored = stored_second_stage(cfg)
        instantiate(cfg.sampler).check(build_process(stored))
        with torch.device("meta"):
            return dict(build_networks(stored).model.items())
    with torch.device("meta"):
        autoencoder = build_autoencoder(stored_first_stage(cfg))
        adversary = build_adversary(cfg, num_devices=1)
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
