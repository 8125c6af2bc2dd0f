"""Training curves, from ``metrics.csv``."""

import os
from collections.abc import Iterable, Sequence
from statistics import fmean

from ldm_lightning.metrics.names import FLOOR_PREFIX, OWN
from ldm_lightning.reporting.metrics_file import read_metrics
from ldm_lightning.reporting.page.charts import WIDE_RANGE, Chart, Knot, Series, file_name
from ldm_lightning.reporting.page.findings import curve_found, curve_told
from ldm_lightning.reporting.page.labels import axis_label, clipped, digits, setting_words
from ldm_lightning.reporting.page.protocols import Protocol, Protocols
from ldm_lightning.reporting.page.runs import Run
from ldm_lightning.reporting.page.settings import Difference, find_differences
from ldm_lightning.reporting.page.summary_file import number
from ldm_lightning.storage.small_files import SmallFileError

CURVES = (
    "val/psnr",
    "val/lpips",
    "val/lpips_vgg",
    "val/perceptual_tiny",
    "val/rfid",
    "val/rfd_tiny",
    "val/high_frequency_deficit",
    "val/color_explained",
    "val/block_edge_ratio",
    "val/kl",
    "val/codebook_usage",
    "val/loss",
    "gen/fid",
    "gen/fd_tiny",
    "latent/std",
    "train/loss_total",
    "train/loss_discriminator",
)


def curve_names() -> list[str]:
    """Names that are drawn against updates: the above and the configuration's own metrics."""
    return [*CURVES, *(f"val/{name}" for name in OWN)]


MAX_RUNS = 18
"""So many lines can be told apart by color and dash."""

MAX_FLOORS = 3
"""Different linear floors that a chart shows; more would hide the runs."""

MAX_POINTS = 150

NUM_TOLD = 3
MAX_VALUE_LETTERS = 20
"""Settings in the label of a line, and what is shown of each."""

Curve = tuple[Knot, ...]


def curve_charts(runs: Sequence[Run], protocols: Protocols) -> Iterable[Chart]:
    """Metrics against updates, of the newest runs that logged any.

    Runs of one kind share a chart; where the metric has a protocol, they share that too.
    """
    trained: list[tuple[Run, dict[str, Curve]]] = []
    for run in reversed(runs):
        if len(trained) < MAX_RUNS and (curves := read_curves(run)):
            trained.append((run, curves))
    trained.reverse()
    styles = {run.number: style for style, (run, _) in enumerate(trained)}
    left_out = sum(os.path.isfile(run.folder / "metrics.csv") for run in runs) - len(trained)
    for metric in curve_names():
        groups: dict[tuple[Protocol | None, str], list[tuple[Run, Curve]]] = {}
        for run, curves in trained:
            if metric in curves:
                protocol = _protocol(run, metric, protocols)
                groups.setdefault((protocol, run.kind), []).append((run, curves[metric]))
        for (protocol, kind), group in sorted(groups.items(), key=lambda item: -len(item[1])):
            if all(len(curve) < 2 for _, curve in group):
                continue  # the table has these numbers
            told = find_differences([run for run, _ in group])[:NUM_TOLD]
            yield Chart(
                name=f"curve_{file_name(metric)}_{_suffix(protocol, kind)}",
                section="Training curves",
                x_label="updates",
                y_label=axis_label(metric),
                series=(
                    *(
                        Series(_label(run, told), (), curve, styles[run.number])
                        for run, curve in group
                    ),
                    *_floors(metric, group, first_style=len(trained)),
                ),
                metrics=(metric,),
                protocols=() if protocol is None else (protocol,),
                finding=curve_found(metric, {run.number: curve for run, curve in group}, protocol)
                if len(runs) > 1
                else curve_told(metric, group[0][1]),
                note=_note(metric, protocol, left_out),
                y_scale=_scale([knot.y for _, curve in group for knot in curve]),
                legend=f"run ({', '.join(_word(one.key) for one in told)})" if told else "",
            )


def _floors(metric: str, group: Sequence[tuple[Run, Curve]], *, first_style: int) -> list[Series]:
    """Flat lines of the linear floors that runs of a chart measured; no more than a few."""
    stage, _, name = metric.partition("/")
    values: dict[float, list[float]] = {}
    for run, curve in group:
        floor = run.metrics.get(f"{stage}/{FLOOR_PREFIX}{name}")
        if floor is not None:
            values.setdefault(float(f"{floor:.6g}"), []).extend(knot.x for knot in curve)
    if len(values) > MAX_FLOORS:
        return []
    return [
        Series(
            "linear floor" if len(values) == 1 else f"linear floor {digits(value)}",
            (),
            tuple(Knot(x, value, value, value) for x in (min(steps), max(steps))),
            first_style + index,
        )
        for index, (value, steps) in enumerate(values.items())
    ]


def _label(run: Run, told: Sequence[Difference]) -> str:
    """The run's number in the table and the settings that tell it from others, else its name."""
    if not told:
        return f"{run.number} {run.name}"
    values = [setting_words(one.key, run.settings.get(one.key, "-"))[1] for one in told]
    return f"{run.number} ({', '.join(clipped(value, MAX_VALUE_LETTERS) for value in values)})"


def _word(key: str) -> str:
    return setting_words(key, "")[0]


def read_curves(run: Run) -> dict[str, Curve]:
    """Logged curves of a run, by metric; empty where there is nothing that can be read.

    Longer curves than ``MAX_POINTS`` become means of neighbors. What is not finite is left out.
    """
    try:
        rows = read_metrics(run.folder / "metrics.csv")
    except (FileNotFoundError, SmallFileError):  # no training, or a damaged file
        return {}
    values: dict[str, list[tuple[int, float]]] = {}
    drawn = set(curve_names())
    for step, name, value in rows:
        if name in drawn and number(value) is not None:
            values.setdefault(name, []).append((step, value))
    return {name: _thinned(points) for name, points in values.items()}


def _thinned(points: Sequence[tuple[int, float]]) -> Curve:
    size = -(-len(points) // MAX_POINTS)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    means = [(fmean(step for step, _ in part), fmean(y for _, y in part)) for part in parts]
    return tuple(Knot(step, y, y, y) for step, y in means)


def _scale(values: Sequence[float]) -> str:
    return "log" if min(values) > 0 and max(values) / min(values) > WIDE_RANGE else "linear"


def _protocol(run: Run, metric: str, protocols: Protocols) -> Protocol | None:
    """None for losses of training batches, and before the first validation was summed up."""
    if metric.startswith("train/") or run.metrics.get(metric) is None:
        return None
    return protocols.of(run, metric)


def _suffix(protocol: Protocol | None, kind: str) -> str:
    return file_name(kind) if protocol is None else f"{file_name(kind)}_{protocol.label}"


def _note(metric: str, protocol: Protocol | None, left_out: int) -> str:
    parts = []
    if metric.startswith("train/"):
        parts.append(f"Of training batches, at most {MAX_POINTS} means of neighbors a line.")
    elif protocol is None:
        parts.append("The protocol is not recorded yet.")
    if left_out > 0:
        parts.append(f"The {MAX_RUNS} newest runs; {left_out} others are left out.")
    return " ".join(parts)
