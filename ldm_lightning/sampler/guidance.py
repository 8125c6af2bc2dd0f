"""Classifier-free guidance in one batched network call, in an interval of times.

Source: Ho & Salimans 2022, arXiv:2207.12598, Eq. 6, with scale = 1 + w; interval: Kynkaanniemi et
al. 2024, arXiv:2404.07724, section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_lightning.diffusion.process import Network, Process, checked_output
from ldm_lightning.nn.condition import Condition, stack
from ldm_lightning.sampler.steps import Denoise


@dataclass(frozen=True)
class Guidance:
    """How far, and when, to go beyond the conditional prediction.

    Args:
        scale: 1 is the conditional prediction, 0 the unconditional one; above 1 it is extrapolated.
        interval: Lowest and highest time, in [0, 1], at which it is; outside, the conditional
            prediction is taken.

    Raises:
        ValueError: Unless 0 <= lowest < highest <= 1.
    """

    scale: float = 1.0
    interval: Sequence[float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        """Refuse intervals that are none."""
        if len(self.interval) != 2 or not 0 <= self.interval[0] < self.interval[1] <= 1:
            raise ValueError(
                f"guidance_interval must be [lowest, highest] time with "
                f"0 <= lowest < highest <= 1, got {list(self.interval)}."
            )

    def applies(self, time: float) -> bool:
        """Whether the prediction at this time is changed."""
        return self.scale != 1 and self.interval[0] <= time <= self.interval[1]


class _Row(NamedTuple):
    """What one time of the grid needs."""

    input_scale: float
    skip: float
    output_scale: float
    network_time: Tensor


def guided_denoiser(
    process: Process,
    network: Network,
    *,
    times: Tensor,
    condition: Condition,
    null_condition: Condition | None,
    guidance: Guidance,
    latents: Tensor,
) -> Denoise:
    """Clean estimates at the times of a grid, whose scales are looked up once.

    Args:
        process: Says what the network predicts.
        network: The denoiser network.
        times: The grid, [S + 1].
        condition: Of the samples.
        null_condition: What a dropped condition is replaced by; None where nothing is guided.
        guidance: How far and when.
        latents: Any latents of the samples' type, on their device.

    Raises:
        ValueError: If the guidance has a scale other than 1 and there is no null condition.
    """
    both: Condition | None = None
    if guidance.scale != 1:
        if null_condition is None:
            raise ValueError(
                f"guidance_scale={guidance.scale} needs a null condition, and this model has none; "
                f"set sampler.guidance_scale=1, or train with label dropout."
            )
        both = stack(null_condition, condition)
    rows = _rows(process, times, latents)

    def denoise(noisy: Tensor, time: float) -> Tensor:
        row = rows[time]
        inputs = noisy if row.input_scale == 1 else noisy * row.input_scale
        batch_size = len(noisy)
        if both is not None and guidance.applies(time):
            inputs = torch.cat([inputs, inputs])
            output = network(inputs, row.network_time.expand(2 * batch_size), both)
            null_output, output = checked_output(output, inputs).chunk(2)
            output = torch.lerp(null_output, output, guidance.scale)
        else:
            output = network(inputs, row.network_time.expand(batch_size), condition)
            output = checked_output(output, inputs)
        return torch.add(noisy * row.skip, output, alpha=row.output_scale)

    return denoise


def _rows(process: Process, times: Tensor, latents: Tensor) -> dict[float, _Row]:
    """Scales at each time of the grid as Python floats, and the network's time on its device."""
    times = times.detach().double().cpu()
    scales = process.preconditioning(times)
    network_times = process.schedule.network_time(times).to(latents.device, latents.dtype)
    return {
        time: _Row(input_scale, skip, output_scale, network_time)
        for time, input_scale, skip, output_scale, network_time in zip(
            times.tolist(),
            scales.input_scale.tolist(),
            scales.skip.tolist(),
            scales.output_scale.tolist(),
            network_times,
            strict=True,
        )
    }
