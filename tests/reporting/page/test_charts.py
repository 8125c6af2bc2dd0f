import random

import pytest

from ldm_lightning.reporting.page.charts import (
    bits_per_pixel,
    elements_per_pixel,
    perception_charts,
    rate_charts,
    swept_charts,
)
from ldm_lightning.reporting.page.protocols import Protocols
from ldm_lightning.reporting.page.settings import find_differences
from tests.reporting.page.runs_on_disk import example_run

FACTOR, CHANNELS = "autoencoder.downsampling_factor", "autoencoder.latent_channels"


def run_with(
    number, *, factor=8, channels=4, metrics=None, protocol=None, state="finished", **more
):
    metrics = {"val/psnr": 25.0} if metrics is None else metrics
    return example_run(
        number,
        state=state,
        metrics=metrics,
        protocols={name: protocol or {"num_images": 512} for name in metrics},
        settings={FACTOR: factor, CHANNELS: channels, **more},
    )


def charts_of(kind, runs):
    return list(kind(runs, Protocols(runs)))


def test_the_rate_is_that_of_the_published_shapes():
    assert elements_per_pixel(run_with(1, factor=8, channels=4)) == 4 / 64
    evaluated = example_run(
        1, metrics={"test/compression_ratio": 12.0}, settings={"image_channels": 3}
    )
    assert elements_per_pixel(evaluated) == 0.25
    assert elements_per_pixel(example_run(1)) is None


def test_only_codes_have_bits():
    codes = run_with(1, factor=8, **{"bottleneck.num_codes": 16384})
    assert bits_per_pixel(codes) == 14 / 64
    assert bits_per_pixel(run_with(2)) is None


def test_the_front_holds_exactly_the_runs_that_none_dominates():
    draw = random.Random(0)
    runs = [
        run_with(n, channels=draw.randint(1, 9), metrics={"val/psnr": draw.randint(10, 30)})
        for n in range(60)
    ]
    (chart,) = charts_of(rate_charts, runs)
    points = {(point.x, point.y) for series in chart.series for point in series.points}
    undominated = {
        (x, y)
        for x, y in points
        if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in points)
    }
    assert {(point.x, point.y) for point in chart.front} == undominated


def test_a_small_sample_ranks_nothing_and_says_so():
    protocol = {"num_images": 8, "small_sample": True}
    runs = [
        run_with(n, channels=n, metrics={"val/rfd_tiny": 1.0 / n}, protocol=protocol)
        for n in (1, 2)
    ]
    (chart,) = charts_of(rate_charts, runs)
    assert chart.front == ()
    assert "Small sample" in chart.note


def test_figures_of_two_protocols_never_share_a_chart():
    runs = [
        run_with(n, channels=n, protocol={"num_images": images})
        for n, images in ((1, 10), (2, 10), (3, 20), (4, 20), (5, 20))
    ]
    charts = charts_of(rate_charts, runs)
    shown = [{p.run for series in chart.series for p in series.points} for chart in charts]
    assert shown == [{3, 4, 5}, {1, 2}]
    assert [chart.note for chart in charts] == ["Protocol P1.", "Protocol P2."]
    assert len({chart.name for chart in charts}) == 2


@pytest.mark.parametrize("state", ["failed", "running", "interrupted", "killed"])
def test_runs_that_are_not_done_are_not_compared(state):
    runs = [run_with(1, channels=1), run_with(2, channels=2, state=state)]
    assert charts_of(rate_charts, runs) == []


def test_perception_is_set_against_distortion():
    runs = [
        run_with(n, metrics={"val/psnr": 20.0 + n, "val/perceptual_tiny": 0.1 * n})
        for n in (1, 2, 3)
    ]
    (chart,) = charts_of(perception_charts, runs)
    assert [point.run for point in chart.front] == [1, 2, 3]  # each buys PSNR with perception


def swept(runs):
    return list(swept_charts(runs, Protocols(runs), find_differences(runs)))


def test_a_line_joins_runs_that_differ_in_the_setting_and_the_seed_alone():
    runs = [
        run_with(
            10 * seed + index + 5 * factor,
            factor=factor,
            metrics={"val/psnr": float(index + seed)},
            **{"loss.kl_weight": weight, "seed": seed},
        )
        for factor in (4, 8)
        for index, weight in enumerate((1e-6, 1e-4, 1e-2))
        for seed in (0, 1)
    ]
    (chart,) = [one for one in swept(runs) if one.x_label == "loss.kl_weight"]
    assert chart.is_log_x
    assert [series.label for series in chart.series] == [
        "downsampling_factor=4",
        "downsampling_factor=8",
    ]
    assert all(series.line == ((1e-6, 0.5), (1e-4, 1.5), (1e-2, 2.5)) for series in chart.series)
    assert all(len(series.points) == 6 for series in chart.series)


def test_what_follows_from_a_setting_breaks_no_line_and_is_named():
    runs = [
        run_with(n, factor=factor, **{"autoencoder.width_multipliers": widths})
        for n, (factor, widths) in enumerate([(4, "[1, 2]"), (8, "[1, 2, 4]")], start=1)
    ]
    (chart,) = swept(runs)
    assert chart.series[0].line == ((4.0, 25.0), (8.0, 25.0))
    assert chart.note == "Protocol P1. With it change: autoencoder.width_multipliers."


def test_settings_that_change_together_are_drawn_once():
    runs = [run_with(n, factor=2**n, **{"loss.kl_weight": 0.1**n}) for n in (1, 2, 3)]
    (chart,) = swept(runs)
    assert "loss.kl_weight" in chart.note


def test_a_setting_of_words_or_of_one_number_is_not_swept():
    runs = [run_with(n, **{"loss.pixel": word}) for n, word in ((1, "l1"), (2, "l2"))]
    assert swept(runs) == []
