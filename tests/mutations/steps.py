"""Mistakes in training steps, averages and learning rates."""

from tests.mutations.losses import of

AUTOENCODER = ("module/autoencoder.py", "module/test_autoencoder.py")
GENERATOR = ("module/generator_loss.py", "module/test_generator_loss.py")
DISCRIMINATOR = ("module/discriminator_loss.py", "module/test_discriminator_loss.py")
UPDATING = ("module/updating.py", "module/test_diffusion.py")
DIFFUSION = ("module/diffusion.py", "module/test_diffusion.py")
CONDITIONER = ("conditioner/class_label.py", "module/test_diffusion.py")
RATE = ("module/learning_rate.py", "module/test_learning_rate.py")
AVERAGE = ("callbacks/ema.py", "callbacks/test_ema.py")
PLACED = ("callbacks/ema.py", "module/test_assigned_codes.py")

FIRST_STAGE = [
    of(
        GENERATOR,
        "the ramp of the adversarial weight is lost",
        "weight = fraction * _adversarial_weight(",
        "weight = _adversarial_weight(",
    ),
    of(
        GENERATOR,
        "the adversarial weight is ignored",
        "return adversary.loss.weight * adaptive_weight(reconstruction_mean, adversarial_mean)",
        "return adaptive_weight(reconstruction_mean, adversarial_mean)",
    ),
    of(
        GENERATOR,
        "the adaptive weight takes its gradients in the wrong order",
        "reconstruction_mean, adversarial_mean = all_reduce_mean",
        "adversarial_mean, reconstruction_mean = all_reduce_mean",
    ),
    of(
        GENERATOR,
        "the adversarial gradient is subtracted",
        "gradient = gradient + weight * adversarial.gradient",
        "gradient = gradient - weight * adversarial.gradient",
    ),
    of(
        GENERATOR,
        "the generator's update leaks into the discriminator",
        "(gradient,) = torch.autograd.grad(loss, outputs)",
        "loss.backward()\n    gradient = outputs.grad",
        "module/test_autoencoder.py",
    ),
    of(
        GENERATOR,
        "the discriminator's update leaks into the generator",
        "at_least_float32(output.reconstructions.detach())",
        "at_least_float32(output.reconstructions)",
        "module/test_autoencoder.py",
    ),
    of(
        AUTOENCODER,
        "the generator's gradients are not zeroed",
        "generator.zero_grad(set_to_none=True)",
        "pass",
    ),
    of(
        AUTOENCODER,
        "the discriminator's gradients are not zeroed",
        "optimizer.zero_grad(set_to_none=True)",
        "pass",
    ),
    of(
        GENERATOR,
        "the log-variance is not learned",
        "scalar = scalar + (parameter * parameter_gradient).sum()",
        "scalar = scalar + 0 * parameter.sum()",
    ),
    of(
        GENERATOR,
        "weights of the bottleneck's terms are ignored",
        "scalar = scalar + weight_of_term * term\n",
        "scalar = scalar + term\n",
    ),
    of(
        AUTOENCODER,
        "the posterior is not sampled in training",
        'return draws.normal("posterior", shape, like=images)',
        "return None",
    ),
    of(
        DISCRIMINATOR,
        "R1 is measured and not added",
        "loss = loss + settings.r1_weight * penalty",
        "loss = loss + 0 * penalty",
    ),
    of(
        DISCRIMINATOR,
        "LeCam is measured and not added",
        "loss = loss + settings.lecam_weight * regularizer",
        "loss = loss + 0 * regularizer",
    ),
    of(
        AUTOENCODER,
        "LeCam's running means stay at zero",
        "self.lecam.update([real for real, _ in seen], [fake for _, fake in seen])",
        "pass",
        "module/test_updating.py",
    ),
    of(
        AUTOENCODER,
        "the discriminator sees the last batch of an update alone",
        "for images, reconstructions in self._pending:",
        "for images, reconstructions in self._pending[-1:]:",
    ),
    of(
        AUTOENCODER,
        "the discriminator learns before its start",
        "if self.adversary and self.adversary.loss.schedule.discriminator_learns(step):",
        "if self.adversary:",
    ),
]

