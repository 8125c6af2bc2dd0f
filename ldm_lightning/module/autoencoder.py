"""Training of a first stage: one forward, the generator's update, then the discriminator's.

The order of one update, and why (costs: A autoencoder forward, V perceptual forward, D
discriminator forward):

1. The autoencoder runs forward once (A).
2. The reconstruction loss and the generator's adversarial loss are differentiated once each, down
to the
   decoder's output and no further (3V, 2D). Only these two gradients are pushed through the last
   layer, to compare their norms for the adaptive weight.
3. One backward pass carries their weighted sum through decoder and encoder (2A); the generator
steps.
4. The discriminator learns on the same, detached reconstructions (6D) and steps.

Neither side ever holds a gradient of the other's loss: step 2 asks for gradients of the decoder's
output alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ldm_lightning.autoencoder.autoencoder import Autoencoder
from ldm_lightning.loss.adversarial import (
    AdversarialLoss,
    LeCam,
    Logits,
    adaptive_weight,
    logit_maps,
    mean_logit,
    r1_penalty,
)
from ldm_lightning.loss.reconstruction import ReconstructionLoss
from ldm_lightning.loss.terms import check_term_names
from ldm_lightning.metrics.accumulators import MeanOverImages
from ldm_lightning.metrics.first_stage import FirstStageMetrics, FirstStageReport
from ldm_lightning.metrics.names import METRICS
from ldm_lightning.module.precision import at_least_float32, gradient_at_layer, loss_precision
from ldm_lightning.module.settings import Adversary, Optimization
from ldm_lightning.module.updating import Batch, ManualOptimizationModule, prepared
from ldm_lightning.utils.collectives import all_reduce_mean, average_gradients
from ldm_lightning.utils.random import RowDraws


@dataclass(frozen=True)
class GeneratorLoss:
    """Generator's loss on one batch.

    Attributes:
        loss: A scalar with the gradients of the weighted losses, though not with their value.
        reconstructions: Detached, in float32 at least, [B, C, H, W].
    """

    loss: Tensor
    reconstructions: Tensor


@dataclass(frozen=True)
class DiscriminatorLoss:
    """Discriminator's loss on one batch.

    Attributes:
        loss: With its regularizers, a scalar.
        logits_real: On the images, detached, by map.
        logits_fake: On their reconstructions, likewise.
    """

    loss: Tensor
    logits_real: list[Tensor]
    logits_fake: list[Tensor]


class AutoencoderModule(ManualOptimizationModule):
    """Train, validate and store a first stage.

    ``trainer.global_step`` counts generator updates: the discriminator steps through the strategy,
    which keeps precision and scaling and is not counted.

    Args:
        autoencoder: The network; its checkpoint rebuilds it from ``stored_config``.
        reconstruction_loss: Pixels and perceptual distance.
        term_weights: Weight of each term the bottleneck returns, by name.
        adversary: Discriminator and adversarial loss; None trains without.
        optimization: Optimizers, schedule, accumulation, clipping.
        metrics: What validation measures.
        raw_metrics: The same for the raw weights where validation sees their average; None does
            not measure them. Filled by the EMA callback.
        seed: Seed of the posterior's noise and of codebook restarts.
        log_every_steps: Updates between two logged rows; losses are checked for finiteness then
            too.
        stored_config: Plain description of the autoencoder, written into every checkpoint.

    Raises:
        ValueError: If a term of the bottleneck has no weight, or a further term another's name.
    """

    part_names = ("autoencoder", "discriminator")

    def __init__(
        self,
        autoencoder: Autoencoder,
        reconstruction_loss: ReconstructionLoss,
        *,
        term_weights: Mapping[str, float],
        adversary: Adversary | None,
        optimization: Optimization,
        metrics: FirstStageMetrics,
        raw_metrics: FirstStageMetrics | None = None,
        seed: int,
        log_every_steps: int,
        stored_config: Mapping[str, Any],
    ) -> None:
        super().__init__(optimization=optimization, seed=seed, log_every_steps=log_every_steps)
        missing = set(autoencoder.bottleneck.term_names) - set(term_weights)
        if missing:
            raise ValueError(
                f"The bottleneck returns the terms {sorted(missing)}, but the loss weights only "
                f"{sorted(term_weights)}; add loss.<term>_weight."
            )
        taken = {*autoencoder.bottleneck.term_names, *METRICS, *metrics.own}
        check_term_names(reconstruction_loss.terms, taken)
        self.autoencoder = autoencoder
        self.reconstruction_loss = reconstruction_loss
        self.discriminator = adversary.discriminator if adversary else None
        self.adversarial_loss = adversary.loss if adversary else None
        if self.discriminator is not None:
            # DDP would exchange all gradients in the backward passes of either network. So it is
            # left the autoencoder's, and the discriminator's are averaged by hand.
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
                self, [f"discriminator.{name}" for name in self.discriminator.state_dict()]
            )
        self._discriminator_optimizer = adversary.optimizer if adversary else None
        self.lecam = LeCam() if adversary and adversary.loss.lecam_weight else None
        self.term_weights = {name: term_weights[name] for name in autoencoder.bottleneck.term_names}
        self.metrics = metrics
        self.raw_metrics = raw_metrics
        self.stored_config = dict(stored_config)
        self.report: FirstStageReport | None = None
        self._pending: list[tuple[Tensor, Tensor]] = []  # images and reconstructions of this update
        names = ("nll", "elbo", *reconstruction_loss.terms)
        self._validated = {name: MeanOverImages() for name in names}

    @property
    def networks(self) -> list[nn.Module]:
        """Networks to compile and lay out in memory."""
        networks: list[nn.Module] = [self.autoencoder.encoder, self.autoencoder.decoder]
        if self.discriminator is not None:
            networks.append(self.discriminator)
        if self.reconstruction_loss.perceptual is not None:
            networks.append(self.reconstruction_loss.perceptual)
        return networks

    @property
    def averaged(self) -> nn.Module:
        """The part that a moving average is taken of."""
        return self.autoencoder

    def validation_names(self, *, num_images: int, size: tuple[int, int]) -> set[str]:
        """Full names of what a validation on so many images of height and width measures."""
        own = self.metrics.names(num_images=num_images, size=size)
        if "kl" in self.autoencoder.bottleneck.term_names:
            own |= {"kl", "nll", "elbo"} if self.reconstruction_loss.pixel.is_likelihood else {"kl"}
        names = {f"val/{name}" for name in {*own, *self.reconstruction_loss.terms}}
        names |= {"latent/mean", "latent/std"}
        return names | ({f"val_raw/{name}" for name in own} if self.raw_metrics else set())

    def take_assigned(self) -> dict[str, Tensor]:
        """Return what the bottleneck has set past the optimizer, as ``averaged`` names it."""
        assigned = self.autoencoder.bottleneck.take_assigned()
        return {f"bottleneck.{name}": rows for name, rows in assigned.items()}

    @property
    def adversarial_fully_on_step(self) -> int:
        """First update with the full adversarial weight; 0 without a discriminator."""
        return self.adversarial_loss.schedule.fully_on_step if self.adversarial_loss else 0

    # Training

    def configure_optimizers(self) -> list[Optimizer]:
        """One optimizer for autoencoder and log-variance, one for the discriminator."""
        generator = [*self.autoencoder.parameters(), *self.reconstruction_loss.parameters()]
        optimizers = [self.optimization.optimizer(generator)]
        if self.discriminator is not None and self._discriminator_optimizer is not None:
            optimizers.append(self._discriminator_optimizer(self.discriminator.parameters()))
        return prepared(optimizers)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Run one batch; after ``accumulate_batches`` of them, update both networks."""
        images, step = batch["image"], self.global_step
        draws = self.draws(batch_idx, len(images))
        completes = self.is_last_microbatch(batch_idx)
        generated = self.generator_loss(images, draws, step=step)
        self._add_gradients(generated.loss, exchange=completes)
        self._pending.append((images, generated.reconstructions))
        if not completes:
            return
        generator, *others = self._optimizers()
        self._set_learning_rate(step)
        generator.step()
        generator.zero_grad(set_to_none=True)
        self.autoencoder.bottleneck.after_update(step=step, seed=self.seed)
        if others and self._adversarial_loss().schedule.discriminator_learns(step):
            self._update_discriminator(others[0])
        self._pending.clear()
        for value in self.reconstruction_loss.parameters():  # a likelihood has one at most
            self._log.set("log_variance", value)
        self._log_update(step)

    def _posterior_noise(self, images: Tensor, draws: RowDraws) -> Tensor | None:
        """Noise that the posterior is sampled with; None without sampling."""
        if not self.autoencoder.bottleneck.is_stochastic:
            return None
        _, *shape = self.autoencoder.latent_shape(images.shape)
        return draws.normal("posterior", shape, like=images)

    def generator_loss(self, images: Tensor, draws: RowDraws, *, step: int) -> GeneratorLoss:
        """Run one batch forward and weigh its losses (steps 1 and 2 above); needs no Trainer.

        Args:
            images: [B, C, H, W] in [-1, 1].
            draws: Random numbers of these rows.
            step: Updates done, by which the adversarial weight comes in.
        """
        output = self.autoencoder(images, self._posterior_noise(images, draws))
        # Half types cannot hold the gradient of mean(|x - x'|), or round it coarsely.
        outputs = at_least_float32(output.outputs.detach()).requires_grad_()
        with loss_precision(images):
            terms = self.reconstruction_loss(outputs, self.autoencoder.to_images(outputs), images)
        learned = list(self.reconstruction_loss.parameters())
        gradient, *learned_gradients = torch.autograd.grad(terms.total, [outputs, *learned])
        self._log.add("loss_pixel", terms.pixel)
        if terms.perceptual is not None:
            self._log.add("loss_perceptual", terms.perceptual)
        for name, added in terms.added.items():
            self._log.add(f"loss_{name}", added)
        total = terms.total.detach()
        share = (
            self.adversarial_loss.schedule.generator_fraction(step)
            if self.adversarial_loss
            else 0.0
        )
        if share > 0 and self._adversarial_loss().weight > 0:
            adversarial, adversarial_gradient = self._adversarial_gradient(outputs)
            weight = (
                self._adversarial_weight(output.outputs, gradient, adversarial_gradient) * share
            )
            gradient = gradient + weight * adversarial_gradient
            total = total + weight * adversarial
            self._log.add("loss_adversarial", adversarial)
            self._log.add("adversarial_weight", weight)
        # The gradient at the decoder's output stands for everything behind it; terms that do not
        # pass through the output (bottleneck, log-variance) are added as they are.
        scalar = (output.outputs * gradient.detach()).sum()
        for parameter, parameter_gradient in zip(learned, learned_gradients, strict=True):
            scalar = scalar + (parameter * parameter_gradient).sum()
        for name, weight_of_term in self.term_weights.items():
            term = output.bottleneck.terms[name].mean()
            self._log.add(f"loss_{name}", term)
            scalar = scalar + weight_of_term * term
            total = total + weight_of_term * term.detach()
        self._log.add("loss_total", total)
        return GeneratorLoss(scalar, at_least_float32(output.reconstructions.detach()))

    def _adversarial_gradient(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """The generator's adversarial loss and its gradient at the decoder's output."""
        assert self.discriminator is not None
        with loss_precision(outputs):
            logits_fake = self.discriminator(self.autoencoder.to_images(outputs))
            loss = self._adversarial_loss().generator_loss(logits_fake)
        (gradient,) = torch.autograd.grad(loss, outputs)
        return loss.detach(), gradient

    def _adversarial_weight(
        self, outputs: Tensor, reconstruction: Tensor, adversarial: Tensor
    ) -> Tensor:
        """Weight of the adversarial gradient; all processes find the same."""
        loss = self._adversarial_loss()
        if not loss.adaptive:
            return outputs.new_tensor(loss.weight)
        gradients = [
            gradient_at_layer(outputs, self.autoencoder.last_layer, gradient)
            for gradient in (reconstruction, adversarial)
        ]
        reconstruction_mean, adversarial_mean = all_reduce_mean(torch.stack(gradients))
        return loss.weight * adaptive_weight(reconstruction_mean, adversarial_mean)

    def discriminator_loss(self, images: Tensor, reconstructions: Tensor) -> DiscriminatorLoss:
        """Loss of the discriminator on one batch, as step 4 above takes it; needs no Trainer.

        Args:
            images: [B, C, H, W] in [-1, 1].
            reconstructions: Of these images, detached, [B, C, H, W].
        """
        assert self.discriminator is not None
        settings = self._adversarial_loss()
        if settings.r1_weight:
            images = images.detach().requires_grad_()
        with loss_precision(images):
            logits_real = self.discriminator(images)
            logits_fake = self.discriminator(reconstructions)
        loss = settings.discriminator_loss(logits_real, logits_fake)
        self._log.add("loss_discriminator", loss)
        self._log.add("logits_real", mean_logit(logits_real))
        self._log.add("logits_fake", mean_logit(logits_fake))
        if settings.r1_weight:
            penalty = r1_penalty(logits_real, images)
            self._log.add("loss_r1", penalty)
            loss = loss + settings.r1_weight * penalty
        if self.lecam is not None:
            regularizer = self.lecam(logits_real, logits_fake)
            self._log.add("loss_lecam", regularizer)
            loss = loss + settings.lecam_weight * regularizer
        return DiscriminatorLoss(loss, _detached(logits_real), _detached(logits_fake))

    def _update_discriminator(self, optimizer: LightningOptimizer) -> None:
        """Let the discriminator learn on the batches of this update (step 4 above)."""
        assert self.discriminator is not None
        seen: list[tuple[list[Tensor], list[Tensor]]] = []
        for images, reconstructions in self._pending:
            judged = self.discriminator_loss(images, reconstructions)
            self._add_gradients(judged.loss, exchange=False)
            seen.append((judged.logits_real, judged.logits_fake))
        average_gradients(self.discriminator.parameters())
        if self.lecam is not None:
            self.lecam.update([real for real, _ in seen], [fake for _, fake in seen])
        # Through the strategy, not `optimizer.step()`: Lightning would count this as a second
        # global step.
        self.trainer.strategy.optimizer_step(optimizer.optimizer, closure=lambda: None)
        optimizer.zero_grad(set_to_none=True)

    def _adversarial_loss(self) -> AdversarialLoss:
        assert self.adversarial_loss is not None
        return self.adversarial_loss

    # Validation

    def on_validation_epoch_start(self) -> None:
        """Start measuring anew."""
        dtype = self.autoencoder.last_layer.dtype
        for metrics in (self.metrics, self.raw_metrics):
            if metrics is not None:
                metrics.to(self.device, dtype)
                metrics.reset()
        for metric in self._validated.values():
            metric.reset()
            metric.to(self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Reconstruct without sampling and measure."""
        images = batch["image"]
        output = self.autoencoder(images)
        self.metrics.update(images, output.reconstructions, output.bottleneck)
        pixel = self.reconstruction_loss.pixel
        if pixel.is_likelihood and "kl" in output.bottleneck.terms:
            elements = pixel.negative_log_likelihood(pixel.error(output.outputs, images))
            nll = elements.flatten(1).sum(dim=1)
            self._validated["nll"].update(nll)
            self._validated["elbo"].update(-nll - output.bottleneck.terms["kl"])
        for name, term in self.reconstruction_loss.terms.items():
            reconstructions = at_least_float32(output.reconstructions)
            self._validated[name].update(term(reconstructions, at_least_float32(images)))

    def on_validation_epoch_end(self) -> None:
        """Compute, keep and log the report."""
        self.report = self.metrics.compute()
        scalars = {f"val/{name}": value for name, value in self.report.scalars.items()}
        scalars |= self.report.latent_scalars
        if self.raw_metrics is not None:
            raw = self.raw_metrics.compute()
            scalars |= {f"val_raw/{name}": value for name, value in raw.scalars.items()}
        for name, metric in self._validated.items():
            metric.update(torch.empty(0, device=self.device))  # a process may have had no images
            mean = metric.compute()
            if mean.num_images:
                scalars[f"val/{name}"] = mean.mean
        # Lightning asks for a reduction of epoch values; these are equal already.
        self._publish(scalars, step=self.global_step, sync=True)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what rebuilds the autoencoder without this run's configuration."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["first_stage"] = self.stored_config


def _detached(logits: Logits) -> list[Tensor]:
    return [one.detach() for one in logit_maps(logits)]
