"""The update of a second stage, beside plain loops around the same network."""

import copy
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from benchmarks.device import DEVICE
from benchmarks.experiment import composed
from benchmarks.networks import KL_F4, build_players, random_lpips
from benchmarks.ours import OURS, plain_trainer, time_ours
from benchmarks.results import Row
from benchmarks.timing import time_in_turn
from ldm_lightning.autoencoder.frozen import FrozenFirstStage
from ldm_lightning.autoencoder.normalizer import LatentNormalizer
from ldm_lightning.builders.second_stage import stored_second_stage
from ldm_lightning.callbacks.ema import Ema
from ldm_lightning.diffusion.process import Process
from ldm_lightning.module.diffusion import DiffusionModule
from ldm_lightning.module.settings import Optimization
from ldm_lightning.nn.condition import Condition
from ldm_lightning.restore.second_stage import build_networks, build_process

PART = "second_stage"
NUM_PARAMETERS = 16_057_604
"""Of diffusers' ``UNet2DModel`` and CompVis' U-Net at these sizes."""

DECAY = 0.999
SETTING = "U-Net of 16 M, latents 4x32x32, batch 8"
BATCH_SIZE = 8


WORDS = (
    *("experiment=ldm_kl_f4", "resolution=128", "latent_channels=4"),
    *("denoiser.base_width=64", "denoiser.width_multipliers=[1,2,4]"),
    *("denoiser.attention_at=[2,4]", "denoiser.head_width=32", "denoiser.num_heads=null"),
)
"""A U-Net of 16 M parameters in the latent space of a kl_f4 with four channels."""


def build_module(words: Sequence[str] = WORDS) -> DiffusionModule:
    """The module of these words on a first stage of width 64 with random weights."""
    cfg = composed(*words)
    torch.manual_seed(0)
    stored = stored_second_stage(cfg)
    networks = build_networks(stored)
    channels = cfg.latent_channels
    shape = dataclasses.replace(KL_F4, latent_channels=channels, resolution=128)
    first_stage = FrozenFirstStage(
        build_players(shape, random_lpips()).autoencoder,
        LatentNormalizer.identity(channels),
        weights_hash="",
        path=Path("benchmark"),
        weights="raw",
    )
    adam = functools.partial(torch.optim.AdamW, lr=1e-4, betas=(0.9, 0.999), fused=True)
    module = DiffusionModule(
        networks.denoiser,
        networks.conditioner,
        build_process(stored),
        first_stage,
        optimization=Optimization(optimizer=adam, schedule=lambda step: 1.0),
        seed=0,
        log_every_steps=10,
        stored_config=stored,
        protocol={},
    )
    return module.to(DEVICE)


def check_size(module: DiffusionModule) -> None:
    """Make sure that the U-Net has the parameters of diffusers' and CompVis'.

    Raises:
        AssertionError: If it has not: then there is nothing to compare.
    """
    num_parameters = sum(parameter.numel() for parameter in module.denoiser.parameters())
    assert num_parameters == NUM_PARAMETERS, num_parameters


