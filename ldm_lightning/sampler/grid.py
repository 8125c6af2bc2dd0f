"""At which times a sampler calls the network.

Source of the names for tables: Lin et al. 2023, arXiv:2305.08891, Table 2.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ldm_lightning.diffusion.edm import EdmSchedule
from ldm_lightning.diffusion.schedule import NoiseSchedule

NATIVE = "native"


def time_grid(schedule: NoiseSchedule, num_steps: int, spacing: str = NATIVE) -> Tensor:
    """Times from the first network call to the clean latents.

    Args:
        schedule: Signal and noise as functions of time.
        num_steps: S, at least 1 and at most the length of a discrete table.
        spacing: ``native``, the schedule's own, or one of ``schedule.spacings``. On tables
            ``trailing`` starts at the last place, ``leading`` at the published latent diffusion's
            places, and ``linspace`` spans from the last place to the first. ``karras`` ends at
            sigma_min before zero. ``uniform`` cuts [0, 1] evenly.

    Returns:
        [S + 1], float64 on the CPU, descending; the last one is 0.

    Raises:
        ValueError: If the schedule has no such grid.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps of a sampler must be at least 1, got {num_steps}.")
    if schedule.num_steps is not None and num_steps > schedule.num_steps:
        raise ValueError(
            f"The sampler wants {num_steps} steps and the schedule has {schedule.num_steps}; lower "
            "sampler.num_steps."
        )
    name = schedule.spacings[0] if spacing == NATIVE else spacing
    if name not in schedule.spacings:
        raise ValueError(
            f"{type(schedule).__name__} has no time grid {spacing!r}; set sampler.spacing to one "
            f"of {', '.join([NATIVE, *schedule.spacings])}."
        )
    return torch.cat([GRIDS[name](schedule, num_steps), torch.zeros(1, dtype=torch.float64)])


def _trailing(schedule: NoiseSchedule, num_steps: int) -> Tensor:
    """Places T, T - T/S, T - 2 T/S, ..., counted from 1."""
    table = _table_length(schedule)
    steps = torch.arange(num_steps, dtype=torch.float64)
    return (table - steps * (table / num_steps)).round() / table


def _leading(schedule: NoiseSchedule, num_steps: int) -> Tensor:
    """Indices 1, 1 + T/S, 1 + 2 T/S, ... counted from 0, the largest first.

    Differs from Rombach et al. 2022: where S does not divide T the stride is not rounded down, and
    where it is below 2 the grid starts at index 0, so that it stays on the table.
    """
    table = _table_length(schedule)
    offset = 1 if num_steps * 2 <= table else 0
    steps = torch.arange(num_steps - 1, -1, -1, dtype=torch.int64)
    return ((steps * table).div(num_steps, rounding_mode="floor") + offset + 1).double() / table


def _linspace(schedule: NoiseSchedule, num_steps: int) -> Tensor:
    """Indices from T - 1 to 0, rounded; a single step starts at T - 1."""
    table = _table_length(schedule)
    indices = torch.linspace(table - 1, 0, num_steps, dtype=torch.float64).round()
    return (indices + 1) / table


def _karras(schedule: NoiseSchedule, num_steps: int) -> Tensor:
    """Evenly spaced times: the noise levels of Karras et al. 2022, arXiv:2206.00364, Eq. 5."""
    assert isinstance(schedule, EdmSchedule)
    last = schedule.time_at(torch.tensor(schedule.sigma_min, dtype=torch.float64)).item()
    return torch.linspace(1, last, num_steps, dtype=torch.float64)


def _uniform(schedule: NoiseSchedule, num_steps: int) -> Tensor:
    """1, 1 - 1/S, 1 - 2/S, ..."""
    return torch.arange(num_steps, 0, -1, dtype=torch.float64) / num_steps


GRIDS: dict[str, Callable[[NoiseSchedule, int], Tensor]] = {
    "trailing": _trailing,
    "leading": _leading,
    "linspace": _linspace,
    "karras": _karras,
    "uniform": _uniform,
}


def _table_length(schedule: NoiseSchedule) -> int:
    assert schedule.num_steps is not None
    return schedule.num_steps
