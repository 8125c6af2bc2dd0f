"""Training of a diffusion model in the latent space of a frozen first stage.

One update: images are encoded (or read from a latent cache), their latents normalized to unit
variance, noised at random times, and the denoiser learns to undo that. Latents, noise, times and
dropped labels are functions of (seed, update, row of the global batch), so that a resumed run
repeats the uninterrupted one and several processes repeat one.
"""

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ldm_lightning.autoencoder.frozen import FrozenFirstStage, Moments
from ldm_lightning.autoencoder.normalizer import LatentNormalizer
from ldm_lightning.diffusion.process import Process
from ldm_lightning.metrics.accumulators import MeanOverImages
from ldm_lightning.metrics.frechet import Protocol
from ldm_lightning.metrics.reconstruction import MetricReport
from ldm_lightning.module.generation import Generated, GenerationValidation
from ldm_lightning.module.muon import make_optimizer
from ldm_lightning.module.settings import Optimization
from ldm_lightning.module.updating import Batch, ManualOptimizationModule, prepared
from ldm_lightning.utils.metadata import count_fact
from ldm_lightning.utils.random import RowDraws, generator_for

NUM_NOISE_LEVELS = 10
"""Validation measures the loss at this many quantiles of the training times."""


class DiffusionModule(ManualOptimizationModule):
    """Train, validate and store a denoiser.

    Batches hold ``image`` [B, C, H, W] in [-1, 1], or what a latent cache holds: ``mean`` and,
    where the first stage samples, ``variance`` [B, c, h, w].

    Args:
        denoiser: The network (noisy latents, network time, condition) -> [B, c, h, w].
        conditioner: Makes its condition of a batch; trained with it.
        process: Schedule, parametrization, weighting and training times.
        first_stage: Encodes and decodes; is not trained, and no part of this module's state.
        optimization: Optimizer, schedule, accumulation, clipping.
        seed: Seed of everything that is drawn.
        log_every_steps: Updates between two logged rows.
        stored_config: Plain description of denoiser, conditioner and process, and the first stage's
            path and hash; written into every checkpoint.
        protocol: Describes the images of its validation.
        generation: What is generated in validation; None generates nothing.

    Attributes:
        generated: What the last validation generated.
    """

    part_names = ("denoiser",)

    def __init__(
        self,
        denoiser: nn.Module,
        conditioner: nn.Module,
        process: Process,
        first_stage: FrozenFirstStage,
        *,
        optimization: Optimization,
        seed: int,
        log_every_steps: int,
        stored_config: Mapping[str, Any],
        protocol: Mapping[str, str | int | float],
        generation: GenerationValidation | None = None,
    ) -> None:
        super().__init__(optimization=optimization, seed=seed, log_every_steps=log_every_steps)
        self.model = nn.ModuleDict({"denoiser": denoiser, "conditioner": conditioner})
        self.process = process
        self.stored_config = dict(stored_config)
        self.protocol = dict(protocol)
        self.generation = generation
        self.generated: Generated | None = None
        self.report: MetricReport | None = None
        self._unregistered = (first_stage,)  # in a tuple nn.Module does not see it
        self._losses = [MeanOverImages() for _ in range(NUM_NOISE_LEVELS)]

    @property
    def first_stage(self) -> FrozenFirstStage:
        """The frozen first stage, which is no submodule."""
        return self._unregistered[0]

    @property
    def first_stage_used(self) -> dict[str, str]:
        """Identity of the first stage: checkpoint, hash of its weights, ema or raw."""
        return {
            "path": str(self.first_stage.path.absolute()),
            "hash": self.first_stage.weights_hash,
            "weights": self.first_stage.weights,
        }

    @property
    def denoiser(self) -> nn.Module:
        """The network (noisy latents, network time, condition) -> prediction."""
        return self.model["denoiser"]

    @property
    def networks(self) -> list[nn.Module]:
        """Networks to compile and lay out in memory."""
        autoencoder = self.first_stage.autoencoder
        return [self.denoiser, autoencoder.encoder, autoencoder.decoder]

    @property
    def averaged(self) -> nn.Module:
        """The part that a moving average is taken of."""
        return self.model

    def validation_names(self, *, num_images: int, size: tuple[int, int]) -> set[str]:
        """Full names of what a validation on so many images measures, whatever their size."""
        names = {"val/loss", *(f"val/loss_level_{index}" for index in range(NUM_NOISE_LEVELS))}
        if self.generation is None:
            return names
        return names | {f"gen/{name}" for name in self.generation.names}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Let device and precision changes reach the first stage too."""
        super()._apply(fn, recurse)
        self.first_stage._apply(fn, recurse)
        return self

    def setup(self, stage: str) -> None:
        """Use the normalizer of the first process: on GPUs no two measure quite the same."""
        stored = self.trainer.strategy.broadcast(self.first_stage.normalizer.to_dict())
        self.first_stage.set_normalizer(LatentNormalizer.from_dict(stored))

    # Training

    def configure_optimizers(self) -> list[Optimizer]:
        """One optimizer for denoiser and conditioner."""
        parameters, networks = list(self.model.parameters()), [self.denoiser]
        optimizer = make_optimizer(self.optimization.optimizer, parameters, networks=networks)
        return prepared([optimizer])

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Run one batch; after ``accumulate_batches`` of them, update the denoiser."""
        step, rows = self.global_step, batch["image" if "image" in batch else "mean"]
        loss = self.denoising_loss(batch, self.draws(batch_idx, len(rows)))
        self._log.add("loss_total", loss)
        self._add_gradients(loss, exchange=self.is_last_microbatch(batch_idx))
        if not self.is_last_microbatch(batch_idx):
            return
        (optimizer,) = self._optimizers()
        self._set_learning_rate(step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self._log_update(step)

    def denoising_loss(self, batch: Batch, draws: RowDraws) -> Tensor:
        """Mean loss of one batch at random times, a scalar; needs no Trainer.

        Args:
            batch: As the class takes it.
            draws: Random numbers of these rows.
        """
        latents = self._training_latents(self._moments(batch), draws)
        noise = draws.normal("noise", latents.shape[1:], like=latents)
        time = self.process.times(draws.uniform("time", device=latents.device))
        condition = self.model["conditioner"](batch, drop=self._dropped(draws))
        return self.process.loss(self.model["denoiser"], latents, noise, time, condition).mean()

    def _moments(self, batch: Batch) -> Moments:
        """Posterior of a batch: encoded now, or read from a cache."""
        if "image" in batch:
            return self.first_stage.moments(batch["image"])
        return Moments(batch["mean"], batch.get("variance"))

    def _training_latents(self, moments: Moments, draws: RowDraws) -> Tensor:
        """Normalized latents, sampled where the first stage samples."""
        noise = None
        if moments.variance is not None:
            noise = draws.normal("posterior", moments.mean.shape[1:], like=moments.mean)
        return self.first_stage.sample(moments, noise)

    def _dropped(self, draws: RowDraws) -> Tensor | None:
        """Rows that learn without their condition, [B] bool; None where none does."""
        dropout: float = self.model["conditioner"].dropout  # type: ignore[assignment]
        if not dropout:
            return None
        return draws.uniform("label dropout", device=self.device) < dropout

    # Validation

    def on_validation_epoch_start(self) -> None:
        """Start measuring anew."""
        for metric in self._losses:
            metric.reset()
            metric.to(self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss of every image at one noise level, which, like the noise, follows from its key."""
        latents = self.first_stage.sample(self._moments(batch), None)
        levels = [_level_of(key) for key in batch["key"]]
        level = torch.tensor(levels, device=latents.device)
        uniform = (level.double() + 0.5) / NUM_NOISE_LEVELS
        noise = torch.stack(
            [
                torch.randn(latents.shape[1:], generator=generator_for("validation noise", key))
                for key in batch["key"]
            ]
        ).to(latents)
        losses = self.process.loss(
            self.model["denoiser"],
            latents,
            noise,
            self.process.times(uniform),
            self.model["conditioner"](batch, drop=None),
        )
        for index, metric in enumerate(self._losses):
            metric.update(losses[level == index])

    def on_validation_epoch_end(self) -> None:
        """Compute, keep and log the report."""
        for metric in self._losses:
            metric.update(torch.empty(0, device=self.device))  # a process may have had no images
        means = [metric.compute() for metric in self._losses]
        seen = {index: mean for index, mean in enumerate(means) if mean.num_images}
        scalars = {f"loss_level_{index}": mean.mean for index, mean in seen.items()}
        num_images = sum(mean.num_images for mean in seen.values())
        # every level alike, as the training times have it
        scalars["loss"] = sum(mean.mean for mean in seen.values()) / len(seen)
        entry = {
            **self.protocol,
            count_fact(self.protocol): num_images,
            "noise_levels": NUM_NOISE_LEVELS,
        }
        named = {f"val/{name}": value for name, value in scalars.items()}
        protocol: dict[str, Protocol] = {name: dict(entry) for name in named}
        if self.generation is not None:
            self.generated = self.generation.run(
                self.device, self.trainer.precision_plugin.forward_context
            )
            drawn = self.generated.report
            named |= {f"gen/{name}": value for name, value in drawn.scalars.items()}
            protocol |= {f"gen/{name}": entry for name, entry in drawn.protocol.items()}
        self.report = MetricReport(named, protocol, num_images)
        self._publish(named, step=self.global_step, sync=True)

    # Checkpoints

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue with the first stage the run began with, and its normalizer."""
        super().on_load_checkpoint(checkpoint)
        self.use_first_stage_of(checkpoint["second_stage"])

    def use_first_stage_of(self, stored: Mapping[str, Any]) -> None:
        """Take the normalizer of a run that is continued, and refuse another first stage.

        Args:
            stored: ``second_stage`` of its checkpoint.

        Raises:
            ValueError: Naming the hashes of both first stages.
        """
        self.first_stage.check_weights(stored["first_stage"]["hash"])
        self.first_stage.set_normalizer(LatentNormalizer.from_dict(stored["normalizer"]))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what rebuilds the denoiser, and which first stage it belongs to."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["second_stage"] = {
            **self.stored_config,
            "first_stage": self.first_stage_used,
            "normalizer": self.first_stage.normalizer.to_dict(),
        }


def _level_of(key: str) -> int:
    """Noise level at which an image is validated: the same every time, spread evenly."""
    draw = torch.randint(NUM_NOISE_LEVELS, (), generator=generator_for("validation level", key))
    return int(draw)
