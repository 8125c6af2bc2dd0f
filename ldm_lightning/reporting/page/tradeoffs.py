"""Rate against distortion, and perception against distortion, with their Pareto fronts."""

import math
from collections.abc import Iterable, Mapping, Sequence

from ldm_lightning.reporting.page.charts import (
    FRECHET,
    MAX_TICKS,
    PERCEPTUAL,
    RECONSTRUCTION,
    STAGES,
    Chart,
    Point,
    Series,
    by_protocol,
    file_name,
    scale_of,
)
from ldm_lightning.reporting.page.findings import front_found
from ldm_lightning.reporting.page.labels import axis_label, is_higher_better
from ldm_lightning.reporting.page.protocols import Protocol, Protocols
from ldm_lightning.reporting.page.runs import Run
from ldm_lightning.reporting.page.summary_file import number


def rate_charts(runs: Sequence[Run], protocols: Protocols) -> Iterable[Chart]:
    """Rate-distortion: reconstruction figures against what the latents cost (requirement B13)."""
    families = _families(runs)
    for rate, label, rate_of in (
        ("elements", "latent elements per pixel, less is cheaper", elements_per_pixel),
        ("bits", "bits per pixel of the codes, less is cheaper", bits_per_pixel),
    ):
        rates = {run.number: rate_of(run) for run in runs}
        for metric in (f"{stage}/{name}" for name in RECONSTRUCTION for stage in STAGES):
            for protocol, group in by_protocol(runs, protocols, metric):
                points = _points(group, rates, metric)
                xs = sorted({point.x for _, point in points})
                if len(xs) > 1:
                    better = is_higher_better(metric) is True
                    front = _front(points, (protocol,), x_higher=False, y_higher=better)
                    yield Chart(
                        name=f"rate_{rate}_{file_name(metric)}_{protocol.label}",
                        section="Rate and distortion",
                        x_label=label,
                        y_label=axis_label(metric),
                        series=_by_family(points, families),
                        metrics=(metric,),
                        protocols=(protocol,),
                        finding=front_found(front, len(points), (protocol,)),
                        front=front,
                        x_scale=scale_of(xs),
                        ticks=tuple(xs) if len(xs) <= MAX_TICKS else (),
                    )


def perception_charts(runs: Sequence[Run], protocols: Protocols) -> Iterable[Chart]:
    """Perception against distortion (requirement A3): PSNR against what decides."""
    families = _families(runs)
    for stage in STAGES:
        distortion = f"{stage}/psnr"
        for metric in (f"{stage}/{name}" for name in (*PERCEPTUAL, *FRECHET)):
            for protocol, group in by_protocol(runs, protocols, metric):
                for other, both in by_protocol(group, protocols, distortion):
                    xs = {run.number: run.metrics[distortion] for run in both}
                    points = _points(both, xs, metric)
                    if len(points) > 1:
                        made = (other, protocol)
                        front = _front(points, made, x_higher=True, y_higher=False)
                        yield Chart(
                            name=f"perception_{file_name(metric)}_{other.label}_{protocol.label}",
                            section="Perception and distortion",
                            x_label=axis_label(distortion),
                            y_label=axis_label(metric),
                            series=_by_family(points, families),
                            metrics=(distortion, metric),
                            protocols=made,
                            finding=front_found(front, len(points), made),
                            front=front,
                        )


def elements_per_pixel(run: Run) -> float | None:
    """Numbers in the latents over pixels of the image; None where unknown."""
    channels = number(run.settings.get("autoencoder.latent_channels"))
    factor = number(run.settings.get("autoencoder.downsampling_factor"))
    if channels is not None and factor is not None and factor >= 1:
        return channels / factor / factor
    ratio = run.metrics.get("test/compression_ratio")
    channels = number(run.settings.get("image_channels"))
    return number(channels / ratio) if ratio and channels is not None else None


def bits_per_pixel(run: Run) -> float | None:
    """Of the codes; None for latents that are real numbers."""
    for stage in STAGES:
        if (measured := run.metrics.get(f"{stage}/bits_per_pixel")) is not None:
            return measured
    codes = number(run.settings.get("bottleneck.num_codes"))
    factor = number(run.settings.get("autoencoder.downsampling_factor"))
    if codes is None or codes < 1 or factor is None or factor < 1:
        return None
    return math.log2(codes) / factor / factor


def _points(
    runs: Sequence[Run], xs: Mapping[int, float | None], metric: str
) -> list[tuple[Run, Point]]:
    """Points of the runs that have both numbers; ``xs`` by the number of the run."""
    return [
        (run, Point(run.number, x, y))
        for run in runs
        if (x := xs[run.number]) is not None and (y := run.metrics[metric]) is not None
    ]


def _family(run: Run) -> str:
    """The kind of bottleneck."""
    target = str(run.settings.get("bottleneck._target_") or "unknown bottleneck")
    return target.rpartition(".")[2]


def _families(runs: Sequence[Run]) -> list[str]:
    return sorted({_family(run) for run in runs})


def _by_family(points: Sequence[tuple[Run, Point]], families: Sequence[str]) -> tuple[Series, ...]:
    """One series a family, in the same style in every figure."""
    return tuple(
        Series(family, group, style=style)
        for style, family in enumerate(families)
        if (group := tuple(point for run, point in points if _family(run) == family))
    )


def _front(
    points: Sequence[tuple[Run, Point]],
    protocols: Sequence[Protocol],
    *,
    x_higher: bool,
    y_higher: bool,
) -> tuple[Point, ...]:
    """The Pareto front; none where the sample is too small to rank by."""
    if any(protocol.is_small_sample for protocol in protocols):
        return ()
    x_sign, y_sign = (-1 if x_higher else 1), (-1 if y_higher else 1)  # the less, the better
    best, front = math.inf, []
    for _, y, i in sorted((x_sign * p.x, y_sign * p.y, i) for i, (_, p) in enumerate(points)):
        if y < best:
            best = y
            front.append(points[i][1])
    return tuple(sorted(front, key=lambda point: point.x))
