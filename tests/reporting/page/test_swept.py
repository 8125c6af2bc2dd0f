from ldm_lightning.reporting.page.charts import Knot
from ldm_lightning.reporting.page.findings import NO_LINE, ONE_SEED
from ldm_lightning.reporting.page.protocols import Protocols
from ldm_lightning.reporting.page.settings import find_differences
from ldm_lightning.reporting.page.swept import ALONE, MORE, swept_charts
from tests.figures import figures_of
from tests.reporting.page.runs_on_disk import run_with


def swept(runs):
    return swept_charts(runs, Protocols(runs), find_differences(runs))


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
    assert chart.x_scale == "log"
    assert chart.ticks == (1e-6, 1e-4, 1e-2)
    assert [series.label for series in chart.series] == [
        "downsampling_factor=4",
        "downsampling_factor=8",
    ]
    line = tuple(Knot(x, y + 0.5, y, y + 1) for x, y in ((1e-6, 0), (1e-4, 1), (1e-2, 2)))
    assert all(series.line == line for series in chart.series)
    assert all(len(series.points) == 6 for series in chart.series)
    assert "rises" in chart.finding
    assert figures_of(chart.finding) == [2, 0.01, 1]  # lines, the best weight, apart by the seed


def test_what_follows_from_a_setting_breaks_no_line_and_is_named():
    runs = [
        run_with(n, factor=factor, **{"autoencoder.width_multipliers": widths})
        for n, (factor, widths) in enumerate([(4, "a"), (8, "b"), (16, "c")], start=1)
    ]
    (chart,) = swept(runs)
    assert [(knot.x, knot.y) for knot in chart.series[0].line] == [(4, 25), (8, 25), (16, 25)]
    assert "autoencoder.width_multipliers" in chart.note
    assert chart.finding.endswith(ONE_SEED)
    assert figures_of(chart.finding.removesuffix(ONE_SEED)) == [25]


def test_runs_of_another_protocol_or_kind_break_no_line():
    runs = [run_with(n, factor=2**n, **{"max_steps": 10}) for n in (1, 2, 3)]
    runs.append(run_with(4, factor=2, protocol={"num_images": 7}, **{"max_steps": 99}))
    (chart,) = swept(runs)
    assert len(chart.series[0].line) == 3
    assert chart.note == ""


def test_settings_that_change_together_are_drawn_once():
    runs = [run_with(n, factor=2**n, **{"loss.kl_weight": 0.1**n}) for n in (1, 2, 3)]
    (chart,) = swept(runs)
    assert "loss.kl_weight" in chart.note


def test_a_setting_of_words_or_of_one_number_is_not_swept():
    runs = [run_with(n, **{"loss.pixel": word}) for n, word in enumerate(("l1", "l2", "l1"))]
    assert swept(runs) == []


def test_two_runs_are_read_off_the_table():
    assert swept([run_with(n, factor=2**n) for n in (1, 2)]) == []


def random_search(count):
    return [run_with(n, **{"loss.a": n * 0.37 % 1, "loss.b": n * 0.61 % 1}) for n in range(count)]


def test_a_random_search_is_drawn_without_lines_and_says_so():
    charts = swept(random_search(8))
    assert [chart.x_label for chart in charts] == ["loss.a", "loss.b"]
    for chart in charts:
        assert not any(series.line for series in chart.series)
        assert chart.finding == NO_LINE
    assert swept(random_search(5)) == []


def test_runs_that_differ_in_more_are_points_beside_the_lines():
    runs = [run_with(n, **{"loss.a": n, "loss.pixel": "l1"}) for n in (1, 2, 3)]
    runs.append(run_with(4, **{"loss.a": 2, "loss.pixel": "l2"}))
    (chart,) = swept(runs)
    assert [series.label for series in chart.series] == [ALONE, MORE]
    assert [point.run for point in chart.series[1].points] == [4]


def test_the_best_place_of_a_line_may_lie_in_its_middle():
    runs = [
        run_with(10 * b + a, metrics={"val/rfid": abs(a - 2 - b) + a / 10}, **{"loss.a": a, "b": b})
        for a in (1, 2, 3)
        for b in (0, 1)
    ]
    (chart,) = [one for one in swept(runs) if one.x_label == "loss.a"]
    assert chart.finding.endswith(ONE_SEED)
    assert "higher along 1" in chart.finding
    assert "falls along 1" in chart.finding
    best = chart.finding.removesuffix(ONE_SEED).rpartition("Best")[2]
    assert figures_of(best) == [2, 1, 3, 1]  # at 2 on one line, at 3 on one


def test_a_change_no_larger_than_that_of_seeds_says_so():
    runs = [
        run_with(10 * a + seed, metrics={"val/psnr": a + 5.0 * seed}, **{"loss.a": a, "seed": seed})
        for a in (1, 2)
        for seed in (0, 1)
    ]
    (chart,) = swept(runs)
    assert "rises" in chart.finding
    assert "no less" in chart.finding
    assert figures_of(chart.finding) == [1, 2, 3.5, 4.5, 2, 5]  # from, to, values, best, apart


def test_the_change_of_a_line_that_comes_back_is_that_to_its_middle():
    runs = [
        run_with(10 * a + seed, metrics={"val/psnr": psnr + seed}, **{"loss.a": a, "seed": seed})
        for a, psnr in ((1, 20.0), (2, 25.0), (3, 20.0))
        for seed in (0, 1)
    ]
    (chart,) = swept(runs)
    assert "no less" not in chart.finding
    assert figures_of(chart.finding) == [1, 3, 20.5, 20.5, 2, 1]
