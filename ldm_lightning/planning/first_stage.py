"""Cost of a first stage."""

from collections.abc import Mapping
from functools import partial

from omegaconf import DictConfig
from torch import nn

from ldm_lightning.builders.first_stage import build_reconstruction_loss
from ldm_lightning.builders.hardware import Hardware, autocast
from ldm_lightning.builders.meta_networks import count_parameters
from ldm_lightning.metrics.efficiency import bits_per_pixel
from ldm_lightning.planning.cost import (
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
from ldm_lightning.planning.untrained import untrained_first_stage
from ldm_lightning.planning.update_cost import (
    UpdateCost,
    count_first_stage_update,
    count_forward,
    tensor_bytes,
)


def first_stage_cost(
    cfg: DictConfig, hardware: Hardware, parts: Mapping[str, nn.Module]
) -> RunCost:
    """Count the networks of a first stage and one update.

    Args:
        cfg: The composed configuration.
        hardware: What it would run on.
        parts: Of ``networks_without_memory``, whose parameters are told by name.
    """
    loss = build_reconstruction_loss(cfg, trained=False)  # reads a file where there is one
    module = untrained_first_stage(cfg, loss, device="meta")
    autoencoder, discriminator = module.autoencoder, module.discriminator
    perceptual = loss.perceptual
    num_moments = moments_of(cfg)
    with without_memory():
        for network in (module, *loss.frozen_networks):
            put(network, hardware)
        image = empty((1, *image_shape_of(cfg)), hardware)
        latents = empty(autoencoder.latent_shape(image.shape), hardware)
        flops = {
            "encoder": count_forward(lambda: autoencoder.encode(image)).flops,
            "decoder": count_forward(lambda: autoencoder.decode(latents)).flops,
        }
        if perceptual is not None:
            flops["perceptual"] = count_forward(lambda: perceptual(image, image)).flops // 2
        for name, term in loss.terms.items():
            flops[name] = count_forward(partial(term, image, image)).flops
        if discriminator is not None:
            flops["discriminator"] = count_forward(lambda: discriminator(image)).flops
        images = empty((cfg.data.batch_size, *image_shape_of(cfg)), hardware)

        def update(gradient_checkpointing: bool) -> UpdateCost:
            autoencoder.encoder.gradient_checkpointing = (
                autoencoder.decoder.gradient_checkpointing
            ) = gradient_checkpointing
            return count_first_stage_update(
                module,
                images,
                autocast=autocast(hardware.device.type, hardware.precision),
            )

        configured = cfg.autoencoder.get("gradient_checkpointing")  # parts of others may have none
        costs = update(bool(configured)), update(True) if configured is False else None
        generator = tensor_bytes([*autoencoder.parameters(), *loss.parameters()])
        trained = generator + bytes_of(discriminator, buffers=False)
        state = state_bytes(
            cfg,
            num_moments=num_moments,
            weights=sum(map(bytes_of, (autoencoder, discriminator, *loss.frozen_networks))),
            stored=bytes_of(autoencoder) + bytes_of(discriminator),
            trained=trained,
            averaged=bytes_of(autoencoder),
        )
    quiet = 3 * (flops["encoder"] + flops["decoder"] + flops.get("perceptual", 0))
    quiet += 2 * sum(flops[name] for name in loss.terms)  # forward, and back to the image
    letters = ["3A", *(["3V"] if "perceptual" in flops else [])]
    letters += [f"2 {name}" for name in loss.terms]
    return RunCost(
        parameters=count_parameters(parts),
        image_shape=image_shape_of(cfg),
        latent_shape=three(latents.shape[1:]),
        bits_per_pixel=bits_per_pixel(autoencoder),
        is_stochastic=autoencoder.bottleneck.is_stochastic,
        forward_flops=flops,
        formula=" + ".join([*letters, *(["8D"] if discriminator is not None else [])]),
        formula_flops=quiet + 8 * flops.get("discriminator", 0),
        quiet_flops=quiet,
        state=state,
        update=costs[0],
        recomputed=costs[1],
    )
