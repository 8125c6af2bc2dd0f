"""Cost of a second stage, beside its cost in pixel space (requirement D3)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from hydra import compose
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from ldm_lightning.builders.first_stage import stored_first_stage
from ldm_lightning.builders.hardware import Hardware, autocast
from ldm_lightning.builders.meta_networks import count_parameters
from ldm_lightning.builders.second_stage import stored_second_stage
from ldm_lightning.data.transforms import as_size
from ldm_lightning.metrics.efficiency import bits_per_pixel
from ldm_lightning.nn.condition import Condition
from ldm_lightning.planning.counter import without_memory
from ldm_lightning.planning.price import (
    DenoiserPrice,
    Price,
    bytes_of,
    empty,
    image_shape_of,
    moments_of,
    put,
    state_bytes,
    three,
)
from ldm_lightning.planning.update_cost import UpdateCost, count_denoiser_update, count_forward
from ldm_lightning.restore.first_stage import build_autoencoder, open_first_stage
from ldm_lightning.restore.second_stage import build_process


def first_stage_description(cfg: DictConfig, choices: Mapping[str, str]) -> dict[str, Any]:
    """Of the first stage a second one is trained on: its checkpoint's, else its experiment's.

    Raises:
        ValueError: If it does not fit the configuration.
    """
    given = cfg.first_stage
    if given.checkpoint is not None:
        stored = open_first_stage(
            given.checkpoint, weights=given.weights, trusted_packages=cfg.trusted_packages
        ).description
    else:
        size = str(list(as_size(cfg.resolution))).replace(" ", "")
        words = [
            f"experiment={given.experiment}",
            f"scale={choices['scale']}",
            f"resolution={size}",
            f"image_channels={cfg.image_channels}",
            f"autoencoder.latent_channels={cfg.latent_channels}",
        ]
        stored = stored_first_stage(compose("train", overrides=words))
    for key in ("latent_channels", "downsampling_factor"):
        if cfg[key] != stored["autoencoder"][key]:
            raise ValueError(
                f"{key}={cfg[key]}, but the first stage has {stored['autoencoder'][key]}; give "
                f"{key}={stored['autoencoder'][key]}, or another first stage."
            )
    return stored


def price_second_stage(
    cfg: DictConfig,
    hardware: Hardware,
    parts: Mapping[str, nn.Module],
    *,
    first_stage: Mapping[str, Any],
    encodes: bool,
) -> Price:
    """Count the networks of a second stage, one update, and the same denoiser on pixels.

    Args:
        cfg: The composed configuration, after ``resolve_condition``.
        hardware: What it would run on.
        parts: Of ``networks_without_memory``; their weights are replaced.
        first_stage: Description of the first stage.
        encodes: Whether every update encodes images, instead of reading latents.
    """
    stored = stored_second_stage(cfg)
    with torch.device("meta"):
        autoencoder = build_autoencoder(first_stage)
        in_pixels = instantiate(_in_pixel_space(cfg, stored["denoiser"]))
    denoiser, conditioner = parts["denoiser"], parts["conditioner"]
    num_moments = moments_of(cfg)
    with without_memory():
        for network in (autoencoder, in_pixels, denoiser, conditioner):
            put(network, hardware)
        autoencoder.eval()
        image = empty((1, *image_shape_of(cfg)), hardware)
        latent = empty(autoencoder.latent_shape(image.shape), hardware)

        def condition(noisy: Tensor) -> Condition:
            null: Condition = conditioner.null(len(noisy), noisy.device)  # type: ignore[operator]
            if null.concat is None:
                return null
            concat = noisy.new_empty(len(noisy), null.concat.shape[1], *noisy.shape[2:])
            return replace(null, concat=concat)

        images = empty((cfg.data.batch_size, *image.shape[1:]), hardware)
        noisy = empty((cfg.data.batch_size, *latent.shape[1:]), hardware)

        encoding = None
        if encodes:
            with torch.no_grad(), autocast(hardware.device.type, hardware.precision):
                encoding = count_forward(lambda: autoencoder.encode(images), autoencoder)

        def update(gradient_checkpointing: bool) -> UpdateCost:
            denoiser.gradient_checkpointing = gradient_checkpointing  # type: ignore[assignment]
            return count_denoiser_update(
                denoiser,
                noisy,
                condition(noisy),
                autocast=autocast(hardware.device.type, hardware.precision),
                encoding=encoding,
            )

        def alone(network: nn.Module, noisy: Tensor) -> DenoiserPrice:
            """In float32, where nothing but activations is kept: no copies of weights."""
            time = noisy.new_empty(1)
            network.gradient_checkpointing = False  # type: ignore[assignment]
            cost = count_forward(lambda: network(noisy, time, condition(noisy)), network)
            return DenoiserPrice(three(noisy.shape[1:]), cost.flops, cost.kept_bytes)

        configured = cfg.denoiser.get("gradient_checkpointing")  # parts of others may have none
        denoisers = {"pixels": alone(in_pixels, image), "latents": alone(denoiser, latent)}
        costs = update(bool(configured)), update(True) if configured is False else None
        flops = {
            "denoiser": denoisers["latents"].flops,
            "encoder": encoding.flops // len(images)
            if encoding
            else count_forward(lambda: autoencoder.encode(image)).flops,
            "decoder": count_forward(lambda: autoencoder.decode(latent)).flops,
        }
        own = bytes_of(denoiser) + bytes_of(conditioner)
        weights = own + bytes_of(autoencoder)
        state = state_bytes(
            cfg, num_moments=num_moments, weights=weights, stored=own, trained=own, averaged=own
        )
    law_flops = 3 * flops["denoiser"] + (flops["encoder"] if encodes else 0)
    return Price(
        parameters=count_parameters(parts),
        image_shape=image_shape_of(cfg),
        latent_shape=three(latent.shape[1:]),
        bits_per_pixel=bits_per_pixel(autoencoder),
        is_stochastic=autoencoder.bottleneck.is_stochastic,
        forward_flops=flops,
        law="3U + encoder" if encodes else "3U",
        law_flops=law_flops,
        quiet_flops=law_flops,
        state=state,
        update=costs[0],
        recomputed=costs[1],
        denoisers=denoisers,
    )


def _in_pixel_space(cfg: DictConfig, denoiser: Mapping[str, Any]) -> dict[str, Any]:
    """The same denoiser on images: as many channels as these, everything else alike."""
    conditioned = denoiser["in_channels"] - cfg.latent_channels  # what a condition concatenates
    return {
        **denoiser,
        "in_channels": cfg.image_channels + conditioned,
        "out_channels": cfg.image_channels,
    }


def calls_per_sample(cfg: DictConfig) -> int:
    """Rows that the denoiser sees to generate one image: steps, second calls, guidance."""
    stored = stored_second_stage(cfg)
    conditioner = instantiate(stored["conditioner"])
    noise, rows = torch.zeros(1, 1, 1, 1), 0

    def network(noisy: Tensor, time: Tensor, condition: Condition) -> Tensor:
        nonlocal rows
        rows += len(noisy)
        return torch.zeros_like(noisy)

    null = conditioner.null(1, noise.device)
    instantiate(cfg.sampler).sample(
        build_process(stored), network, null, null, noise, lambda step: noise
    )
    return rows
