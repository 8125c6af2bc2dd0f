import csv
import io

import pytest

from ldm_lightning.reporting.page.protocols import Protocols
from ldm_lightning.reporting.page.results_file import results_csv
from ldm_lightning.reporting.page.settings import find_differences
from ldm_lightning.reporting.page.table import build_table
from tests.reporting.page.runs_on_disk import run_with


def column_of(runs, key):
    """The heading and the cells of one column."""
    table = build_table(runs, Protocols(runs), find_differences(runs))
    index = [column.key for column in table.columns].index(key)
    return table.columns[index], [cells[index] for _, cells in table.rows]


def test_a_heading_says_stage_unit_and_protocols():
    runs = [run_with(n, protocol={"num_images": n}) for n in (1, 2)]
    column, cells = column_of(runs, "val/psnr")
    assert (column.group, column.label, column.unit) == ("val", "psnr", "dB")
    assert column.protocols == "P1 P2"
    assert [cell.text for cell in cells] == ["25 P1", "25 P2"]


def test_the_best_of_each_protocol_is_marked_in_the_metrics_direction():
    runs = [
        run_with(n, metrics={"val/psnr": 20.0 + n, "val/rfid": 20.0 + n, "val/kl": 1.0 * n})
        for n in (1, 2, 3)
    ]
    for metric, best in (("val/psnr", [3]), ("val/rfid", [1]), ("val/kl", [])):
        _, cells = column_of(runs, metric)
        assert [n for n, cell in enumerate(cells, start=1) if cell.is_best] == best


@pytest.mark.parametrize("change", [{"state": "failed"}, {"protocol": {"small_sample": True}}])
def test_nothing_is_best_among_small_samples_or_runs_that_are_not_done(change):
    runs = [run_with(n, metrics={"val/psnr": 20.0 + n}, **change) for n in (1, 2)]
    _, cells = column_of(runs, "val/psnr")
    assert not any(cell.is_best for cell in cells)


def test_a_small_sample_and_a_number_that_is_not_finite_are_marked():
    run = run_with(1, metrics={"val/psnr": None, "val/rfid": 3.0}, protocol={"small_sample": True})
    assert column_of([run], "val/rfid")[1][0].text == "3†"
    (cell,) = column_of([run], "val/psnr")[1]
    assert (cell.text, cell.order) == ("not finite", "")


def test_long_settings_are_cut_and_classes_lose_their_module():
    runs = [
        run_with(n, **{"a._target_": f"some.module.K{n}", "b": "x" * 900 + str(n)}) for n in (1, 2)
    ]
    assert [cell.text for cell in column_of(runs, "a._target_")[1]] == ["K1", "K2"]
    assert all(len(cell.text) == 40 for cell in column_of(runs, "b")[1])


def test_the_kind_is_shown_where_there_are_several():
    assert column_of([run_with(1), run_with(2)], "kind")[0].is_extra


def test_what_a_spreadsheet_would_run_stays_text():
    runs = [run_with(n, **{"note": f"=cmd|'/C calc'!A{n}", "loss.offset": -n}) for n in (1, 2)]
    text = results_csv(runs, Protocols(runs), find_differences(runs))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["note"] for row in rows] == ["'=cmd|'/C calc'!A1", "'=cmd|'/C calc'!A2"]
    assert [row["loss.offset"] for row in rows] == ["-1", "-2"]
