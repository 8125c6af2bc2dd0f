"""Which figures the runs allow, as points; how they are drawn is another matter.

A chart holds numbers of one protocol: runs that were measured in another way get a chart of
their own. Only runs that are done are compared; curves show the others too.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from ldm_lightning.metrics.names import describe
from ldm_lightning.reporting.page.protocols import NOT_RECORDED, Protocol, Protocols
from ldm_lightning.reporting.page.runs import Run
from ldm_lightning.reporting.page.settings import Difference, numeric

STAGES = ("test", "val")
PERCEPTUAL = ("lpips", "lpips_vgg", "perceptual_tiny")
FRECHET = ("rfid", "rfd_tiny")
SWEPT_METRICS = (
    "psnr",
    *PERCEPTUAL,
    *FRECHET,
    "high_frequency_deficit",
    "kl",
    "codebook_usage",
    "nll",
    "loss",
)
GENERATED = ("gen/fid", "gen/fd_tiny", "latent/std", "perf/encode_images_per_s")

MAX_SWEPT_SETTINGS = 6
MAX_PROTOCOLS = 3
"""Charts of one kind; those of the protocols with the most runs are drawn."""

MAX_LINES = 8
WIDE_RANGE = 30.0
"""A setting whose values span more than this goes on a logarithmic axis."""

NO_SEED = ("seed",)

MAX_NAMED = 4


@dataclass(frozen=True)
class Point:
    """One number of one run; ``run`` is its number in the report."""

    run: int
    x: float
    y: float


@dataclass(frozen=True)
class Series:
    """Points of one colour; ``line`` is drawn through where there is one."""

    label: str
    points: tuple[Point, ...]
    line: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Chart:
    """A figure before it is drawn.

    Attributes:
        name: Of its files, and unique.
        section: Under which heading it stands.
        x_label: Horizontal axis, with the unit.
        y_label: Vertical axis, likewise.
        series: What is drawn.
        front: The runs that none is better than in both directions, in the order of x.
        is_log_x: Whether the horizontal axis is logarithmic.
        note: What must be said about the numbers: their protocol, and what was left out.
    """

    name: str
    section: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    front: tuple[Point, ...] = ()
    is_log_x: bool = False
    note: str = ""

    @property
    def title(self) -> str:
        """One line for those who do not see the figure."""
        return f"{self.y_label} against {self.x_label}"


def rate_charts(runs: Sequence[Run], protocols: Protocols) -> Iterable[Chart]:
    """Rate-distortion: reconstruction figures against what the latents cost (requirement B13)."""
    for rate, label, rate_of in (
        ("elements", "latent elements per pixel", elements_per_pixel),
        ("bits", "bits per pixel of the codes", bits_per_pixel),
    ):
        rates = {run.number: rate_of(run) for run in runs}
        for metric in _reconstruction_metrics():
            for protocol, group in _by_protocol(runs, protocols, metric):
                points = [
                    (run, Point(run.number, x, y))
                    for run in group
                    if (x := rates[run.number]) is not None
                    and (y := run.metrics[metric]) is not None
                ]
                if len({point.x for _, point in points}) > 1:
                    better = _is_higher_better(metric)
                    yield Chart(
                        name=f"rate_{rate}_{_file_name(metric)}_{protocol.label}",
                        section="Rate and distortion",
                        x_label=label,
                        y_label=metric,
                        series=_by_family(points),
                        front=_front(points, protocol, x_higher=False, y_higher=better),
                        is_log_x=_is_wide([point.x for _, point in points]),
                        note=protocol_note(protocol),
                    )


def perception_charts(runs: Sequence[Run], protocols: Protocols) -> Iterable[Chart]:
    """Perception against distortion (requirement A3): PSNR against what decides."""
    for stage in STAGES:
        distortion = f"{stage}/psnr"
        for metric in (f"{stage}/{name}" for name in (*PERCEPTUAL, *FRECHET)):
            for protocol, group in _by_protocol(runs, protocols, metric):
                for other, both in _by_protocol(group, protocols, distortion):
                    points = [
                        (run, Point(run.number, x, y))
                        for run in both
                        if (x := run.metrics[distortion]) is not None
                        and (y := run.metrics[metric]) is not None
                    ]
                    if len(points) > 1:
                        front = _front(points, protocol, x_higher=True, y_higher=False)
                        yield Chart(
                            name=f"perception_{_file_name(metric)}_{other.label}_{protocol.label}",
                            section="Perception and distortion",
                            x_label=f"{distortion} in dB (more is better)",
                            y_label=f"{metric} (less is better)",
                            series=_by_family(points),
                            front=front,
                            note=f"{distortion}: {protocol_note(other)} "
                            f"{metric}: {protocol_note(protocol)}",
                        )


def swept_charts(
    runs: Sequence[Run], protocols: Protocols, differences: Sequence[Difference]
) -> Iterable[Chart]:
    """Each metric against each setting that takes several numbers.

    A line joins runs that differ in nothing else but the seed and what follows from the setting,
    through the mean of the seeds.
    """
    done = [run for run in runs if run.is_done]
    keys = [one.key for one in differences if one.key not in NO_SEED]
    drawn: list[str] = []
    for key in (key for key in keys if _is_swept(key, done)):
        if len(drawn) == MAX_SWEPT_SETTINGS or any(_follows(key, of, done) for of in drawn):
            continue
        drawn.append(key)
        following = [other for other in keys if other != key and _follows(other, key, done)]
        others = [other for other in keys if other != key and other not in following]
        for metric in _swept_metrics():
            for protocol, group in _by_protocol(done, protocols, metric):
                lines: dict[tuple[str, ...], list[Point]] = {}
                for run in group:
                    x, y = numeric(run.settings.get(key)), run.metrics[metric]
                    if x is not None and y is not None:
                        same = tuple(f"{other}={run.settings.get(other)}" for other in others)
                        lines.setdefault(same, []).append(Point(run.number, x, y))
                xs = [point.x for points in lines.values() for point in points]
                if len(set(xs)) > 1:
                    yield Chart(
                        name=f"swept_{_file_name(key)}_{_file_name(metric)}_{protocol.label}",
                        section="Metrics against settings",
                        x_label=key,
                        y_label=metric,
                        series=_joined(lines),
                        is_log_x=_is_wide(xs),
                        note=f"{protocol_note(protocol)}{_changes_too(following)}",
                    )


def elements_per_pixel(run: Run) -> float | None:
    """Numbers in the latents over pixels of the image; None where unknown."""
    channels = numeric(run.settings.get("autoencoder.latent_channels"))
    factor = numeric(run.settings.get("autoencoder.downsampling_factor"))
    if channels is not None and factor:
        return channels / factor**2
    ratio = run.metrics.get("test/compression_ratio")
    channels = numeric(run.settings.get("image_channels"))
    return channels / ratio if ratio and channels is not None else None


def bits_per_pixel(run: Run) -> float | None:
    """Of the codes; None for latents that are real numbers."""
    for stage in STAGES:
        if (measured := run.metrics.get(f"{stage}/bits_per_pixel")) is not None:
            return measured
    codes = numeric(run.settings.get("bottleneck.num_codes"))
    factor = numeric(run.settings.get("autoencoder.downsampling_factor"))
    return math.log2(codes) / factor**2 if codes and codes > 0 and factor else None


def _reconstruction_metrics() -> list[str]:
    names = ("psnr", *PERCEPTUAL, *FRECHET)
    return [f"{stage}/{name}" for name in names for stage in STAGES]


def _swept_metrics() -> list[str]:
    return [f"{stage}/{name}" for name in SWEPT_METRICS for stage in STAGES] + list(GENERATED)


def _by_protocol(
    runs: Sequence[Run], protocols: Protocols, metric: str
) -> Iterable[tuple[Protocol, list[Run]]]:
    """Runs that are done, by how they made one metric; the protocols with the most runs."""
    groups: dict[Protocol, list[Run]] = {}
    for run in runs:
        if run.is_done and run.metrics.get(metric) is not None:
            groups.setdefault(protocols.of(run, metric), []).append(run)
    return sorted(groups.items(), key=lambda item: -len(item[1]))[:MAX_PROTOCOLS]


def _by_family(points: Sequence[tuple[Run, Point]]) -> tuple[Series, ...]:
    """One series a kind of bottleneck."""
    families: dict[str, list[Point]] = {}
    for run, point in points:
        target = str(run.settings.get("bottleneck._target_") or "unknown bottleneck")
        families.setdefault(target.rpartition(".")[2], []).append(point)
    return tuple(Series(label, tuple(group)) for label, group in sorted(families.items()))


def _joined(lines: dict[tuple[str, ...], list[Point]]) -> tuple[Series, ...]:
    """A line for each set of runs that differ in the swept setting alone; few, or none."""
    everything = tuple(point for points in lines.values() for point in points)
    joined = [same for same, points in lines.items() if len({point.x for point in points}) > 1]
    if not joined or len(lines) > MAX_LINES:
        return (Series("", everything),)
    told = Counter(text for same in lines for text in same)
    series = []
    for same, points in lines.items():
        label = ", ".join(_short(text) for text in same if told[text] < len(lines))
        xs = sorted({point.x for point in points})
        line = [(x, fmean(point.y for point in points if point.x == x)) for x in xs]
        series.append(Series(label, tuple(points), tuple(line) if len(line) > 1 else ()))
    return tuple(series)


def _front(
    points: Sequence[tuple[Run, Point]], protocol: Protocol, *, x_higher: bool, y_higher: bool
) -> tuple[Point, ...]:
    """The Pareto front; none where the sample is too small to rank by."""
    if protocol.is_small_sample:
        return ()
    best, front = None, []
    order = sorted(
        (point for _, point in points),
        key=lambda point: (
            -point.x if x_higher else point.x,
            -point.y if y_higher else point.y,
        ),
    )
    for point in order:
        if best is None or (point.y > best if y_higher else point.y < best):
            best = point.y
            front.append(point)
    return tuple(sorted(front, key=lambda point: point.x))


def protocol_note(protocol: Protocol) -> str:
    """What a chart must say about how its numbers were made."""
    if protocol.text == NOT_RECORDED:
        return f"Protocol {protocol.label}: not recorded, so runs may differ in it."
    small = " Small sample: nothing is ranked by it." if protocol.is_small_sample else ""
    return f"Protocol {protocol.label}.{small}"


def _is_higher_better(metric: str) -> bool:
    return describe(metric).higher_is_better is True


def _is_swept(key: str, runs: Sequence[Run]) -> bool:
    return len({numeric(run.settings.get(key)) for run in runs} - {None}) > 1


def _follows(key: str, of: str, runs: Sequence[Run]) -> bool:
    """Whether one setting is known where the other is."""
    pairs = {(repr(run.settings.get(of)), repr(run.settings.get(key))) for run in runs}
    return len(pairs) == len({value for value, _ in pairs})


def _changes_too(keys: Sequence[str]) -> str:
    """Name the settings that change together with the one that is drawn."""
    if not keys:
        return ""
    more = f" and {len(keys) - MAX_NAMED} more" if len(keys) > MAX_NAMED else ""
    return f" With it change: {', '.join(keys[:MAX_NAMED])}{more}."


def _is_wide(values: Iterable[float]) -> bool:
    known = list(values)
    return min(known) > 0 and max(known) / min(known) > WIDE_RANGE


def _short(text: str) -> str:
    """``loss.kl_weight=1`` without the group."""
    key, _, value = text.partition("=")
    return f"{key.rpartition('.')[2]}={value}"


def _file_name(text: str) -> str:
    """Letters, digits and dashes alone: what comes from a configuration becomes part of a path."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in text)
