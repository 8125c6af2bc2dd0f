"""Images a second of our updates on this device, and the share of what it can compute at most.

The ceiling is the rate of a large product of bf16 matrices on the same device. On a GPU: published
networks, several batch sizes, compiled and channels-last too. On a processor: small networks, as
they are.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import first_stage, second_stage
from benchmarks.device import DEVICE, matrix_rate
from benchmarks.networks import KL_F4, KL_F8, FirstStageShape
from benchmarks.ours import OURS, plain_trainer, time_ours
from benchmarks.results import Row
from benchmarks.timing import Spread
from ldm_lightning.callbacks.ema import Ema
from ldm_lightning.module.updating import ManualOptimizationModule
from ldm_lightning.planning.counter import Counter

PART = "throughput"
CELEBAHQ = ("experiment=ldm_celebahq", "scale=paper")
"""A U-Net of 274 M parameters on latents 3x64x64."""


@dataclass(frozen=True)
class Case:
    """A module and its batch."""

    name: str
    build: Callable[[], ManualOptimizationModule]
    batch: Mapping[str, Tensor]
    batch_size: int


@dataclass(frozen=True)
class Variant:
    """Settings of a case; precision as Lightning names it."""

    precision: str
    channels_last: bool = False
    is_compiled: bool = False

    def __str__(self) -> str:
        names = ["bf16" if "bf16" in self.precision else "fp32"]
        names += ["channels last"] * self.channels_last + ["compiled"] * self.is_compiled
        return ", ".join(names)


def rows(*, quick: bool) -> list[Row]:
    """Every case in every variant that makes sense on this device."""
    on_gpu = DEVICE.type == "cuda"
    cases = gpu_cases(quick=quick) if on_gpu else cpu_cases()
    variants = [Variant("32-true"), Variant("bf16-mixed")]
    if on_gpu:
        variants += [
            Variant("bf16-mixed", channels_last=True),
            Variant("bf16-mixed", is_compiled=True),
            Variant("bf16-mixed", channels_last=True, is_compiled=True),
        ]
    ceiling = matrix_rate(torch.bfloat16)
    num_rounds = 3 if quick or not on_gpu else 10
    return [
        measure(case, variant, ceiling=ceiling, num_rounds=num_rounds)
        for case in cases
        for variant in variants
    ]


def first_stage_case(shape: FirstStageShape) -> Case:
    """The update of a KL autoencoder with LPIPS and discriminator."""
    return Case(
        f"first-stage update, {shape}",
        lambda: first_stage.build_module(shape),
        {"image": shape.images()},
        shape.batch_size,
    )


def second_stage_case(
    name: str, words: tuple[str, ...], latent_shape: tuple[int, int, int], batch_size: int
) -> Case:
    """The update of a U-Net on cached latents."""
    latents = torch.randn(batch_size, *latent_shape, device=DEVICE)
    batch = {"mean": latents, "variance": torch.full_like(latents, 1e-4)}
    setting = f"{name}, latents {'x'.join(map(str, latent_shape))}, batch {batch_size}"
    return Case(
        f"second-stage update, {setting}",
        lambda: second_stage.build_module(words),
        batch,
        batch_size,
    )


def gpu_cases(*, quick: bool) -> list[Case]:
    """Published sizes, at several batch sizes."""
    return [
        *(
            first_stage_case(dataclasses.replace(KL_F8, batch_size=size))
            for size in ((8,) if quick else (4, 8, 16))
        ),
        *(
            second_stage_case("U-Net of 274 M", CELEBAHQ, (3, 64, 64), size)
            for size in ((32,) if quick else (16, 32, 64))
        ),
    ]


def cpu_cases() -> list[Case]:
    """Sizes that two cores finish in seconds."""
    size = second_stage.BATCH_SIZE
    return [
        first_stage_case(KL_F4),
        second_stage_case("U-Net of 16 M", second_stage.WORDS, (4, 32, 32), size),
    ]


def measure(case: Case, variant: Variant, *, ceiling: float, num_rounds: int) -> Row:
    """Milliseconds an image, with rate, share of the ceiling and peak memory beside it."""
    num_flops = operations_of(case)
    module = case.build()
    for network in module.networks:
        if variant.channels_last:
            network.to(memory_format=torch.channels_last)
        if variant.is_compiled:
            network.compile()
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer = plain_trainer(
        max_steps=num_rounds + 1, precision=variant.precision, callbacks=[Ema(decay=0.999)]
    )
    seconds = time_ours(module, {OURS: case.batch}, {}, trainer).spread(OURS)
    rate = num_flops / seconds.median
    facts = {
        "images_per_second": case.batch_size / seconds.median,
        "teraflops": rate / 1e12,
        "share_of_bf16_ceiling": rate / ceiling,
    }
    if DEVICE.type == "cuda":
        facts["peak_gibibytes"] = torch.cuda.max_memory_allocated() / 2**30
    scale = 1000 / case.batch_size
    share = f"{facts['share_of_bf16_ceiling']:.0%} of the bf16 ceiling"
    return Row(
        part=PART,
        what=f"{case.name}: {variant}",
        setting=f"{facts['images_per_second']:.1f} images/s, {share}",
        value=Spread(seconds.median * scale, seconds.low * scale, seconds.high * scale),
        num_rounds=num_rounds,
        goal=None,
        seconds={OURS: seconds.median},
        facts=facts,
        unit="ms an image",
    )


def operations_of(case: Case) -> int:
    """Floating-point operations of one update."""
    with Counter() as counter:
        time_ours(case.build(), {OURS: case.batch}, {}, plain_trainer(max_steps=1))
    return counter.flops
