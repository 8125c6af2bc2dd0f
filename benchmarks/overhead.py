"""Costs of Lightning, logging, callbacks and the moving average over a bare loop."""

import copy
import functools
import tempfile
from collections.abc import Sequence

import torch
from omegaconf import DictConfig

from benchmarks import first_stage, second_stage
from benchmarks.device import DEVICE
from benchmarks.experiment import composed
from benchmarks.networks import KL_F4, build_players, random_lpips
from benchmarks.ours import OURS, time_ours
from benchmarks.results import Row
from benchmarks.rules import OneForward
from benchmarks.timing import Timings
from ldm_lightning.builders.training import build_trainer
from ldm_lightning.module.diffusion import DiffusionModule
from ldm_lightning.nn.condition import Condition
from ldm_lightning.runs.run_folder import RunFolder
from ldm_lightning.utils.random import RowDraws

PART = "overhead"
GOAL = 1.03
BARE = "bare loop"


def rows(*, quick: bool) -> list[Row]:
    """Both stages, with every callback and logger of a run."""
    num_rounds = 4 if quick else 10
    return [first_stage_row(num_rounds=num_rounds), second_stage_row(num_rounds=num_rounds)]


def settings(words: Sequence[str], num_rounds: int) -> DictConfig:
    """The configuration of a run of this many rounds, on one process in float32."""
    return composed(
        *words,
        f"max_steps={num_rounds + 1}",
        f"validation.every_steps={num_rounds + 2}",
        "trainer.precision=32",
    )


def row(what: str, setting: str, timings: Timings) -> Row:
    """Ours over the bare loop."""
    return Row(
        part=PART,
        what=f"{what}: run / {BARE}",
        setting=setting,
        value=timings.ratio(OURS, BARE),
        num_rounds=timings.num_rounds,
        goal=GOAL,
        seconds={way: timings.spread(way).median for way in (OURS, BARE)},
        facts={},
    )


def first_stage_row(*, num_rounds: int) -> Row:
    """The update of kl_f4."""
    images = KL_F4.images()
    module = first_stage.build_module(KL_F4)
    bare = OneForward(build_players(KL_F4, random_lpips()))
    noise = torch.randn(module.autoencoder.latent_shape(images.shape), device=DEVICE)
    others = {BARE: functools.partial(bare.update, images, noise)}
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(settings(["experiment=kl_f4"], num_rounds), RunFolder(folder))
        timings = time_ours(module, {OURS: {"image": images}}, others, trainer)
    return row("first-stage update", str(KL_F4), timings)


class BareLoop:
    """The diffusion module's update on a batch of a latent cache."""

    def __init__(self, module: DiffusionModule, batch: dict[str, torch.Tensor]) -> None:
        self.denoiser = copy.deepcopy(module.denoiser)
        self.process = module.process
        self.batch = batch
        self.optimizer = torch.optim.AdamW(self.denoiser.parameters(), lr=1e-4, fused=True)
        self.averages = [p.detach().clone() for p in self.denoiser.parameters()]
        self.step = 0

    def update(self) -> torch.Tensor:
        """One update; returns its loss."""
        mean = self.batch["mean"]
        draws = RowDraws(0, self.step, range(len(mean)))
        shape = mean.shape[1:]
        latents = mean + self.batch["variance"].sqrt() * draws.normal("posterior", shape, like=mean)
        noise = draws.normal("noise", shape, like=mean)
        time = self.process.times(draws.uniform("time", device=mean.device))
        loss = self.process.loss(self.denoiser, latents, noise, time, Condition()).mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            weight = 1 - second_stage.DECAY
            torch._foreach_lerp_(self.averages, list(self.denoiser.parameters()), weight)
        self.step += 1
        return loss.detach()


def second_stage_row(*, num_rounds: int) -> Row:
    """The update of a U-Net of 16 M parameters on cached latents."""
    module = second_stage.build_module()
    module.log_every_steps = 1  # dearer than a run, which logs every tenth update or so
    batch = second_stage.batches()[OURS]
    others = {BARE: BareLoop(module, batch).update}
    with tempfile.TemporaryDirectory() as folder:
        cfg = settings(second_stage.WORDS, num_rounds)
        timings = time_ours(module, {OURS: batch}, others, build_trainer(cfg, RunFolder(folder)))
    return row("second-stage update, cached", second_stage.SETTING, timings)
