"""The diffusion process: one call to denoise and one to learn, whatever is predicted.

Scalars of a sample (alpha, sigma, scales, weights) are computed in float64. Arithmetic on latents
is done in their type, widened to float32 at least, with autocast on or off; only the network itself
runs under the caller's autocast.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_lightning.diffusion.parametrization import Parametrization, Preconditioning
from ldm_lightning.diffusion.schedule import NoiseSchedule
from ldm_lightning.diffusion.times import TimeDistribution
from ldm_lightning.diffusion.weighting import Weighting
from ldm_lightning.nn.condition import Condition

# (scaled noisy latents [B, c, h, w], network time [B], condition) -> [B, c, h, w]
Network = Callable[[Tensor, Tensor, Condition], Tensor]

DISTANCES = ("l1", "l2")

# Uniforms are kept this far from 0 and 1, whose quantiles are infinite: a float32 generator returns
# exactly 0 once in 2^24 draws.
UNIFORM_MARGIN = 2.0**-26


@dataclass(frozen=True)
class Process:
    """The diffusion process: noising, prediction target and weighted loss.

    Draws nothing: noise and uniforms are arguments.

    Args:
        schedule: Signal and noise as functions of time.
        parametrization: What the network predicts.
        weighting: How much each noise level counts in the loss.
        training_times: At which times the network is trained.
        distance: ``l1`` or ``l2``, between the network's output and its target.

    Raises:
        ValueError: If the network is asked for the noise where no signal is left, if the training
            times need a table and there is none, or if the distance is unknown.
    """

    schedule: NoiseSchedule
    parametrization: Parametrization
    weighting: Weighting
    training_times: TimeDistribution
    distance: str = "l2"

    def __post_init__(self) -> None:
        """Refuse parts that do not fit each other."""
        if self.distance not in DISTANCES:
            raise ValueError(f"distance must be one of {DISTANCES}, got {self.distance!r}.")
        if self.parametrization.needs_signal and self.schedule.has_zero_terminal_snr:
            raise ValueError(
                "At zero terminal SNR the noise says nothing about the clean latents, so "
                f"{type(self.parametrization).__name__} cannot start from it. Use diffusion=v or "
                "x0, or set diffusion.schedule.zero_terminal_snr=false."
            )
        if self.training_times.needs_table and self.schedule.num_steps is None:
            raise ValueError(
                f"{type(self.training_times).__name__} needs a discrete schedule, got "
                f"{type(self.schedule).__name__}; use diffusion/training_times=uniform, log_normal "
                "or logit_normal."
            )

    def times(self, uniform: Tensor) -> Tensor:
        """Training times, [B] in (0, 1], float64, from uniforms [B] in (0, 1)."""
        inside = uniform.double().clamp(UNIFORM_MARGIN, 1 - UNIFORM_MARGIN)
        return self.training_times(inside, self.schedule)

    def preconditioning(self, time: Tensor) -> Preconditioning:
        """Scales around the network at ``time``, any shape; float64."""
        level = self.schedule.noise_level(time)
        return self.parametrization.preconditioning(level.alpha, level.sigma)

    def add_noise(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Mix alpha * clean + sigma * noise, in the latents' type.

        Args:
            clean: [B, c, h, w], of unit variance.
            noise: Standard normal, [B, c, h, w].
            time: [B], in [0, 1].
        """
        level = self.schedule.noise_level(_one_per_sample(time, clean))
        wide = working_dtype(clean)
        noisy = _expand(level.alpha, wide) * clean.to(wide) + _expand(level.sigma, wide) * noise
        return noisy.to(clean.dtype)

    def denoise(
        self, network: Network, noisy: Tensor, time: Tensor, condition: Condition
    ) -> Tensor:
        """Estimate the clean latents.

        Args:
            network: Predicts what the parametrization says.
            noisy: [B, c, h, w].
            time: [B], in (0, 1].
            condition: What the network is conditioned on.

        Returns:
            [B, c, h, w], in the type of ``noisy``.

        Raises:
            ValueError: If ``time`` is not [B], or the network returns another shape.
        """
        scales = self.preconditioning(_one_per_sample(time, noisy))
        wide = working_dtype(noisy)
        noisy_wide = noisy.to(wide)
        output = self._run(network, noisy_wide, time, scales, condition)
        clean = (
            _expand(scales.skip, wide) * noisy_wide + _expand(scales.output_scale, wide) * output
        )
        return clean.to(noisy.dtype)

    def loss(
        self, network: Network, clean: Tensor, noise: Tensor, time: Tensor, condition: Condition
    ) -> Tensor:
        """Weighted distance between the network's output and its target.

        The weight is that of the squared error, with ``l1`` too.

        Args:
            network: Predicts what the parametrization says.
            clean: [B, c, h, w], of unit variance.
            noise: Standard normal, [B, c, h, w].
            time: [B], in (0, 1].
            condition: What the network is conditioned on.

        Returns:
            Mean over c, h, w, per sample: [B], float32 at least.
        """
        level = self.schedule.noise_level(_one_per_sample(time, clean))
        output_scale = self.parametrization.preconditioning(*level).output_scale
        distance = self._distance(network, clean, noise, time, condition)
        return self.weighting(*level, output_scale).to(distance.dtype) * distance

    def _distance(
        self, network: Network, clean: Tensor, noise: Tensor, time: Tensor, condition: Condition
    ) -> Tensor:
        """Mean distance between the network's output and its target, [B]."""
        wide = working_dtype(clean)
        clean, noise = clean.to(wide), noise.to(wide)
        scales = self.preconditioning(time)
        noisy = self.add_noise(clean, noise, time)
        output = self._run(network, noisy, time, scales, condition)
        target = _expand(scales.clean_weight, wide) * clean
        target = target + _expand(scales.noise_weight, wide) * noise
        error = output - target
        elements = error.abs() if self.distance == "l1" else error.square()
        return elements.flatten(1).mean(dim=1)

    def _run(
        self,
        network: Network,
        noisy: Tensor,
        time: Tensor,
        scales: Preconditioning,
        condition: Condition,
    ) -> Tensor:
        """The network's output in the type of ``noisy``, which is float32 at least."""
        network_time = self.schedule.network_time(time.double()).to(noisy.dtype)
        output = network(_expand(scales.input_scale, noisy.dtype) * noisy, network_time, condition)
        return checked_output(output, noisy)


def working_dtype(latents: Tensor) -> torch.dtype:
    """Type of arithmetic on latents: their own, but float32 at least."""
    return torch.promote_types(latents.dtype, torch.float32)


def checked_output(output: Tensor, noisy: Tensor) -> Tensor:
    """The network's output in the type of ``noisy``.

    Raises:
        ValueError: If its shape is another: broadcasting would hide that.
    """
    if output.shape != noisy.shape:
        raise ValueError(
            f"The network must return the shape of the latents, {list(noisy.shape)}, got "
            f"{list(output.shape)}; set its out_channels to {noisy.shape[1]}."
        )
    return output.to(noisy.dtype)


def _one_per_sample(time: Tensor, latents: Tensor) -> Tensor:
    if time.shape != latents.shape[:1]:
        raise ValueError(f"time must be [{len(latents)}], one a sample, got {list(time.shape)}.")
    return time


def _expand(values: Tensor, dtype: torch.dtype) -> Tensor:
    """[B] -> [B, 1, 1, 1]."""
    return values.to(dtype)[:, None, None, None]
