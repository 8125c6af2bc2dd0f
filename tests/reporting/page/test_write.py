import csv
import json
import re
from html.parser import HTMLParser

import pytest

from ldm_lightning.reporting.page import own_files
from ldm_lightning.reporting.page.write import MAX_PICTURED, write_own_page, write_report
from ldm_lightning.runs.run_folder import RunFolder
from tests.hostile_names import HOSTILE_NAMES
from tests.reporting.page.runs_on_disk import (
    EVIL,
    METRICS,
    PROTOCOL,
    random_images,
    write_curves,
    write_reconstructions,
    write_run,
    write_sweep,
)


class Page(HTMLParser):
    """Every element of a page with its attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.text = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    write_sweep(folder / "runs")
    return write_report([str(folder / "runs")], folder / "report.html")


def test_the_page_holds_runs_figures_and_pictures(sweep):
    page = Page(sweep.page.read_text())
    text = " ".join(page.text)
    assert sweep.num_runs == 8
    headings = ("Rate and distortion", "Perception and distortion", "Metrics against settings")
    for heading in (*headings, "Training curves", "Reconstructions", "Protocols"):
        assert heading in text
    drawn = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(drawn) == sweep.num_figures
    strips = [a for tag, a in page.elements if tag == "img" and "reconstruction" in a["class"]]
    assert len(strips) == 6


def test_failed_and_unfinished_runs_are_listed_with_their_reason(sweep):
    text = sweep.page.read_text()
    listed = text[text.index('id="unfinished"') : text.index('id="section-1"')]
    assert listed.count("<li>") == 2
    assert "ValueError: too bad" in listed
    assert "<b>running</b>" in listed


def test_the_page_needs_no_other_file_and_no_network(sweep):
    text = sweep.page.read_text()
    for tag, attributes in Page(text).elements:
        for name in ("src", "href", "xlink:href", "action", "srcset", "data"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), (tag, name, value[:80])
    for address in re.findall(r"url\(([^)]{0,40})", text):
        assert address.strip("\"'").startswith(("#", "data:"))
    assert "@import" not in text


def test_identifiers_are_unique_and_links_lead_somewhere(sweep):
    elements = Page(sweep.page.read_text()).elements
    identifiers = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    for _, attributes in elements:
        for name in ("href", "xlink:href", "aria-labelledby"):
            target = (attributes.get(name) or "data:").removeprefix("#")
            assert target.startswith("data:") or target in identifiers, target


def test_results_csv_holds_values_at_full_precision_with_their_protocol(sweep):
    with sweep.results.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["number"] for row in rows] == [str(n) for n in range(1, 9)]
    assert float(rows[1]["val/rfd_tiny"]) == METRICS["val/rfd_tiny"] * 1.1
    assert rows[1]["val/rfd_tiny protocol"].endswith(PROTOCOL["images"])
    assert [row["loss.kl_weight"] for row in rows[:3]] == ["1e-06", "0.0001", "0.01"]
    assert float(rows[0]["elements_per_pixel"]) == 4 / 16
    assert rows[6]["state"] == "failed"


def test_figures_are_files_too(sweep):
    names = {path.stem for path in sweep.figures.glob("*.svg")}
    assert names == {path.stem for path in sweep.figures.glob("*.png")}
    assert len(names) == sweep.num_figures
    assert any(name.startswith("rate_elements_val-psnr") for name in names)
    assert any(name.startswith("swept_loss-kl-weight_val-rfd-tiny") for name in names)


def test_figures_of_an_earlier_report_go_and_others_stay(tmp_path):
    write_curves(write_run(tmp_path / "runs" / "one"))
    figures = tmp_path / "figures"
    figures.mkdir()
    mine = {"curve_mine.svg", "curve_mine.png", "notes.txt"}
    for name in mine:
        (figures / name).write_text("mine")
    first = write_report([str(tmp_path / "runs")], tmp_path / "report.html")
    written = {path.name for path in figures.iterdir()}
    assert len(written) == len(mine) + 2 * first.num_figures + 1  # the list of what is its own
    (tmp_path / "runs" / "one" / "metrics.csv").unlink()
    second = write_report([str(tmp_path / "runs")], tmp_path / "report.html")
    assert second.num_figures == 0
    assert {path.name for path in figures.iterdir()} == mine | {own_files.LIST}
    assert all((figures / name).read_text() == "mine" for name in mine)


def test_a_report_replaces_nothing_that_no_report_wrote(tmp_path):
    write_curves(write_run(tmp_path / "runs" / "one"))
    runs = [str(tmp_path / "runs")]
    (tmp_path / "a").mkdir()
    report = write_report(runs, tmp_path / "a" / "report.html")
    names = ["report.html", "results.csv", f"figures/{next(report.figures.glob('*.svg')).name}"]
    for number, name in enumerate(names):
        path = tmp_path / str(number) / name
        path.parent.mkdir(parents=True)
        path.write_text("mine")
        with pytest.raises(ValueError, match=path.name):
            write_report(runs, tmp_path / str(number) / "report.html")
        assert path.read_text() == "mine"


def test_numbers_may_stand_alone_or_share_an_axis_with_their_protocol_alone(sweep):
    """Every figure names its protocol, in the page and as a file."""
    for path in sweep.figures.glob("*.svg"):
        is_measured = not path.stem.startswith("curve_train")
        assert ("protocol P" in path.read_text()) == is_measured, path


def test_settings_of_one_file_name_get_figures_of_their_own(tmp_path):
    for index in range(4):
        run = write_run(tmp_path / "runs" / str(index), metrics={"val/psnr": 1.0 + index})
        summary = json.loads((run / "summary.json").read_text())
        summary["config"] |= {"a.b": index // 2, "a_b": index % 2}
        (run / "summary.json").write_text(json.dumps(summary))
    report = write_report([str(tmp_path / "runs")], tmp_path / "report.html")
    assert len(list(report.figures.glob("swept_a-b_val-psnr*.svg"))) == 2
    assert len(list(report.figures.glob("*.png"))) == report.num_figures


STRANGE = (
    {"name": "\ud800", "reason": "\udfff", "state": "failed"},
    {"name": "a\0b" + "n" * 10_000, "device": "\x1b[31m"},
    {"metrics": {"val/psnr": 1e99, "val/rfd_tiny": 1e-320, "": 1, "/": 2, "a" * 300: 3}},
    {"config": {"autoencoder": {"downsampling_factor": 0, "latent_channels": 1e308}}},
    {"config": {"k" * 300: 10**400, "a": [[float("nan")]]}, "step": 10**400},
    {"protocol": {"val/psnr": {"num_images": {"x": [1]}, "images": ["/a"], "data": None}}},
    {"state": "running", "pid": -1, "host": 3, "heartbeat": "now"},
    {"steps": [1], "timing": [2]},
)


def test_strange_runs_do_not_keep_others_from_being_shown(tmp_path):
    for index, changes in enumerate(STRANGE):
        strange = write_run(tmp_path / "runs" / f"strange{index}") / "summary.json"
        strange.write_text(json.dumps({**json.loads(strange.read_text()), **changes}))
    for index in range(2):
        write_run(tmp_path / "runs" / f"whole{index}", factor=4 + index)
    report = write_report([str(tmp_path / "runs")], tmp_path / "report.html")
    text = report.page.read_text()
    assert text.count("<tr data-state=") == len(STRANGE) + 2
    assert report.results.read_text().count("whole") == 2


def test_the_page_of_one_run_shows_it_instead_of_comparing_it(tmp_path):
    run = write_run(tmp_path / "one")
    write_curves(run)
    report = write_report([str(run)], tmp_path / "report.html")
    page = Page(report.page.read_text())
    assert "table" in {tag for tag, _ in page.elements}
    assert not [a for _, a in page.elements if a.get("id") == "runs"]
    text = " ".join(page.text)
    for wanted in ("kl_f8", "25 dB", "peak signal-to-noise ratio", "loss.kl_weight", "finished"):
        assert wanted in text
    assert {path.name.partition("_")[0] for path in report.figures.glob("*.svg")} == {"curve"}


def test_the_page_of_a_chain_is_called_after_it(tmp_path):
    chain = RunFolder.create(tmp_path / "chain")
    chain.update_summary({"state": "finished", "name": "mine", "steps": {}})
    write_run(chain.path / "first_stage")
    page = write_report([str(chain.path)], tmp_path / "report.html").page.read_text()
    assert re.search(r"<h1>mine: .*\b1 run</h1>", page)
    assert "part of" in page


@pytest.mark.parametrize(("error", "is_mistake"), [(KeyError, True), (ValueError, False)])
def test_a_page_that_cannot_be_written_is_told_and_fails_no_run(
    tmp_path, monkeypatch, caplog, error, is_mistake
):
    write_run(tmp_path / "one")

    def broken(*_, **__):
        raise error("bug")

    monkeypatch.setattr("ldm_lightning.reporting.page.write.find_runs", broken)
    write_own_page(tmp_path / "one")
    (record,) = caplog.records
    assert str(tmp_path / "one") in record.getMessage()
    assert "bug" in record.getMessage()
    assert bool(record.exc_info) is is_mistake  # where our own mistake is


def test_names_settings_and_reasons_with_html_stay_text(tmp_path):
    for index in range(2):
        run = write_run(
            tmp_path / "runs" / f"a<b>{index}",
            name=EVIL,
            state="failed" if index else "finished",
            reason=EVIL,
            metrics={f"val/{EVIL}": 1.0, "val/psnr": 1.0 + index},
            protocol={EVIL: f"{EVIL}{index}"},
            device=EVIL,
            kl_weight=f"{EVIL}{index}",
        )
        write_curves(run)
    report = write_report([str(tmp_path / "runs")], tmp_path / "report.html")
    page = Page(report.page.read_text())
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert not [tag for tag, a in page.elements if a.get("src") == "x" or "onerror" in a]
    assert any(EVIL in text for text in page.text)
    assert "49" not in "".join(text for text in page.text if "onerror" in text)


def test_runs_without_anything_to_show_still_make_a_page(tmp_path):
    RunFolder.create(tmp_path / "runs" / "early")
    broken = write_run(tmp_path / "runs" / "broken") / "summary.json"
    broken.write_text(broken.read_text()[:50])
    report = write_report([str(tmp_path / "runs")], tmp_path / "report.html")
    text = report.page.read_text()
    assert (report.num_runs, report.num_figures) == (2, 0)
    assert not report.figures.exists()
    for state in ("no summary", "unreadable"):
        assert f"<b>{state}</b>" in text


def test_pictures_are_of_the_newest_runs_that_were_chosen(tmp_path):
    images = random_images(1, 16)
    for index in range(MAX_PICTURED + 2):
        run = write_run(tmp_path / "runs" / f"{index}", written=1000.0 + index, metrics={})
        write_reconstructions(run, images=images, reconstructions=images)
    output = tmp_path / "report.html"
    page = write_report([str(tmp_path / "runs")], output).page.read_text()
    assert page.count('class="frame"') == MAX_PICTURED
    assert 'of run 2"' not in page
    assert 'of run 3"' in page
    page = write_report([str(tmp_path / "runs")], output, pictured="1").page.read_text()
    assert page.count('class="frame"') == 1
    assert 'of run 2"' in page


def test_a_page_and_its_table_hold_every_name_as_text(tmp_path):
    for number, name in enumerate(HOSTILE_NAMES):
        protocol = {**PROTOCOL, "data": name}
        run = write_run(tmp_path / "runs" / str(number), name=name, reason=name, protocol=protocol)
        if number % 5 == 0:
            write_curves(run)
    report = write_report([str(tmp_path / "runs")], tmp_path / "report.html")
    assert report.num_runs == len(HOSTILE_NAMES)
    page = Page(report.page.read_text(encoding="utf-8"))
    tags = [tag for tag, _ in page.elements]
    assert (tags.count("script"), tags.count("img")) == (1, 0)
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
    text = "".join(page.text)  # in which reading has made a return a new line
    for name in HOSTILE_NAMES:
        assert name.encode("utf-8", "replace").decode().replace("\r", "\n").strip()[:20] in text
    with report.results.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 1 + len(HOSTILE_NAMES)
    assert not [cell for row in rows for cell in row[1:6] if cell.startswith(("=", "+", "@", "\t"))]
