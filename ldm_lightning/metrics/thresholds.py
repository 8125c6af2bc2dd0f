"""Return whether a first stage is good enough to train a diffusion model in its latent space.

Numbers and thresholds in, a verdict out. A metric that is missing or not finite fails.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ldm_lightning.metrics.diagnosis import Cause, FirstStageFacts, likely_causes, missed_floor

MODES = ("stop", "warn", "skip")
CONDITIONS = ("tiny", "standard", "codes")
"""What a threshold may depend on: the feature set that measures it, or that there is a codebook."""


@dataclass(frozen=True)
class Threshold:
    """Bounds of one metric.

    Args:
        metric: Full name, such as ``val/psnr`` or ``latent/std``.
        at_least: Smallest value that passes; None for no lower bound.
        at_most: Largest value that passes; None for no upper bound.

    Raises:
        ValueError: If there is no bound, one is not finite, or nothing lies between them.
    """

    metric: str
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        bounds = [bound for bound in (self.at_least, self.at_most) if bound is not None]
        if not bounds or not all(map(math.isfinite, bounds)) or sorted(bounds) != bounds:
            raise ValueError(
                f"The gate's threshold of {self.metric} needs at_least, at_most or both, finite "
                f"and in order; got at_least={self.at_least}, at_most={self.at_most}."
            )

    def __str__(self) -> str:
        """The bounds, in words."""
        if self.at_most is None:
            return f"at least {self.at_least:g}"
        if self.at_least is None:
            return f"at most {self.at_most:g}"
        return f"{self.at_least:g} to {self.at_most:g}"

    def passes(self, value: float | None) -> bool:
        """Return whether a value is finite and within the bounds."""
        if value is None or not math.isfinite(value):
            return False
        low = -math.inf if self.at_least is None else self.at_least
        high = math.inf if self.at_most is None else self.at_most
        return low <= value <= high


@dataclass(frozen=True)
class GateRow:
    """One number beside its threshold; ``value`` is None where nothing finite was measured."""

    threshold: Threshold
    value: float | None

    @property
    def passed(self) -> bool:
        """True if the number reaches its threshold."""
        return self.threshold.passes(self.value)

    def __str__(self) -> str:
        """The number and what was wanted."""
        shown = "not finite or not measured" if self.value is None else f"{self.value:.4g}"
        return f"{self.threshold.metric} is {shown} (wanted: {self.threshold})"


@dataclass(frozen=True)
class GateVerdict:
    """Verdict of the gate.

    Attributes:
        passed: Whether every threshold is reached.
        rows: All numbers beside their thresholds.
        causes: What is probably wrong, the most certain first; empty where the gate is passed.
    """

    passed: bool
    rows: tuple[GateRow, ...]
    causes: tuple[Cause, ...]

    @property
    def failed(self) -> tuple[GateRow, ...]:
        """The rows that missed their thresholds."""
        return tuple(row for row in self.rows if not row.passed)


def judge(
    metrics: Mapping[str, float],
    thresholds: Sequence[Threshold],
    *,
    facts: FirstStageFacts | None = None,
) -> GateVerdict:
    """Compare metrics with thresholds, and say what is probably wrong where they are missed.

    A first stage that is below its linear floor in PSNR and in perceptual distance fails too.

    Args:
        metrics: Values by full name; more of them than have thresholds make a better diagnosis.
        thresholds: What must hold.
        facts: What else is known of the first stage.

    Raises:
        ValueError: If there are no thresholds: such a gate would let everything pass.
    """
    if not thresholds:
        raise ValueError(
            "The gate has no thresholds, so that everything would pass. Give some "
            "(gate.thresholds), or say gate.mode=skip."
        )
    rows = []
    for threshold in thresholds:
        value = metrics.get(threshold.metric)
        rows.append(GateRow(threshold, value if value is None or math.isfinite(value) else None))
    for metric, bound in missed_floor(metrics).items():
        is_psnr = metric == "val/psnr"
        below = Threshold(metric, at_least=bound) if is_psnr else Threshold(metric, at_most=bound)
        rows.append(GateRow(below, metrics[metric]))
    failed = {row.threshold.metric for row in rows if not row.passed}
    causes = likely_causes(metrics, failed, facts or FirstStageFacts())
    return GateVerdict(not failed, tuple(rows), causes)


def check_mode(mode: object) -> str:
    """Return the mode if it is one.

    Raises:
        ValueError: If it is not; YAML reads ``off`` as False.
    """
    if isinstance(mode, str) and mode in MODES:
        return mode
    hint = " YAML reads off, no and false as that; the word is skip." if mode is False else ""
    raise ValueError(f"gate.mode must be stop, warn or skip, got {mode!r}.{hint}")


def read_thresholds(
    entries: Mapping[str, Mapping[str, Any] | None], *, conditions: Collection[str] = CONDITIONS
) -> tuple[Threshold, ...]:
    """Make thresholds of plain mappings, leaving out those whose condition is not met.

    Args:
        entries: By any name: ``metric``, ``at_least``, ``at_most``, and ``when``, one of
            ``CONDITIONS``. None switches an entry off.
        conditions: Those that are met: the feature set's name, and ``codes`` for a codebook.

    Raises:
        ValueError: If an entry lacks its metric or holds anything else, or a bound is no number.
    """
    thresholds = []
    for name, entry in entries.items():
        if entry is None:
            continue
        where = f"gate.thresholds.{name}"
        unknown = sorted(set(entry) - {"metric", "at_least", "at_most", "when"})
        if unknown or not isinstance(entry.get("metric"), str):
            raise ValueError(
                f"{where} needs metric (such as val/psnr) and may hold at_least, at_most and when; "
                f"got {dict(entry)}."
            )
        when = entry.get("when")
        if when is not None and when not in CONDITIONS:
            raise ValueError(f"{where}.when must be one of {', '.join(CONDITIONS)}, got {when!r}.")
        bounds = {key: entry.get(key) for key in ("at_least", "at_most")}
        for key, bound in bounds.items():
            if isinstance(bound, bool) or not isinstance(bound, int | float | None):
                raise ValueError(f"{where}.{key} must be a number, got {bound!r}.")
        threshold = Threshold(entry["metric"], **bounds)
        if when is None or when in conditions:
            thresholds.append(threshold)
    return tuple(thresholds)
