"""The sampler of a configuration: a solver, its time grid and guidance."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_lightning.diffusion.process import Network, Process, working_dtype
from ldm_lightning.nn.condition import Condition
from ldm_lightning.sampler.grid import NATIVE, time_grid
from ldm_lightning.sampler.guidance import Guidance, GuidedDenoiser
from ldm_lightning.sampler.steps import Solver, StepNoise


@dataclass(frozen=True)
class Sampler:
    """Turns noise into latents.

    Args:
        solver: Walks the grid, such as ``ddim``; its options are bound already.
        num_steps: Steps of the grid, at least 1.
        guidance_scale: 1 is the conditional prediction.
        guidance_interval: Lowest and highest time, in [0, 1], at which guidance acts.
        spacing: Of the time grid, see ``time_grid``.

    Raises:
        ValueError: If there are no steps, or the interval is none.
    """

    solver: Solver
    num_steps: int = 50
    guidance_scale: float = 1.0
    guidance_interval: Sequence[float] = (0.0, 1.0)
    spacing: str = NATIVE

    def __post_init__(self) -> None:
        """Refuse what no process could be sampled with."""
        if self.num_steps < 1:
            raise ValueError(f"sampler.num_steps must be at least 1, got {self.num_steps}.")
        Guidance(self.guidance_scale, self.guidance_interval)

    def check(self, process: Process) -> None:
        """Find out before any waiting whether this process can be sampled.

        Raises:
            ValueError: If its schedule has no such grid.
        """
        time_grid(process.schedule, self.num_steps, self.spacing)

    @torch.no_grad()
    def sample(
        self,
        process: Process,
        network: Network,
        condition: Condition,
        null_condition: Condition | None,
        noise: Tensor,
        step_noise: StepNoise,
    ) -> Tensor:
        """Latents from noise; image i depends on row i of the arguments alone.

        Args:
            process: What the network was trained with.
            network: The denoiser network, in evaluation mode.
            condition: Of the B samples.
            null_condition: Of B dropped conditions; None where the model has none.
            noise: Standard normal, [B, c, h, w].
            step_noise: Standard normal noise [B, c, h, w] of a step, counted from 0; stochastic
                solvers ask for each step once, in order.

        Returns:
            [B, c, h, w], in the type of ``noise``.

        Raises:
            ValueError: If the schedule has no such grid, or guidance lacks a null condition.
        """
        times = time_grid(process.schedule, self.num_steps, self.spacing)
        start = noise.to(working_dtype(noise))
        denoise = GuidedDenoiser(
            process,
            network,
            times=times,
            condition=condition,
            null_condition=null_condition,
            guidance=Guidance(self.guidance_scale, self.guidance_interval),
            latents=start,
        )
        return self.solver(denoise, start, times, process.schedule, step_noise).to(noise.dtype)
