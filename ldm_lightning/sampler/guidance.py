"""Classifier-free guidance in one batched network call, in an interval of times.

Source: Ho & Salimans 2022, arXiv:2207.12598, Eq. 6, with scale = 1 + w; interval: Kynkaanniemi et
al. 2024, arXiv:2404.07724, section 3.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_lightning.diffusion.process import Network, Process, checked_output
from ldm_lightning.nn.condition import Condition, stack
from ldm_lightning.sampler.steps import Denoiser, Step


@dataclass(frozen=True)
class Guidance:
    """Strength of classifier-free guidance, and the times at which it applies.

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
                "guidance_interval must be [lowest, highest] time with 0 <= lowest < highest <= 1, "
                f"got {list(self.interval)}."
            )

    def applies(self, time: float) -> bool:
        """Return whether the prediction at this time is changed."""
        return self.scale != 1 and self.interval[0] <= time <= self.interval[1]


class _Row(NamedTuple):
    """Coefficients of one time of the grid."""

    input_scale: float
    skip: float
    output_scale: float
    network_time: Tensor  # of every row of the network's batch
    is_guided: bool


class GuidedDenoiser(Denoiser):
    """Clean estimates at the times of a grid, whose scales are looked up once.

    Args:
        process: Says what the network predicts.
        network: The denoiser network.
        times: The grid, [S + 1].
        condition: Of the samples.
        null_condition: What a dropped condition is replaced by; None where nothing is guided.
        guidance: How far and when.
        latents: Any latents of the samples' shape and type, on their device.

    Raises:
        ValueError: If the guidance has a scale other than 1 and there is no null condition.
    """

    def __init__(
        self,
        process: Process,
        network: Network,
        *,
        times: Tensor,
        condition: Condition,
        null_condition: Condition | None,
        guidance: Guidance,
        latents: Tensor,
    ) -> None:
        self._both: Condition | None = None
        if guidance.scale != 1:
            if null_condition is None:
                raise ValueError(
                    f"guidance_scale={guidance.scale} needs a null condition, and this model has "
                    "none; set sampler.guidance_scale=1, or train with label dropout."
                )
            self._both = stack(null_condition, condition)
        self._network = network
        self._condition = condition
        self._scale = guidance.scale
        self._rows = _rows(process, times, guidance, latents)

    def __call__(self, noisy: Tensor, time: float) -> Tensor:
        """Clean estimate [B, c, h, w] of noisy latents [B, c, h, w]."""
        return self.walk(Step(keep=0.0, move=1.0), noisy, time)

    def walk(self, step: Step, noisy: Tensor, time: float) -> Tensor:
        """The step from noisy latents: linear in them and in the network's output."""
        row = self._rows[time]
        keep = step.keep + step.move * row.skip
        output = self._output(noisy, row)
        return (noisy * keep).add_(output, alpha=step.move * row.output_scale)

    def _output(self, noisy: Tensor, row: _Row) -> Tensor:
        """Prediction of the network, guided at the times of the interval."""
        inputs = noisy if row.input_scale == 1 else noisy * row.input_scale
        if not row.is_guided or self._both is None:
            output = self._network(inputs, row.network_time, self._condition)
            return checked_output(output, inputs)
        inputs = torch.cat([inputs, inputs])
        output = checked_output(self._network(inputs, row.network_time, self._both), inputs)
        null_output, output = output.chunk(2)
        return torch.lerp(null_output, output, self._scale)


def _rows(
    process: Process, times: Tensor, guidance: Guidance, latents: Tensor
) -> dict[float, _Row]:
    """Scales at each time of the grid as Python floats, and the network's times on its device."""
    times = times.detach().double().cpu()
    scales = process.preconditioning(times)
    network_times = process.schedule.network_time(times).to(latents.device, latents.dtype)
    single = network_times[:, None].expand(-1, len(latents)).unbind()
    double = network_times[:, None].expand(-1, 2 * len(latents)).unbind()
    columns = (times, scales.input_scale, scales.skip, scales.output_scale)
    rows = {}
    for index, (time, input_scale, skip, output_scale) in enumerate(
        zip(*(column.tolist() for column in columns), strict=True)
    ):
        if math.isclose(input_scale, 1, rel_tol=1e-12):
            input_scale = 1.0  # rounding of alpha^2 + sigma^2 should not cost an operation
        is_guided = guidance.applies(time)
        network_time = (double if is_guided else single)[index]
        rows[time] = _Row(input_scale, skip, output_scale, network_time, is_guided)
    return rows
