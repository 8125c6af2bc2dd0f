"""The report in headless Chromium: what only a browser can tell."""

import io
import json
import os
import shutil
import time

import pytest
from PIL import Image

from experiments.screenshots import SCHEMES, WIDTHS, headless_chromium, photograph
from ldm_lightning.reporting.page.write import write_report
from ldm_lightning.utils.image import save_grid
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

pytestmark = pytest.mark.browser

NUM_MANY = 500
MAX_BYTES = 30_000_000
MAX_SECONDS = 5.0


@pytest.fixture(scope="module")
def browser():
    with headless_chromium() as browser:
        yield browser


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


def column(page, key):
    """Texts of the visible cells of a column, from top to bottom."""
    keys = page.locator("#runs thead th").evaluate_all("all => all.map(one => one.dataset.key)")
    rows = page.locator("#runs tbody tr:not([hidden])").all()
    return [row.locator("th, td").nth(keys.index(key)).inner_text() for row in rows]


def heading(page, key):
    return page.locator(f'#runs thead th[data-key="{key}"]').get_by_role("button")


def test_the_table_sorts_both_ways_by_number_and_empty_cells_stay_last(opened):
    heading(opened, "loss.kl_weight").click()
    rising = [float(text) for text in column(opened, "loss.kl_weight")]
    assert rising == sorted(rising)
    assert rising[0] < rising[-1]
    heading(opened, "loss.kl_weight").click()
    falling = [float(text) for text in column(opened, "loss.kl_weight")]
    assert falling == rising[::-1]
    for _ in range(2):
        heading(opened, "val/rfd_tiny").click()
        texts = column(opened, "val/rfd_tiny")
        assert texts[-1] == "" != texts[0]


def test_every_column_is_shown_when_asked_for(opened):
    kind = heading(opened, "kind")
    assert not kind.is_visible()
    opened.get_by_role("button", name="Show every column").press("Enter")
    assert kind.is_visible()
    assert column(opened, "kind")[0] == "first stage"


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
    line = opened.get_by_label("Line", exact=True).first
    pictures = []
    for key in ("Home", "End"):  # all reconstruction; all original
        line.focus()
        opened.keyboard.press(key)
        pictures.append(frame.screenshot())
    assert pictures[0] != pictures[1]
    clip = "node => getComputedStyle(node).clipPath"
    cover = opened.locator(".cover").first
    assert cover.evaluate(clip) == "inset(0px 0px 0px 100%)"
    opened.get_by_label("Image", exact=True).first.focus()
    opened.keyboard.press("ArrowRight")
    assert frame.screenshot() != pictures[1]


def test_the_line_follows_a_pointer_that_drags_on_a_picture(opened):
    tile = opened.locator(".tile").first
    tile.scroll_into_view_if_needed()
    box = tile.bounding_box()
    middle = box["y"] + box["height"] / 2
    opened.mouse.move(box["x"] + 0.5 * box["width"], middle)
    opened.mouse.down()
    opened.mouse.move(box["x"] + 0.8 * box["width"], middle)
    opened.mouse.up()
    opened.mouse.move(box["x"] + 0.1 * box["width"], middle)  # no longer drags
    assert opened.get_by_label("Line", exact=True).first.input_value() == "80"


def test_the_error_view_shows_four_times_the_difference(opened):
    frame, tile = opened.locator(".frame").first, opened.locator(".tile").first
    shades = {}
    for view in ("original", "reconstruction", "error"):
        opened.locator("[data-property=view]").first.select_option(view)
        opened.locator("[data-property='--zoom']").first.select_option("8")
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


TEXTS = ("body", ".hint", "a", "small", "figcaption p", "svg text", "thead th button", "input")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_nothing_sticks_out_of_a_phone_and_all_text_can_be_read(browser, report, scheme):
    context = browser.new_context(
        viewport={"width": 390, "height": 800}, color_scheme=scheme, device_scale_factor=2
    )
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    grounds = [color(page, where, "backgroundColor") for where in ("body", "thead th")]
    assert (sum(grounds[0]) < 3 * 128) == (scheme == "dark")
    for where in TEXTS:
        ink = color(page, where, "fill" if "svg" in where else "color")
        assert all(contrast(ground, ink) >= 4.5 for ground in grounds), where
    context.close()


