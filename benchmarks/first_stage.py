"""The update of a first stage, beside the update rules of the field."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import torch

from benchmarks.networks import (
    KL_F4,
    KL_F8,
    FirstStageShape,
    build_players,
    num_parameters_of_diffusers,
    random_lpips,
)
from benchmarks.ours import OURS, logged, plain_trainer, time_ours
from benchmarks.results import Row
from benchmarks.rules import (
    ADVERSARIAL_WEIGHT,
    KL_WEIGHT,
    Alternating,
    LossTwice,
    Rule,
    TwoForwards,
)
from ldm_lightning.loss.adversarial import AdversarialLoss, AdversarialSchedule
from ldm_lightning.metrics.features import tiny_features
from ldm_lightning.metrics.first_stage import FirstStageMetrics
from ldm_lightning.module.autoencoder import AutoencoderModule
from ldm_lightning.module.settings import Adversary, Optimization
from ldm_lightning.utils.random import RowDraws

PART = "first_stage"
RULES: Mapping[str, type[Rule]] = {
    "two forwards": TwoForwards,
    "alternating": Alternating,
    "loss twice": LossTwice,
}


def build_module(
    shape: FirstStageShape, *, gradient_checkpointing: bool = False
) -> AutoencoderModule:
    """Our module with the very networks the rules begin with."""
    players = build_players(shape, random_lpips(), gradient_checkpointing=gradient_checkpointing)
    adam = functools.partial(torch.optim.Adam, lr=1e-4, betas=(0.5, 0.9), fused=True)
    schedule = AdversarialSchedule(start_step=0)
    loss = AdversarialLoss("hinge", weight=ADVERSARIAL_WEIGHT, adaptive=True, schedule=schedule)
    return AutoencoderModule(
        players.autoencoder,
        players.reconstruction_loss,
        term_weights={"kl": KL_WEIGHT},
        adversary=Adversary(players.discriminator, loss, adam),
        optimization=Optimization(optimizer=adam, schedule=lambda step: 1.0),
        metrics=FirstStageMetrics(tiny_features(), latent_channels=shape.latent_channels),
        seed=0,
        log_every_steps=1,
        stored_config={},
    )


def compare(
    shape: FirstStageShape,
    goals: Mapping[str, float | None],
    *,
    num_rounds: int,
    precision: str = "32-true",
) -> list[Row]:
    """Ours against the rules that ``goals`` names, all from the same weights.

    Raises:
        AssertionError: If the autoencoder has not the parameters of diffusers', or first losses
            differ.
    """
    images = shape.images()
    num_parameters = num_parameters_of_diffusers(shape)
    rules = {name: RULES[name](build_players(shape, random_lpips())) for name in goals}
    module = build_module(shape)
    race = Race(module, rules, images)
    trainer = plain_trainer(max_steps=num_rounds + 1, precision=precision)
    timings = time_ours(module, {OURS: {"image": images}}, race.others, trainer)
    race.check(tolerance=1e-5 if precision == "32-true" else 2e-2)
    for rule in rules.values():
        assert rule.players.num_parameters["autoencoder"] == num_parameters
    kind = "fp32" if precision == "32-true" else "bf16, theirs in fp32"
    return [
        Row(
            part=PART,
            what=f"first-stage update, {kind} / {name}",
            setting=str(shape),
            value=timings.ratio(OURS, name),
            num_rounds=timings.num_rounds,
            goal=goal,
            seconds={way: timings.spread(way).median for way in (OURS, name)},
            facts={
                "first_losses": race.first_losses,
                "parameters": rules[name].players.num_parameters,
            },
        )
        for name, goal in goals.items()
    ]


class Race:
    """Rules that are updated on one batch beside our module; keeps the first loss of each."""

    def __init__(
        self, module: AutoencoderModule, rules: Mapping[str, Rule], images: torch.Tensor
    ) -> None:
        self.module = module
        self.rules = rules
        self.images = images
        _, *latent_shape = module.autoencoder.latent_shape(images.shape)
        # What our module draws for its first update.
        self.noise = RowDraws(module.seed, 0, range(len(images))).normal(
            "posterior", latent_shape, like=images
        )
        self.first_losses: dict[str, float] = {}

    @property
    def others(self) -> dict[str, Callable[[], None]]:
        """An update of each rule."""
        return {name: functools.partial(self._update, name) for name in self.rules}

    def _update(self, name: str) -> None:
        loss = self.rules[name].update(self.images, self.noise)
        self.first_losses.setdefault(name, float(loss))
        if OURS not in self.first_losses:
            self.first_losses[OURS] = logged(self.module, "train/loss_total")

    def check(self, *, tolerance: float) -> None:
        """Make sure that the rules computed what ours did.

        Raises:
            AssertionError: If first losses differ: then there is nothing to compare.
        """
        for name, rule in self.rules.items():
            relative = abs(self.first_losses[name] / self.first_losses[OURS] - 1)
            if rule.has_our_loss:
                assert relative < tolerance, self.first_losses


def rows(*, quick: bool) -> list[Row]:
    """Every comparison of this part."""
    num_rounds = 2 if quick else 5
    narrow = dataclasses.replace(KL_F4, base_width=32)
    measured = compare(narrow, {"two forwards": 0.70, "loss twice": 0.78}, num_rounds=num_rounds)
    measured += compare(
        KL_F4,
        {"two forwards": 0.75, "alternating": 0.62, "loss twice": None},
        num_rounds=num_rounds,
    )
    measured += compare(
        KL_F4, {"two forwards": 0.43}, num_rounds=num_rounds, precision="bf16-mixed"
    )
    if not quick:
        measured += compare(KL_F8, {"two forwards": 0.80, "loss twice": None}, num_rounds=3)
    return measured
