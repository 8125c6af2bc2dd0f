"""Learning-rate schedules as factors of the base rate, counted in updates."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class WarmupDecay:
    """Linear warm-up, a constant stretch, then a cosine decay to a last fraction of the rate.

    Args:
        max_steps: Updates of the run.
        warmup_steps: Updates of the linear warm-up from zero.
        decay_start_fraction: Of the run, at which the decay begins; 1.0 keeps the rate constant.
        final_fraction: Share of the rate that is left at the end.

    Raises:
        ValueError: If a fraction lies outside [0, 1].
    """

    max_steps: int
    warmup_steps: int = 0
    decay_start_fraction: float = 1.0
    final_fraction: float = 0.0

    def __post_init__(self) -> None:
        """Refuse shares outside [0, 1]."""
        for name in ("decay_start_fraction", "final_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"optim.{name} must lie in [0, 1], got {getattr(self, name)}.")

    def __call__(self, step: int) -> float:
        """Factor of the rate in update ``step``, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        decay_start = self.decay_start_fraction * self.max_steps
        if step < decay_start or self.decay_start_fraction == 1:
            return 1.0
        progress = min(1.0, (step - decay_start) / max(1.0, self.max_steps - decay_start))
        return self.final_fraction + (1 - self.final_fraction) * 0.5 * (
            1 + math.cos(math.pi * progress)
        )