def test_focus_can_be_seen(opened):
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.className") == "skip"
    seen = set()
    for _ in range(12):
        opened.keyboard.press("Tab")
        seen.add(opened.evaluate("document.activeElement.tagName"))
        outline = opened.evaluate("getComputedStyle(document.activeElement).outlineWidth")
        assert float(outline.removesuffix("px")) >= 3
    assert {"A", "INPUT", "SELECT", "BUTTON"} <= seen


def test_screenshots_show_the_whole_page_in_every_width_and_scheme(browser, report, tmp_path):
    pictures = photograph(browser, report, tmp_path / "screenshots")
    shots = {path.stem: Image.open(io.BytesIO(path.read_bytes())) for path in pictures}
    sizes = {name: image.size for name, image in shots.items()}
    assert sorted(sizes) == sorted(f"{w}_{scheme}" for w in WIDTHS for scheme in SCHEMES)
    assert all(int(name.partition("_")[0]) == width for name, (width, _) in sizes.items())
    assert all(height > 2000 for _, height in sizes.values())
    assert shots["1400_light"].getpixel((2, 2)) != shots["1400_dark"].getpixel((2, 2))


def color(page, where, name):
    """Red, green and blue, 0 to 255, of the first element that fits."""
    text = page.locator(where).first.evaluate(f"node => getComputedStyle(node).{name}")
    return [float(part) for part in text[4:-1].split(",")]


def contrast(one, other):
    """Ratio of luminances, W3C WCAG 2.2."""
    lights = []
    for color in (one, other):
        parts = [part / 255 for part in color]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_the_page_of_one_run_has_no_table_to_sort(browser, tmp_path):
    run = write_run(tmp_path / "one")
    images = random_images(2, 32)
    write_reconstructions(run, images=images, reconstructions=images.flip(0))
    write_curves(run)
    path = write_report([str(run)], tmp_path / "report.html").page
    page = browser.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    page.get_by_label("Line", exact=True).press("Home")
    assert page.locator(".comparison").evaluate("n => n.style.getPropertyValue('--split')") == "0%"
    assert errors == []
    assert page.locator("#runs").count() == 0
    page.close()


def write_many(folder):
    """Runs of every kind of difference: shapes, seeds, protocols, states; 52 with pictures."""
    example = json.loads((write_run(folder / "example") / "summary.json").read_text())
    shutil.rmtree(folder / "example")
    images = random_images(4, 64)
    for index in range(NUM_MANY):
        run = folder / f"{index:03d}_{'ab' * 12}"
        run.mkdir()
        metrics = {name: value * (1 + index % 50 / 100) for name, value in METRICS.items()}
        metrics |= {f"val/loss_level_{level}": level + index / 1000 for level in range(10)}
        protocol = {**PROTOCOL, "num_images": 512 if index % 4 else 64 + index % 3}
        config = {
            **example["config"],
            "seed": index % 5,
            "loss": {"kl_weight": 10.0 ** -(index % 7)},
            "autoencoder": {"downsampling_factor": 2 ** (2 + index % 3), "latent_channels": 4},
        }
        changes = {"name": f"kl_f8_{index}", "config": config, "metrics": metrics}
        changes["protocol"] = dict.fromkeys(metrics, protocol)
        if index % 10 == 9:
            changes |= {"state": "failed", "reason": "RuntimeError: " + "why " * 100}
        (run / "summary.json").write_text(json.dumps({**example, **changes}))
        os.utime(run / "summary.json", (1000.0 + index, 1000.0 + index))
        if index >= NUM_MANY - 52:
            other = images.roll(index, dims=3)
            write_reconstructions(run, images=images, reconstructions=other)
            save_grid(images, run / "images" / "samples_latest.png", num_columns=4)
            save_grid(other, run / "images" / "ceiling.png", num_columns=4)
            write_curves(run, num_rows=500)


def test_five_hundred_runs_open_within_five_seconds(browser, tmp_path):
    write_many(tmp_path / "runs")
    report = write_report([str(tmp_path / "runs")], tmp_path / "report.html")
    assert report.num_runs == NUM_MANY
    assert report.page.stat().st_size < MAX_BYTES
    page = browser.new_page()
    start = time.monotonic()
    page.goto(report.page.as_uri())  # waits for the load event
    assert page.locator("#count").inner_text() == f"{NUM_MANY} of {NUM_MANY} shown"
    assert time.monotonic() - start < MAX_SECONDS
    start = time.monotonic()
    heading(page, "val/psnr").click()
    page.fill("#filter", "kl_f8_49")
    assert page.locator("#count").inner_text() == f"11 of {NUM_MANY} shown"
    assert time.monotonic() - start < MAX_SECONDS
    page.close()
