import re
import xml.etree.ElementTree as ElementTree

import pytest

from ldm_lightning.reporting.page.charts import Chart, Knot, Point, Series
from ldm_lightning.reporting.page.drawing import (
    COLORS,
    DARK_COLORS,
    GROUND,
    INK,
    draw_chart,
)

EVIL = "_--></svg><script>alert(1)</script> $\\frac{1}{2 & \"'\0\x1b\u4e2d"


def chart(name="one", label="kl", count=3):
    points = tuple(Point(n, float(n), float(n * n)) for n in range(1, count + 1))
    series = (
        Series(label, points),
        Series("joined", (), (Knot(1.0, 2.0, 1.0, 3.0), Knot(2.0, 3.0, 3.0, 3.0)), 1),
    )
    return Chart(name, "Training curves", "x", "y", series, ("val/psnr",), front=points[:1])


def test_a_drawing_is_an_image_in_three_forms():
    drawing = draw_chart(chart())
    assert drawing.png.startswith(b"\x89PNG")
    assert ElementTree.fromstring(drawing.svg).tag.endswith("svg")
    assert drawing.inline.startswith("<svg")


def test_ink_and_ground_are_the_pages_own_and_those_of_paper_in_a_file():
    drawing = draw_chart(chart())
    for text in (drawing.inline, drawing.svg):
        assert INK not in text
        assert GROUND not in text
    assert "currentColor" in drawing.inline
    assert "#ffffff" in drawing.svg


def test_every_point_leads_to_its_run():
    assert set(re.findall(r'href="#run-(\d)"', draw_chart(chart()).inline)) == {"1", "2", "3"}


def test_drawings_on_one_page_share_no_identifier_and_find_their_own():
    seen = set()
    for name in ("one", "two"):
        inline = draw_chart(chart(name)).inline
        own = set(re.findall(r' id="([^"]+)"', inline))
        used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', inline))
        used = {one or other for one, other in used}
        assert {ref for ref in used if not ref.startswith("run-")} <= own
        assert not own & seen
        seen |= own


def test_text_from_files_stays_text():
    inline = draw_chart(chart(label=EVIL)).inline
    root = ElementTree.fromstring(inline)
    assert not [node for node in root.iter() if "script" in str(node.tag).lower()]
    assert "<script" not in inline
    assert inline.count("</svg>") == 1
    assert re.search(r"\$\\frac", inline)


def numbers_drawn(points):
    one = Chart("one", "Training curves", "x", "y", (Series("", points),), (), front=points[-1:])
    return re.findall(r">(\d+)</text>", draw_chart(one).inline)


def test_numbers_of_runs_do_not_cover_each_other_and_those_of_the_front_come_first():
    apart = tuple(Point(100 + n, float(n), float(n)) for n in range(4))
    assert {"100", "101", "102", "103"} <= set(numbers_drawn(apart))
    together = tuple(Point(100 + n, 1.0 + n / 1e6, 1.0) for n in range(4)) + (Point(7, 9.0, 9.0),)
    crowded = tuple(Point(100 + n, 1.0, 1.0 + n / 1e6) for n in range(4))
    far = (Point(90, 9.0, 9.0),)
    drawn = numbers_drawn(far + crowded)
    assert "103" in drawn  # of the front
    assert not {"100", "101", "102"} & set(drawn)
    assert len(set(numbers_drawn(together)) & {"100", "101", "102", "103"}) == 1


@pytest.mark.parametrize("scale", ["log", "symlog"])
def test_a_logarithmic_axis_names_the_values_that_were_swept(scale):
    xs = (1e-6, 1e-4, 1e-2) if scale == "log" else (0.0, 1e-4, 1e-2)
    points = tuple(Point(n, x, 1.0 + n) for n, x in enumerate(xs))
    one = Chart("a", "b", "x", "y", (Series("", points),), (), x_scale=scale, ticks=xs)
    inline = draw_chart(one).inline
    for text in ("1e-4", "0.01", "1e-6" if scale == "log" else "0"):
        assert f">{text}</text>" in inline
    assert "mathdefault" not in inline


def test_a_logarithmic_height_is_written_in_plain_digits():
    line = (Knot(1, 1.0, 1.0, 1.0), Knot(2, 1000.0, 1000.0, 1000.0))
    one = Chart("a", "b", "x", "y", (Series("", (), line),), (), y_scale="log")
    assert "mathdefault" not in draw_chart(one).inline


def luminance(color):
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("colors", "ground"), [(COLORS, "#ffffff"), (DARK_COLORS, "#14171a")])
def test_series_stand_out_from_the_ground(colors, ground):
    """Ratio of luminances, W3C WCAG 2.2, 1.4.11: at least 3 for figures."""
    for color in colors:
        lights = sorted((luminance(color), luminance(ground)))
        assert (lights[1] + 0.05) / (lights[0] + 0.05) >= 3
    assert len(colors) == len(COLORS)


def test_the_page_gives_series_their_color():
    inline = draw_chart(chart()).inline
    assert "var(--series-0)" in inline
    assert not any(color in inline for color in COLORS)


def test_no_two_curves_look_alike():
    lines = [
        Series(str(n), (), (Knot(0, n, n, n), Knot(1, n, n, n), Knot(2, n, n, n)), n)
        for n in range(18)
    ]
    inline = draw_chart(Chart("a", "b", "x", "y", tuple(lines), ())).inline
    drawn = re.findall(r'style="(fill: none[^"]*--series-[^"]*)"', inline)
    assert len(set(drawn)) == len(lines)
