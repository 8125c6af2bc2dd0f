"""Effects of every choice of speed or memory on the first losses of a training, and to its time.

All variants begin with the same weights and see the same images and noise. Those that keep the
mathematics must have the plain loop's first loss to 1e-5; after it rounding grows as it does in
any training with a discriminator, so the largest difference over the updates is told and not
judged. Channels last keeps the mathematics too (in float64 to 1e-14), but on processors its
float32 kernels round the gradient at the last layer, and with it the adaptive weight, to 1e-3.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks import second_stage
from benchmarks.device import DEVICE, now
from benchmarks.networks import KL_F4, Players, build_players, random_lpips
from benchmarks.overhead import BareLoop
from benchmarks.results import Row
from benchmarks.rules import OneForward, adam
from benchmarks.timing import Timings
from ldm_lightning.module.diffusion import DiffusionModule

PART = "options"
SHAPE = replace(KL_F4, base_width=32)
NUM_UPDATES = 20
TOLERANCE = 1e-5
PLAIN = "as they are"

Update = Callable[[int], Tensor]
"""Number of the update, from 0 -> its loss."""


@dataclass(frozen=True)
class Variant:
    """A way to train.

    Attributes:
        update: Trains once.
        must_agree: Whether its first loss is judged.
    """

    update: Update
    must_agree: bool = True


def rows(*, quick: bool) -> list[Row]:
    """Both stages."""
    num_updates = 4 if quick else NUM_UPDATES
    first = {
        PLAIN: Variant(first_stage_update()),
        "optimizer loop, not fused": Variant(first_stage_update(is_fused=False)),
        "activations recomputed": Variant(first_stage_update(gradient_checkpointing=True)),
        "channels last": Variant(
            first_stage_update(prepare=lay_out_channels_last), must_agree=False
        ),
        "bf16": Variant(first_stage_update(autocast=bf16), must_agree=False),
    }
    if not quick:
        first["compiled"] = Variant(first_stage_update(prepare=compile_all))
    module = second_stage.build_module()
    second = {
        PLAIN: Variant(second_stage_update(module, is_cached=False)),
        "latents cached": Variant(second_stage_update(module, is_cached=True)),
        "latents cached, bf16": Variant(
            second_stage_update(module, is_cached=True, autocast=bf16), must_agree=False
        ),
    }
    return [
        *compare("first-stage update", str(SHAPE), first, num_updates=num_updates),
        *compare("second-stage update", second_stage.SETTING, second, num_updates=num_updates),
    ]


def compare(
    what: str, setting: str, variants: dict[str, Variant], *, num_updates: int
) -> list[Row]:
    """Train all variants in turn.

    Raises:
        AssertionError: If one that must agree has another first loss.
    """
    losses: dict[str, list[float]] = {name: [] for name in variants}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(num_updates):
        for name, variant in variants.items():
            start = now()
            loss = variant.update(number)
            if number:
                seconds[name].append(now() - start)
            losses[name].append(float(loss))
    timings, measured = Timings(seconds), []
    for name, variant in variants.items():
        if name == PLAIN:
            continue
        differences = [
            abs(ours / plain - 1) for ours, plain in zip(losses[name], losses[PLAIN], strict=True)
        ]
        assert not variant.must_agree or differences[0] < TOLERANCE, (name, differences)
        measured.append(
            Row(
                part=PART,
                what=f"{what}, {name} / {PLAIN}",
                setting=f"{setting}; losses differ by {differences[0]:.0e}, "
                f"in {num_updates} updates by {max(differences):.0e}",
                value=timings.ratio(name, PLAIN),
                num_rounds=timings.num_rounds,
                goal=None,
                seconds={way: timings.spread(way).median for way in (name, PLAIN)},
                facts={
                    "must_agree": variant.must_agree,
                    "relative_differences": differences,
                },
            )
        )
    return measured


def bf16() -> torch.autocast:
    """Autocast context of precision=bf16."""
    return torch.autocast(DEVICE.type, dtype=torch.bfloat16)


def first_stage_update(
    *,
    gradient_checkpointing: bool = False,
    is_fused: bool = True,
    prepare: Callable[[Players], None] = lambda players: None,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Update:
    """Updates of a first stage on a fixed batch, with new noise every time."""
    players = build_players(SHAPE, random_lpips(), gradient_checkpointing=gradient_checkpointing)
    prepare(players)
    rule = OneForward(players)
    if not is_fused:
        rule.generator = adam(list(players.autoencoder.parameters()))
        rule.discriminator = adam(list(players.discriminator.parameters()))
    images = SHAPE.images()
    latent_shape = players.autoencoder.latent_shape(images.shape)

    def update(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(number)
        noise = torch.randn(latent_shape, generator=generator).to(DEVICE)
        with autocast():
            return rule.update(images, noise)

    return update


def lay_out_channels_last(players: Players) -> None:
    """Weights, and with them activations, with channels innermost."""
    players.autoencoder.to(memory_format=torch.channels_last)
    players.discriminator.to(memory_format=torch.channels_last)


def compile_all(players: Players) -> None:
    """Generate code for every network."""
    for network in (
        players.autoencoder.encoder,
        players.autoencoder.decoder,
        players.discriminator,
    ):
        network.compile()


def second_stage_update(
    module: DiffusionModule,
    *,
    is_cached: bool,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Update:
    """Updates of a U-Net on the latents of a fixed batch, encoded once or every time."""
    images = second_stage.batches()["on the fly"]["image"]

    def encoded() -> dict[str, Tensor]:
        moments = module.first_stage.moments(images)
        assert moments.variance is not None
        return {"mean": moments.mean, "variance": moments.variance}

    loop = BareLoop(module, encoded())

    def update(number: int) -> Tensor:
        with autocast():
            if not is_cached:
                loop.batch = encoded()
            return loop.update()

    return update
