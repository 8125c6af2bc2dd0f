import re
import xml.etree.ElementTree as ElementTree

from ldm_lightning.reporting.page.charts import Chart, Point, Series
from ldm_lightning.reporting.page.drawing import GROUND, INK, MAX_LABELS, draw_chart

EVIL = "_--></svg><script>alert(1)</script> $\\frac{1}{2 & \"'\0\x1b\u4e2d"


def chart(name="one", label="kl", count=3):
    points = tuple(Point(n, float(n), float(n * n)) for n in range(1, count + 1))
    series = (Series(label, points), Series("joined", (), ((1.0, 2.0), (2.0, 3.0))))
    return Chart(name, "Training curves", "x", "y", series, front=points[:1])


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


def test_many_points_go_without_numbers():
    few = draw_chart(chart(count=MAX_LABELS)).inline.count("<text")
    many = draw_chart(chart(count=MAX_LABELS + 1)).inline.count("<text")
    assert many < few
