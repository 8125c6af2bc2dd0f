import pytest

from ldm_lightning.reporting.page.curves import MAX_POINTS, MAX_RUNS, curve_charts, read_curves
from ldm_lightning.reporting.page.protocols import NOT_RECORDED, Protocols
from tests.figures import figures_of
from tests.reporting.page.runs_on_disk import example_run, write_curves


def charts_of(runs):
    return {chart.metrics[0]: chart for chart in curve_charts(runs, Protocols(runs))}


def points_of(curve):
    return [(knot.x, knot.y) for knot in curve]


def test_curves_hold_every_logged_value(tmp_path):
    write_curves(tmp_path)
    chart = charts_of([example_run(1, folder=tmp_path)])["val/psnr"]
    wanted = [(step, 20 + step / 10) for step in range(10, 51, 10)]
    assert points_of(chart.series[0].line) == wanted
    assert NOT_RECORDED in chart.note
    assert figures_of(chart.finding) == [21, 10, 25, 50]  # from 21 at update 10 to 25 dB at 50


def test_a_long_curve_becomes_means_of_neighbors(tmp_path):
    write_curves(tmp_path, num_rows=4 * MAX_POINTS)
    curve = read_curves(example_run(1, folder=tmp_path))["train/loss_total"]
    assert len(curve) == MAX_POINTS
    assert points_of(curve)[0] == (2.5, pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4))


def test_a_file_that_is_being_written_is_read_as_far_as_it_goes(tmp_path):
    write_curves(tmp_path)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("60,val/ps")
    assert len(read_curves(example_run(1, folder=tmp_path))["val/psnr"]) == 5


@pytest.mark.parametrize("content", ["", "\0\0", "step,metric,value\na,b,c\n", "a\n1,2\n"])
def test_a_file_that_is_no_log_draws_nothing(tmp_path, content):
    (tmp_path / "metrics.csv").write_text(content)
    assert read_curves(example_run(1, folder=tmp_path)) == {}


def test_what_is_not_finite_is_left_out(tmp_path):
    rows = "step,metric,value\n1,val/psnr,nan\n2,val/psnr,inf\n3,val/psnr,5.0\n"
    (tmp_path / "metrics.csv").write_text(rows)
    (curve,) = read_curves(example_run(1, folder=tmp_path)).values()
    assert points_of(curve) == [(3, 5.0)]
    assert charts_of([example_run(1, folder=tmp_path)]) == {}  # one point is no curve


def test_of_many_runs_the_newest_are_drawn_and_the_rest_is_counted(tmp_path):
    runs = []
    for number in range(1, MAX_RUNS + 4):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_curves(folder, num_rows=10)
        runs.append(example_run(number, folder=folder))
    chart = charts_of(runs)["train/loss_total"]
    assert [series.label for series in chart.series][0] == "4 kl_f8"
    assert len(chart.series) == MAX_RUNS
    assert 3 in figures_of(chart.note)  # runs left out


def test_validations_of_two_protocols_are_two_charts(tmp_path):
    write_curves(tmp_path)
    runs = [
        example_run(
            n,
            folder=tmp_path,
            metrics={"val/psnr": 25.0},
            protocols={"val/psnr": {"num_images": n}},
        )
        for n in (1, 2)
    ]
    charts = [one for one in curve_charts(runs, Protocols(runs)) if one.metrics == ("val/psnr",)]
    assert [len(chart.series) for chart in charts] == [1, 1]
    assert len({chart.name for chart in charts}) == 2


def test_first_and_second_stages_share_no_loss(tmp_path):
    write_curves(tmp_path)
    runs = [
        example_run(n, folder=tmp_path, kind=kind)
        for n, kind in ((1, "first stage"), (2, "second stage"), (3, "second stage"))
    ]
    charts = [one for one in curve_charts(runs, Protocols(runs)) if "train/" in one.metrics[0]]
    assert [len(chart.series) for chart in charts] == [2, 1]
    assert charts[1].finding.startswith("Run 1. From ")


def test_the_end_of_several_curves_is_ranked_by_the_metrics_direction(tmp_path):
    runs = []
    for number, best in ((1, 20.0), (2, 30.0)):
        folder = tmp_path / str(number)
        folder.mkdir()
        rows = f"step,metric,value\n1,val/psnr,1.0\n2,val/psnr,{best}\n"
        (folder / "metrics.csv").write_text(rows)
        runs.append(example_run(number, folder=folder))
    finding = charts_of(runs)["val/psnr"].finding
    assert figures_of(finding) == [2, 30, 1, 20]  # the best run and its value, then the worst


def test_lines_are_called_by_what_tells_their_runs_apart(tmp_path):
    write_curves(tmp_path)
    runs = [
        example_run(n, folder=tmp_path, settings=settings)
        for n, settings in (
            (1, {"loss.kl_weight": 1e-6, "seed": 0, "loss._target_": "a.Hinge"}),
            (2, {"loss.kl_weight": 1.0, "seed": 0}),
        )
    ]
    chart = charts_of(runs)["val/psnr"]
    assert chart.legend == "run (kl_weight, loss)"
    assert [one.label for one in chart.series] == ["1 (1e-06, Hinge)", "2 (1.0, -)"]
    alone = charts_of(runs[:1])["val/psnr"]
    assert (alone.legend, alone.series[0].label) == ("", "1 kl_f8")