UPDATES = [
    of(
        UPDATING,
        "accumulated gradients are summed",
        "self.manual_backward(loss / self.optimization.accumulate_batches)",
        "self.manual_backward(loss)",
    ),
    of(
        UPDATING,
        "the clip norm is ignored",
        "nn.utils.clip_grads_with_norm_(parameters, self.optimization.clip_norm, norm)",
        "pass",
    ),
    of(
        UPDATING,
        "the schedule of the learning rate is ignored",
        'group["lr"] = group["initial_lr"] * factor',
        'group["lr"] = group["initial_lr"]',
    ),
    of(
        UPDATING,
        "all batches of an update draw the same",
        "(self.microbatch_index(batch_idx) * num_processes() + process_rank()) * num_rows",
        "process_rank() * num_rows",
    ),
    of(RATE, "warm-up ends one update early", "/ (self.warmup_steps + 1)", "/ self.warmup_steps"),
    of(RATE, "warm-up starts at zero", "return (step + 1) / (", "return step / ("),
    of(RATE, "the cosine rises", "1 + math.cos(", "1 - math.cos("),
    of(
        RATE,
        "the last share of the rate is ignored",
        "return self.final_fraction + (1 - self.final_fraction) * 0.5 * (",
        "return 0.5 * (",
    ),
]

SECOND_STAGE = [
    of(DIFFUSION, "label dropout is lost", "drop=self._dropped(draws)", "drop=None"),
    of(
        DIFFUSION,
        "kept labels are dropped",
        'return draws.uniform("label dropout", device=self.device) < dropout',
        'return draws.uniform("label dropout", device=self.device) > dropout',
    ),
    of(
        DIFFUSION,
        "validation drops labels",
        'self.model["conditioner"](batch, drop=None)',
        'self.model["conditioner"](batch, drop=torch.ones(len(latents), dtype=torch.bool))',
    ),
    of(
        CONDITIONER,
        "dropped labels become the first class",
        "labels = torch.where(drop, self._null_label, labels)",
        "labels = torch.where(drop, 0, labels)",
    ),
    of(
        DIFFUSION,
        "the gradients are not zeroed",
        "optimizer.zero_grad(set_to_none=True)",
        "pass",
    ),
    of(
        DIFFUSION,
        "the posterior is not sampled in training",
        "return self.first_stage.sample(moments, noise)",
        "return self.first_stage.sample(moments, None)",
    ),
    of(
        DIFFUSION,
        "the loss is a mean over images, not over noise levels",
        'scalars["loss"] = sum(mean.mean for mean in seen.values()) / len(seen)',
        'scalars["loss"] = sum(m.mean * m.num_images for m in seen.values()) / num_images',
    ),
    of(
        DIFFUSION,
        "validation at the edges of the levels",
        "(level.double() + 0.5) / NUM_NOISE_LEVELS",
        "(level.double() + 1.0) / NUM_NOISE_LEVELS",
    ),
    of(
        DIFFUSION,
        "losses are put into the wrong level",
        "metric.update(losses[level == index])",
        "metric.update(losses[level == NUM_NOISE_LEVELS - 1 - index])",
    ),
    of(
        DIFFUSION,
        "validation draws other noise every time",
        'generator=generator_for("validation noise", key))',
        "generator=None)",
    ),
    of(
        DIFFUSION,
        "an update learns at one noise level",
        'self.process.times(draws.uniform("time", device=latents.device))',
        'self.process.times(draws.uniform("time", device=latents.device)[:1].repeat(len(latents)))',
    ),
]

AVERAGES = [
    of(
        AVERAGE,
        "the decay is applied twice",
        "torch._foreach_lerp_(self._own_averages, self._followed, weight)",
        "torch._foreach_lerp_(self._own_averages, self._followed, weight * (2 - weight))",
    ),
    of(
        AVERAGE,
        "decay taken for its complement",
        "weight = 1 - self.decay_at(self.num_updates)",
        "weight = self.decay_at(self.num_updates)",
    ),
    of(
        AVERAGE,
        "averaged after every batch, not after every update",
        "if trainer.global_step == self._seen_step:",
        "if False:",
    ),
    of(
        AVERAGE,
        "validation sees the raw weights",
        '"""Validate with the average."""\n        self._swap_in()',
        '"""Validate with the average."""',
    ),
    of(
        AVERAGE,
        "training goes on with the average",
        '"""Train on with the raw weights."""\n        self._swap_out()',
        '"""Train on with the raw weights."""\n        self._raw = []',
    ),
    of(
        AVERAGE,
        "the warm-up is never left",
        "return min(self.decay, (1 + update)",
        "return max(self.decay, (1 + update)",
    ),
    of(
        AVERAGE,
        "a continued run begins a new average",
        'if "ema" in checkpoint:',
        "if False:",
    ),
    of(
        PLACED,
        "codes that were placed glide",
        "weight)\n        self._take_over(pl_module)",
        "weight)",
    ),
]