def batches() -> dict[str, dict[str, Tensor]]:
    """Latents as a cache gives them, and the images that would have to be encoded."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(BATCH_SIZE, 4, 32, 32, generator=generator).to(DEVICE)
    images = (torch.rand(BATCH_SIZE, 3, 128, 128, generator=generator) * 2 - 1).to(DEVICE)
    cached = {"mean": latents, "variance": torch.full_like(latents, 1e-4)}
    return {OURS: cached, "on the fly": {"image": images}}


class PlainLoop:
    """The same network and loss with AdamW and a moving average parameter by parameter."""

    def __init__(self, denoiser: nn.Module, process: Process, latents: Tensor) -> None:
        self.denoiser = denoiser
        self.process = process
        self.latents = latents
        self.optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-4, foreach=False)
        self.averages = [parameter.detach().clone() for parameter in denoiser.parameters()]

    def update(self) -> None:
        """One update."""
        noise = torch.randn_like(self.latents)
        uniform = torch.rand(len(self.latents), dtype=torch.float64, device=DEVICE)
        time = self.process.times(uniform)
        loss = self.process.loss(self.denoiser, self.latents, noise, time, Condition()).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.average()

    @torch.no_grad()
    def average(self) -> None:
        """Move the average."""
        for average, parameter in zip(self.averages, self.denoiser.parameters(), strict=True):
            average.sub_((1 - DECAY) * (average - parameter))


def rows(*, quick: bool) -> list[Row]:
    """Every comparison of this part."""
    num_rounds = 3 if quick else 8
    both = batches()
    measured: list[Row] = []
    for precision, goal, kind in (("32-true", 0.95, "fp32"), ("bf16-mixed", 0.70, "bf16")):
        module = build_module()
        check_size(module)
        loop = PlainLoop(copy.deepcopy(module.denoiser), module.process, both[OURS]["mean"])
        timings = time_ours(
            module,
            both,
            {"plain loop": loop.update},
            plain_trainer(
                max_steps=2 * (num_rounds + 1), precision=precision, callbacks=[Ema(decay=DECAY)]
            ),
        )
        others: list[tuple[str, str, float | None]] = [
            ("plain loop", f"plain fp32 loop, {kind}", goal),
            ("on the fly", f"encoding on the fly, {kind}", 0.55 if kind == "fp32" else None),
        ]
        measured += [
            Row(
                part=PART,
                what=f"second-stage update, cached / {what}",
                setting=SETTING,
                value=timings.ratio(OURS, other),
                num_rounds=timings.num_rounds,
                goal=limit,
                seconds={way: timings.spread(way).median for way in (OURS, other)},
                facts={"parameters": NUM_PARAMETERS},
            )
            for other, what, limit in others
        ]
    module = build_module()
    return [*measured, average_row(module, num_rounds=20), optimizer_row(module, num_rounds=20)]


def average_row(module: DiffusionModule, *, num_rounds: int) -> Row:
    """One step of the moving average, beside a loop over parameters."""
    loop = PlainLoop(module.denoiser, module.process, torch.empty(0))
    ema, trainer = Ema(decay=DECAY), SimpleNamespace(ckpt_path=None, global_step=0)
    ema.on_fit_start(trainer, module)  # type: ignore[arg-type]
    ema.on_train_start(trainer, module)  # type: ignore[arg-type]

    def ours() -> None:
        trainer.global_step += 1
        ema.on_train_batch_end(trainer, module, None, None, 0)  # type: ignore[arg-type]

    timings = time_in_turn({OURS: ours, "loop": loop.average}, num_rounds=num_rounds)
    return Row(
        part=PART,
        what="moving average / loop over parameters",
        setting="16 M parameters",
        value=timings.ratio(OURS, "loop"),
        num_rounds=timings.num_rounds,
        goal=0.25,
        seconds={way: timings.spread(way).median for way in timings.seconds},
        facts={},
    )


def optimizer_row(module: DiffusionModule, *, num_rounds: int) -> Row:
    """One step of AdamW, fused, beside the loop over parameters.

    With the average it is all that differs between our update and the plain loop's.
    """
    ways = {}
    for name, is_fused in ((OURS, True), ("loop", False)):
        denoiser = copy.deepcopy(module.denoiser)
        for parameter in denoiser.parameters():
            parameter.grad = torch.full_like(parameter, 1e-3)
        ways[name] = torch.optim.AdamW(
            denoiser.parameters(), lr=1e-4, fused=is_fused, foreach=False
        ).step
    timings = time_in_turn(ways, num_rounds=num_rounds)
    return Row(
        part=PART,
        what="AdamW, fused / loop over parameters",
        setting="16 M parameters",
        value=timings.ratio(OURS, "loop"),
        num_rounds=timings.num_rounds,
        goal=None,
        seconds={way: timings.spread(way).median for way in ways},
        facts={},
    )
