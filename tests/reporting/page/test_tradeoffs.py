import random
import re

import pytest

from ldm_lightning.reporting.page.protocols import Protocols
from ldm_lightning.reporting.page.tradeoffs import (
    bits_per_pixel,
    elements_per_pixel,
    perception_charts,
    rate_charts,
)
from tests.reporting.page.runs_on_disk import example_run, run_with


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


@pytest.mark.parametrize("factor", [0, 1e-200, 1e200, "8", None])
def test_a_factor_that_is_none_has_no_rate(factor):
    run = run_with(1, factor=factor, **{"bottleneck.num_codes": 512})
    assert elements_per_pixel(run) in (None, 0.0)
    assert bits_per_pixel(run) in (None, 0.0)


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
    for point in chart.front[:8]:
        assert str(point.run) in chart.finding


def test_a_small_sample_ranks_nothing_and_says_so():
    protocol = {"num_images": 8, "small_sample": True}
    runs = [
        run_with(n, channels=n, metrics={"val/rfd_tiny": 1.0 / n}, protocol=protocol)
        for n in (1, 2)
    ]
    (chart,) = charts_of(rate_charts, runs)
    assert chart.front == ()
    assert "small sample" in chart.finding.lower()


def test_figures_of_two_protocols_never_share_a_chart():
    runs = [
        run_with(n, channels=n, protocol={"num_images": images})
        for n, images in ((1, 10), (2, 10), (3, 20), (4, 20), (5, 20))
    ]
    charts = charts_of(rate_charts, runs)
    shown = [{p.run for series in chart.series for p in series.points} for chart in charts]
    assert shown == [{3, 4, 5}, {1, 2}]
    assert [one.label for chart in charts for one in chart.protocols] == ["P1", "P2"]
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
    assert re.match(r"val/psnr in dB, .*more", chart.x_label)
    assert re.match(r"val/perceptual_tiny, .*less", chart.y_label)


def test_a_bottleneck_looks_the_same_in_every_figure():
    runs = [
        run_with(n, channels=n, metrics=metrics, **{"bottleneck._target_": f"a.{kind}"})
        for n, kind, metrics in (
            (1, "Gaussian", {"val/psnr": 20.0}),
            (2, "Quantizer", {"val/psnr": 21.0, "val/rfid": 3.0}),
            (3, "Quantizer", {"val/psnr": 22.0, "val/rfid": 2.0}),
        )
    ]
    psnr, rfid = charts_of(rate_charts, runs)
    styles = {series.label: series.style for series in psnr.series}
    assert styles == {"Gaussian": 0, "Quantizer": 1}
    assert [(one.label, one.style) for one in rfid.series] == [("Quantizer", 1)]
