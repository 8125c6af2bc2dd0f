"""The report in headless Chromium: what only a browser can tell."""

import io
import shutil
import time

import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

from ldm_lightning.reporting.page.write import write_report
from tests.reporting.page.runs_on_disk import (
    EVIL,
    random_images,
    write_curves,
    write_reconstructions,
    write_run,
    write_sweep,
)

pytestmark = pytest.mark.browser

NUM_MANY = 500
MAX_BYTES = 30_000_000
MAX_SECONDS = 5.0


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    assert path, "These tests need Chromium: install the package chromium."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    write_sweep(folder / "runs")
    write_run(folder / "runs" / "8_evil", name=EVIL, state="failed", reason=EVIL)
    return write_report([str(folder / "runs")], folder / "report.html").page


@pytest.fixture
def opened(browser, report):
    """The page, what its console said, and what it asked for; both must stay empty."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    yield page
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    context.close()


def column(page, label):
    """Texts of the visible cells of a column, from top to bottom."""
    index = page.locator("#runs thead th").all_inner_texts()
    index = next(i for i, text in enumerate(index) if text.startswith(label))
    rows = page.locator("#runs tbody tr:not([hidden])").all()
    return [row.locator("th, td").nth(index).inner_text() for row in rows]


def test_the_table_sorts_both_ways_by_number_and_empty_cells_stay_last(opened):
    heading = opened.locator("#runs thead th", has_text="loss.kl_weight").get_by_role("button")
    heading.click()
    rising = [float(text) for text in column(opened, "loss.kl_weight")]
    assert rising == sorted(rising)
    assert rising[0] < rising[-1]
    heading.click()
    falling = [float(text) for text in column(opened, "loss.kl_weight")]
    assert falling == rising[::-1]
    metric = opened.locator("#runs thead th", has_text="val/rfd_tiny").get_by_role("button")
    for _ in range(2):
        metric.click()
        texts = column(opened, "val/rfd_tiny")
        assert texts[-1] == "" != texts[0]


def test_the_table_filters_by_words_and_state(opened):
    opened.fill("#filter", "3_abc")
    assert len(column(opened, "run")) == 1
    assert opened.locator("#count").inner_text() == "1 of 9 shown"
    opened.fill("#filter", "")
    opened.select_option("#state", "failed")
    assert set(column(opened, "state")) == {"failed"}


def test_the_table_is_worked_by_keyboard_alone(opened):
    opened.locator("#filter").focus()
    opened.keyboard.type("abc")
    assert len(column(opened, "run")) == 6
    opened.locator("#runs thead button").first.focus()
    opened.keyboard.press("Enter")
    assert opened.locator("#runs thead th").first.get_attribute("aria-sort") == "ascending"


def test_the_slider_moves_the_line_and_the_picture_under_it(opened):
    frame = opened.locator(".frame").first
    frame.scroll_into_view_if_needed()
    line = opened.get_by_label("Line").first
    pictures = []
    for key in ("Home", "End"):  # all reconstruction; all original
        line.focus()
        opened.keyboard.press(key)
        pictures.append(frame.screenshot())
    assert pictures[0] != pictures[1]
    clip = "node => getComputedStyle(node).clipPath"
    cover = opened.locator(".cover").first
    assert cover.evaluate(clip) == "inset(0px 0px 0px 100%)"
    opened.get_by_label("Image").first.focus()
    opened.keyboard.press("ArrowRight")
    assert frame.screenshot() != pictures[1]


def test_the_error_view_shows_four_times_the_difference(opened):
    frame, tile = opened.locator(".frame").first, opened.locator(".tile").first
    shades = {}
    for view in ("original", "reconstruction", "error"):
        opened.get_by_label("View").first.select_option(view)
        opened.get_by_label("Size").first.select_option("8")
        shades[view] = pixel(opened, tile, at=(20, 20))
    assert frame.is_visible()
    wanted = [
        min(255, 4 * abs(one - other))
        for one, other in zip(shades["original"], shades["reconstruction"], strict=True)
    ]
    assert shades["error"] == pytest.approx(wanted, abs=4)


def pixel(page, locator, *, at):
    """Red, green and blue of one pixel of an element."""
    return Image.open(io.BytesIO(locator.screenshot())).convert("RGB").getpixel(at)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_of_a_phone(browser, report, scheme):
    context = browser.new_context(
        viewport={"width": 390, "height": 800}, color_scheme=scheme, device_scale_factor=2
    )
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    ink = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
    assert contrast(ground, ink) > 7
    context.close()


def contrast(one, other):
    """Ratio of luminances, W3C WCAG 2.2."""
    lights = []
    for colour in (one, other):
        digits = [float(part) / 255 for part in colour[4:-1].split(",")]
        linear = [d / 12.92 if d <= 0.04045 else ((d + 0.055) / 1.055) ** 2.4 for d in digits]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_five_hundred_runs_open_within_five_seconds(browser, tmp_path):
    images = random_images(8, 64)
    for index in range(NUM_MANY):
        run = write_run(
            tmp_path / "runs" / f"{index}",
            kl_weight=10.0 ** -(index % 7),
            factor=2 ** (2 + index % 3),
            seed=index,
            written=1000.0 + index,
        )
        if index >= NUM_MANY - 60:
            write_reconstructions(run, images=images, reconstructions=images.flip(0))
            write_curves(run)
    report = write_report([str(tmp_path / "runs")], tmp_path / "report.html")
    assert report.num_runs == NUM_MANY
    assert report.page.stat().st_size < MAX_BYTES
    page = browser.new_page()
    start = time.monotonic()
    page.goto(report.page.as_uri())  # waits for the load event
    assert page.locator("#count").inner_text() == f"{NUM_MANY} of {NUM_MANY} shown"
    assert time.monotonic() - start < MAX_SECONDS
    page.close()
