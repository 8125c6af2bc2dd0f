"""Training of a first stage: one forward, the generator's update, then the discriminator's.

The order of one update, and why (costs: A autoencoder forward, V perceptual forward, D
discriminator forward):

1. The autoencoder runs forward once (A).
2. The reconstruction loss and the generator's adversarial loss are differentiated once each, down
   to the decoder's output and no further (3V, 2D). Only these two gradients are pushed through the
   last layer, to compare their norms for the adaptive weight: ``generator_loss.py``.
3. One backward pass carries their weighted sum through decoder and encoder (2A); the generator
   steps.
4. The discriminator learns on the same, detached reconstructions (6D) and steps:
   ``discriminator_loss.py``.

Neither side ever holds a gradient of the other's loss: step 2 asks for gradients of the decoder's
output alone.
"""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ldm_lightning.autoencoder.autoencoder import Autoencoder
from ldm_lightning.autoencoder.linear_fit import sample_size
from ldm_lightning.loss.adversarial import LeCam
from ldm_lightning.loss.reconstruction import ReconstructionLoss
from ldm_lightning.loss.terms import check_term_names
from ldm_lightning.metrics.first_stage import FirstStageMetrics, FirstStageReport
from ldm_lightning.metrics.linear_floor import LinearFloor
from ldm_lightning.metrics.names import METRICS
from ldm_lightning.module.discriminator_loss import DiscriminatorLoss, discriminator_loss
from ldm_lightning.module.generator_loss import GeneratorLoss, generator_loss
from ldm_lightning.module.muon import make_optimizer
from ldm_lightning.module.settings import Adversary, Optimization
from ldm_lightning.module.updating import Batch, ManualOptimizationModule, prepared
from ldm_lightning.module.validation_losses import ValidationLosses
from ldm_lightning.utils.collectives import average_gradients
from ldm_lightning.utils.random import RowDraws


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
        linear_floor: Is measured in the first validation, and stored; None does not measure it.
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
        linear_floor: LinearFloor | None = None,
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
        self.adversary = adversary
        self.discriminator = adversary.discriminator if adversary else None
        if self.discriminator is not None:
            # DDP would exchange all gradients in the backward passes of either network. So it is
            # left the autoencoder's, and the discriminator's are averaged by hand.
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
                self, [f"discriminator.{name}" for name in self.discriminator.state_dict()]
            )
        self.lecam = LeCam() if adversary and adversary.loss.lecam_weight else None
        self.term_weights = {name: term_weights[name] for name in autoencoder.bottleneck.term_names}
        self.metrics = metrics
        self.raw_metrics = raw_metrics
        self.linear_floor = linear_floor
        self.stored_config = dict(stored_config)
        self.report: FirstStageReport | None = None
        self._pending: list[tuple[Tensor, Tensor]] = []  # images and reconstructions of this update
        self._validation_losses = ValidationLosses(reconstruction_loss)

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
        has_kl = "kl" in self.autoencoder.bottleneck.term_names
        own |= {"kl"} if has_kl else set()
        losses = self._validation_losses.names(has_kl=has_kl)
        names = {f"val/{name}" for name in own | losses} | {"latent/mean", "latent/std"}
        return names | ({f"val_raw/{name}" for name in own} if self.raw_metrics else set())

    def take_assigned(self) -> dict[str, Tensor]:
        """Return what the bottleneck has set past the optimizer, as ``averaged`` names it."""
        assigned = self.autoencoder.bottleneck.take_assigned()
        return {f"bottleneck.{name}": rows for name, rows in assigned.items()}

    @property
    def adversarial_fully_on_step(self) -> int:
        """First update with the full adversarial weight; 0 without a discriminator."""
        return self.adversary.loss.schedule.fully_on_step if self.adversary else 0

    # Training

    def configure_optimizers(self) -> list[Optimizer]:
        """One optimizer for autoencoder and log-variance, one for the discriminator."""
        generator = [*self.autoencoder.parameters(), *self.reconstruction_loss.parameters()]
        networks = [self.autoencoder.encoder, self.autoencoder.decoder]
        optimizers = [make_optimizer(self.optimization.optimizer, generator, networks=networks)]
        if self.adversary is not None:
            discriminator = self.adversary.discriminator
            trained = list(discriminator.parameters())
            optimizers.append(
                make_optimizer(self.adversary.optimizer, trained, networks=[discriminator])
            )
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
        if self.adversary and self.adversary.loss.schedule.discriminator_learns(step):
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
        generated = generator_loss(
            self.autoencoder,
            images,
            self._posterior_noise(images, draws),
            reconstruction_loss=self.reconstruction_loss,
            adversary=self.adversary,
            term_weights=self.term_weights,
            step=step,
        )
        self._log.add_all(generated.logged)
        return generated

    def discriminator_loss(self, images: Tensor, reconstructions: Tensor) -> DiscriminatorLoss:
        """Loss of the discriminator on one batch, as step 4 above takes it; needs no Trainer.

        Args:
            images: [B, C, H, W] in [-1, 1].
            reconstructions: Of these images, detached, [B, C, H, W].
        """
        assert self.adversary is not None
        judged = discriminator_loss(self.adversary, self.lecam, images, reconstructions)
        self._log.add_all(judged.logged)
        return judged

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

    # Validation

    def on_validation_epoch_start(self) -> None:
        """Start measuring anew."""
        dtype = self.autoencoder.last_layer.dtype
        for metrics in (self.metrics, self.raw_metrics):
            if metrics is not None:
                metrics.to(self.device, dtype)
                metrics.reset()
        if self.linear_floor is not None:
            self.linear_floor.begin(self._training_sample, device=self.device, dtype=dtype)
        self._validation_losses.reset(self.device)

    def _training_sample(self) -> Tensor:
        """Training images of the run's data module, uint8 [N, C, H, W]."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        return data.training_sample(sample_size(data.resolution))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Reconstruct without sampling and measure."""
        images = batch["image"]
        output = self.autoencoder(images)
        self.metrics.update(images, output.reconstructions, output.bottleneck)
        if self.linear_floor is not None:
            self.linear_floor.update(images)
        self._validation_losses.update(images, output)

    def on_validation_epoch_end(self) -> None:
        """Compute, keep and log the report."""
        self.report = self.metrics.compute()
        if self.linear_floor is not None:
            self.report = self.report.with_floor(self.linear_floor.end())
        scalars = {f"val/{name}": value for name, value in self.report.scalars.items()}
        scalars |= self.report.latent_scalars
        if self.raw_metrics is not None:
            raw = self.raw_metrics.compute()
            scalars |= {f"val_raw/{name}": value for name, value in raw.scalars.items()}
        losses = self._validation_losses.compute(self.device)
        scalars |= {f"val/{name}": value for name, value in losses.items()}
        # Lightning asks for a reduction of epoch values; these are equal already.
        self._publish(scalars, step=self.global_step, sync=True)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what rebuilds the autoencoder without this run's configuration."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["first_stage"] = self.stored_config
        if self.linear_floor is not None:
            checkpoint["linear_floor"] = self.linear_floor.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the figures of the linear floor over, so that it is measured once."""
        super().on_load_checkpoint(checkpoint)
        if self.linear_floor is not None:
            self.linear_floor.load_state_dict(checkpoint.get("linear_floor") or {})
