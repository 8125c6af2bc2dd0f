"""Training curves, from ``metrics.csv``."""

import math
from collections.abc import Iterable, Sequence
from statistics import fmean

from ldm_lightning.reporting.metrics_file import read_metrics
from ldm_lightning.reporting.page.charts import Chart, Series, protocol_note
from ldm_lightning.reporting.page.protocols import Protocol, Protocols
from ldm_lightning.reporting.page.runs import Run

CURVES = (
    "val/psnr",
    "val/lpips",
    "val/lpips_vgg",
    "val/perceptual_tiny",
    "val/rfid",
    "val/rfd_tiny",
    "val/high_frequency_deficit",
    "val/kl",
    "val/codebook_usage",
    "val/loss",
    "gen/fid",
    "gen/fd_tiny",
    "latent/std",
    "train/loss_total",
    "train/loss_discriminator",
)

MAX_RUNS = 18
"""So many lines can be told apart by colour and dash."""

MAX_POINTS = 150

Curve = tuple[tuple[float, float], ...]


def curve_charts(runs: Sequence[Run], protocols: Protocols) -> Iterable[Chart]:
    """Metrics against updates, of the newest runs that logged any; one protocol a chart."""
    trained: list[tuple[Run, dict[str, Curve]]] = []
    for run in reversed(runs):
        if len(trained) < MAX_RUNS and (curves := read_curves(run)):
            trained.append((run, curves))
    left_out = sum((run.folder / "metrics.csv").is_file() for run in runs) - len(trained)
    for metric in CURVES:
        groups: dict[Protocol | None, list[Series]] = {}
        for run, curves in sorted(trained, key=lambda item: item[0].number):
            if metric in curves:
                protocol = _protocol(run, metric, protocols)
                label = f"{run.number} {run.name}"
                groups.setdefault(protocol, []).append(Series(label, (), curves[metric]))
        for protocol, series in groups.items():
            yield Chart(
                name=f"curve_{metric.replace('/', '-')}{_suffix(protocol)}",
                section="Training curves",
                x_label="updates",
                y_label=metric,
                series=tuple(series),
                note=_note(metric, protocol, left_out),
            )


def read_curves(run: Run) -> dict[str, Curve]:
    """What a run logged, by metric; empty where there is nothing that can be read.

    Longer curves than ``MAX_POINTS`` become means of neighbours. What is not finite is left out.
    """
    try:
        rows = read_metrics(run.folder / "metrics.csv")
    except (OSError, ValueError):  # being written, or cut off in the middle
        return {}
    values: dict[str, list[tuple[int, float]]] = {}
    for step, name, value in rows:
        if name in CURVES and math.isfinite(value):
            values.setdefault(name, []).append((step, value))
    return {name: _thinned(points) for name, points in values.items()}


def _thinned(points: Sequence[tuple[int, float]]) -> Curve:
    size = -(-len(points) // MAX_POINTS)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return tuple((fmean(step for step, _ in part), fmean(y for _, y in part)) for part in parts)


def _protocol(run: Run, metric: str, protocols: Protocols) -> Protocol | None:
    """None for losses of training batches, and before the first validation was summed up."""
    if metric.startswith("train/") or run.metrics.get(metric) is None:
        return None
    return protocols.of(run, metric)


def _suffix(protocol: Protocol | None) -> str:
    return "" if protocol is None else f"_{protocol.label}"


def _note(metric: str, protocol: Protocol | None, left_out: int) -> str:
    parts = []
    if protocol is not None:
        parts.append(protocol_note(protocol))
    elif metric.startswith("train/"):
        parts.append(f"Of training batches; at most {MAX_POINTS} means of neighbours a line.")
    else:
        parts.append("Protocol not recorded.")
    if left_out > 0:
        parts.append(f"The {MAX_RUNS} newest runs; {left_out} others are left out.")
    return " ".join(parts)
