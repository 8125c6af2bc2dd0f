"""Encoding and decoding images with a first stage, beside diffusers' network of the same size."""

import dataclasses
import functools
from collections.abc import Callable

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from benchmarks.device import DEVICE
from benchmarks.networks import (
    KL_F4,
    KL_F8,
    FirstStageShape,
    build_players,
    diffusers_autoencoder,
    random_lpips,
)
from benchmarks.ours import OURS
from benchmarks.results import Row
from benchmarks.timing import time_in_turn
from ldm_lightning.autoencoder.autoencoder import Autoencoder

PART = "codec"
PEER = "diffusers"


def rows(*, quick: bool) -> list[Row]:
    """Every comparison of this part."""
    num_rounds = 3 if quick else 6
    measured = compare(dataclasses.replace(KL_F4, latent_channels=4), num_rounds=num_rounds)
    return measured if quick else [*measured, *compare(KL_F8, num_rounds=3)]


@torch.no_grad()
def compare(shape: FirstStageShape, *, num_rounds: int) -> list[Row]:
    """Both directions; reports images a second of ours."""
    images = shape.images()
    ours = build_players(shape, random_lpips()).autoencoder.eval()
    with DEVICE:
        theirs = diffusers_autoencoder(shape).eval()
    latents = ours.encode(images).latents
    directions: dict[str, dict[str, Callable[[], object]]] = {
        "encoding": {
            OURS: functools.partial(ours.encode, images),
            PEER: functools.partial(theirs.encode, images),
        },
        "decoding": {
            OURS: functools.partial(ours.decode, latents),
            PEER: functools.partial(theirs.decode, latents),
        },
    }
    check_sizes(ours, theirs)
    measured = []
    for name, ways in directions.items():
        timings = time_in_turn(ways, num_rounds=num_rounds)
        seconds = {way: timings.spread(way).median for way in ways}
        measured.append(
            Row(
                part=PART,
                what=f"{name} / {PEER}",
                setting=str(shape),
                value=timings.ratio(OURS, PEER),
                num_rounds=timings.num_rounds,
                goal=None,
                seconds=seconds,
                facts={"images_per_second": len(images) / seconds[OURS]},
            )
        )
    return measured


def check_sizes(ours: Autoencoder, theirs: AutoencoderKL) -> None:
    """Make sure that the two networks are of one size.

    Raises:
        AssertionError: If they are not: then there is nothing to compare.
    """
    sizes = [sum(p.numel() for p in network.parameters()) for network in (ours, theirs)]
    assert sizes[0] == sizes[1], sizes
