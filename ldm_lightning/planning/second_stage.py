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
from ldm_lightning.module.diffusion import DiffusionModule
from ldm_lightning.nn.condition import Condition
from ldm_lightning.planning.cost import (
    DenoiserCost,
    RunCost,
    bytes_of,
    empty,
    image_shape_of,
    moments_of,
    put,
    state_bytes,
    three,
)
from ldm_lightning.planning.counter import without_memory
from ldm_lightning.planning.untrained import NullConditioner, untrained_second_stage
from ldm_lightning.planning.update_cost import UpdateCost, count_forward, count_second_stage_update
from ldm_lightning.restore.first_stage import open_first_stage
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
        overrides = [
            f"experiment={given.experiment}",
            f"scale={choices['scale']}",
            f"resolution={size}",
            f"image_channels={cfg.image_channels}",
            f"autoencoder.latent_channels={cfg.latent_channels}",
        ]
        stored = stored_first_stage(compose("train", overrides=overrides))
    for key in ("latent_channels", "downsampling_factor"):
        if cfg[key] != stored["autoencoder"][key]:
            raise ValueError(
                f"{key}={cfg[key]}, but the first stage has {stored['autoencoder'][key]}; give "
                f"{key}={stored['autoencoder'][key]}, or another first stage."
            )
    return stored


def second_stage_cost(
    cfg: DictConfig,
    hardware: Hardware,
    parts: Mapping[str, nn.Module],
    *,
    first_stage: Mapping[str, Any],
    encodes: bool,
) -> RunCost:
    """Count the networks of a second stage, one update, and the same denoiser on pixels.

    Args:
        cfg: The composed configuration, after ``resolve_condition``.
        hardware: What it would run on.
        parts: Of ``networks_without_memory``, whose parameters are told by name.
        first_stage: Description of the first stage.
        encodes: Whether every update encodes images, instead of reading latents.
    """
    module = untrained_second_stage(cfg, first_stage, device="meta")
    conditioner = NullConditioner(module.model["conditioner"])  # type: ignore[arg-type]
    module.model["conditioner"] = conditioner
    with torch.device("meta"):
        in_pixels = instantiate(_in_pixel_space(cfg, module.stored_config["denoiser"]))
    autoencoder, num_moments = module.first_stage.autoencoder, moments_of(cfg)
    with without_memory():
        for network in (module, module.first_stage, in_pixels):
            put(network, hardware)
        image = empty((1, *image_shape_of(cfg)), hardware)
        latent = empty(autoencoder.latent_shape(image.shape), hardware)
        denoisers = {
            "pixels": _denoiser_price(in_pixels, image, conditioner),
            "latents": _denoiser_price(module.denoiser, latent, conditioner),
        }
        flops = {
            "denoiser": denoisers["latents"].flops,
            "encoder": count_forward(lambda: autoencoder.encode(image)).flops,
            "decoder": count_forward(lambda: autoencoder.decode(latent)).flops,
        }
        batch = _batch(cfg, hardware, module, encodes=encodes)
        configured = cfg.denoiser.get("gradient_checkpointing")  # parts of others may have none
        update = _update_cost(module, batch, hardware, gradient_checkpointing=bool(configured))
        recomputed = None
        if configured is False:
            recomputed = _update_cost(module, batch, hardware, gradient_checkpointing=True)
        own = bytes_of(module)
        state = state_bytes(
            cfg,
            num_moments=num_moments,
            weights=own + bytes_of(autoencoder),
            stored=own,
            trained=own,
            averaged=own,
        )
    formula_flops = 3 * flops["denoiser"] + (flops["encoder"] if encodes else 0)
    return RunCost(
        parameters=count_parameters(parts),
        image_shape=image_shape_of(cfg),
        latent_shape=three(latent.shape[1:]),
        bits_per_pixel=bits_per_pixel(autoencoder),
        is_stochastic=autoencoder.bottleneck.is_stochastic,
        forward_flops=flops,
        formula="3U + encoder" if encodes else "3U",
        formula_flops=formula_flops,
        quiet_flops=formula_flops,
        state=state,
        update=update,
        recomputed=recomputed,
        denoisers=denoisers,
    )


def _batch(
    cfg: DictConfig, hardware: Hardware, module: DiffusionModule, *, encodes: bool
) -> dict[str, Tensor]:
    """Inputs of one process in an update: images, or the latents a cache holds of them."""
    images = empty((cfg.data.batch_size, *image_shape_of(cfg)), hardware)
    if encodes:
        return {"image": images}
    names = ("mean", "variance") if module.first_stage.is_stochastic else ("mean",)
    shape = module.first_stage.latent_shape(images.shape)
    return {name: empty(shape, hardware) for name in names}


def _update_cost(
    module: DiffusionModule,
    batch: Mapping[str, Tensor],
    hardware: Hardware,
    *,
    gradient_checkpointing: bool,
) -> UpdateCost:
    module.denoiser.gradient_checkpointing = gradient_checkpointing  # type: ignore[assignment]
    precision = autocast(hardware.device.type, hardware.precision)
    return count_second_stage_update(module, batch, autocast=precision)


def _denoiser_price(
    denoiser: nn.Module, noisy: Tensor, conditioner: NullConditioner
) -> DenoiserCost:
    """Count a denoiser in float32, where nothing but activations is kept: no copies of weights."""
    condition = conditioner({"image": noisy}, drop=None)
    if condition.concat is not None:  # has the latents' size
        concat = noisy.new_empty(len(noisy), condition.concat.shape[1], *noisy.shape[2:])
        condition = replace(condition, concat=concat)
    denoiser.gradient_checkpointing = False  # type: ignore[assignment]
    time = noisy.new_empty(len(noisy))
    counted = count_forward(lambda: denoiser(noisy, time, condition), denoiser)
    return DenoiserCost(three(noisy.shape[1:]), counted.flops, counted.kept_bytes)


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
