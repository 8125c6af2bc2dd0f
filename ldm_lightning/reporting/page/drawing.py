"""Charts as SVG and PNG, drawn with matplotlib.

Within the page, ink is ``currentColor``, the ground is clear and each series has the page's color
of its place (``--series-0`` and on), so that one drawing serves light and dark. As a file the
drawing has a white ground.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from ldm_lightning.reporting.page.charts import Chart, Series
from ldm_lightning.reporting.page.labels import axis_number, clipped
from ldm_lightning.reporting.page.protocols import Protocol

COLORS = ("#0072b2", "#d55e00", "#00865f", "#b8568f", "#a87400", "#2f8fca")
"""After Okabe & Ito 2008, "Color Universal Design", told apart with any kind of color vision;
the light ones are darkened to a contrast of 3 to 1 on white. Black and yellow are left out."""

DARK_COLORS = ("#4da3df", "#ee7733", "#1fb88a", "#dd8fba", "#e69f00", "#8fd0f5")
"""The same hues on a dark ground."""

MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", ":")

INK, GROUND = "#010203", "#fefdfc"
"""Stand for the colors of the page; no series has either."""

FONT = "DejaVu Sans"
SMALL = 8.5
"""Points; on a phone a figure is a little larger than in print."""

WIDTH, HEIGHT, DPI = 4.6, 3.3, 150
LEGEND_ROW = 0.16
"""Inches; the figure grows by its legend, so that axes keep their size."""

LETTERS_A_COLUMN = 26
"""Longer labels get a row of the legend of their own."""

DIGIT_WIDTH = 5.5
"""Points, of a digit of the size ``SMALL``."""

MAX_LABEL_LETTERS = 64

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "font.size": 9.5,
    "font.family": FONT,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.formatter.useoffset": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.6,
    "figure.facecolor": GROUND,
    "savefig.facecolor": GROUND,
    "legend.frameon": False,
    "legend.fontsize": SMALL,
    "legend.title_fontsize": SMALL,
}


@dataclass(frozen=True)
class Drawing:
    """One figure.

    Attributes:
        inline: SVG element for an HTML page; its identifiers begin with the chart's name.
        svg: The same as a file.
        png: The same in pixels.
    """

    inline: str
    svg: str
    png: bytes


def draw_chart(chart: Chart) -> Drawing:
    """Draw a chart; points are links to ``#run-<number>``."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": chart.name}):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        axes = figure.add_subplot()
        axes.margins(0.08)
        axes.set_xlabel(_plain(chart.x_label))
        axes.set_ylabel(_plain(chart.y_label))
        if chart.protocols:
            axes.set_title(_title(chart.protocols), loc="left", fontsize=SMALL)
        for series in chart.series:
            _add(axes, series)
        _add_front(axes, chart)
        _scale(axes, chart)
        labels = axes.get_legend_handles_labels()[1]
        if len(labels) > 1:
            columns = 2 if max(map(len, labels)) <= LETTERS_A_COLUMN else 1
            rows = -(-len(labels) // columns) + bool(chart.legend)
            figure.set_figheight(HEIGHT + LEGEND_ROW * rows)
            title = _plain(chart.legend) or None
            figure.legend(loc="outside upper left", ncols=columns, title=title, alignment="left")
        _lay_out(figure)
        _number(axes, chart)
        return _saved(figure, chart.name)


def _add(axes: Axes, series: Series) -> None:
    """Draw one series in the color, marker and dash of its style."""
    color = COLORS[series.style % len(COLORS)]
    dash = DASHES[series.style // len(COLORS) % len(DASHES)]
    label = _plain(series.label) or None
    if series.line:
        xs = [knot.x for knot in series.line]
        alone = "." if len(xs) < 3 else ""
        axes.plot(
            xs,
            [knot.y for knot in series.line],
            color=color,
            linestyle=dash,
            linewidth=1.5,
            marker=MARKERS[series.style % len(MARKERS)] if series.points else alone,
            markevery=[] if series.points else None,  # which shows it in the legend alone
            label=label,
        )
        spread = [knot for knot in series.line if knot.high > knot.low]
        axes.vlines(
            [knot.x for knot in spread],
            [knot.low for knot in spread],
            [knot.high for knot in spread],
            color=color,
            linewidth=3,
            alpha=0.35,
        )
    if series.points:
        scatter = axes.scatter(
            [point.x for point in series.points],
            [point.y for point in series.points],
            color=color,
            marker=MARKERS[series.style % len(MARKERS)],
            s=26,
            zorder=3,
            label=None if series.line else label,
        )
        scatter.set_urls([f"#run-{point.run}" for point in series.points])


def _add_front(axes: Axes, chart: Chart) -> None:
    if chart.front:
        axes.plot(
            [point.x for point in chart.front],
            [point.y for point in chart.front],
            color=INK,
            linewidth=1,
            linestyle="--",
            marker="o",
            markersize=10,
            markerfacecolor="none",
            zorder=1,
            label="none is better in both" if len(chart.front) > 1 else "best in both",
        )


def _scale(axes: Axes, chart: Chart) -> None:
    if chart.x_scale == "symlog":  # with a zero, a little to the left of the smallest number
        smallest = min(p.x for one in chart.series for p in one.points if p.x > 0)
        axes.set_xscale("symlog", linthresh=smallest, linscale=0.5)
    else:
        axes.set_xscale(chart.x_scale)
    axes.set_yscale(chart.y_scale)
    if chart.ticks and chart.x_scale != "linear":
        axes.xaxis.set_major_locator(FixedLocator(list(chart.ticks)))
        axes.xaxis.set_minor_locator(NullLocator())
    for scale, axis in ((chart.x_scale, axes.xaxis), (chart.y_scale, axes.yaxis)):
        if scale != "linear":  # else as mathematics, which `STYLE` turns off
            axis.set_major_formatter(FuncFormatter(lambda value, _: axis_number(value)))
            axis.set_minor_formatter(NullFormatter())
    axes.grid(visible=True)


def _title(protocols: Sequence[Protocol]) -> str:
    """A line for each protocol, or one for two that only the features tell apart."""
    labels: dict[str, list[str]] = {}
    for one in dict.fromkeys(protocols):
        labels.setdefault(one.short, []).append(one.label)
    lines = [f"{' and '.join(group)}: {short}" for short, group in labels.items()]
    return "\n".join(_plain(f"protocol {line}") for line in lines)


def _number(axes: Axes, chart: Chart) -> None:
    """Write the number of its run at each point, or at the end of each curve, where there is room.

    Those of the front come first.
    """
    front = set(chart.front)
    points = [point for one in chart.series for point in one.points]
    points.sort(key=lambda point: point not in front)
    marks = [(point.x, point.y, str(point.run)) for point in points]
    if not marks and len(chart.series) > 1:
        marks = [
            (one.line[-1].x, one.line[-1].y, number)
            for one in chart.series
            if (number := one.label.partition(" ")[0]).isdigit()  # a floor is of no run
        ]
    taken: list[tuple[float, float, float]] = []
    scale = axes.figure.dpi / 72
    for x, y, text in marks:
        left, bottom = axes.transData.transform((x, y)) / scale
        width = DIGIT_WIDTH * len(text)
        if not any(
            left < other + reach and other < left + width and abs(bottom - height) < SMALL
            for other, height, reach in taken
        ):
            taken.append((left, bottom, width))
            axes.annotate(
                _plain(text), (x, y), xytext=(4, 3), textcoords="offset points", fontsize=SMALL
            )


def _lay_out(figure: Figure) -> None:
    """Place axes and legend, which takes half of the time, once and not in each format."""
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)
    figure.set_layout_engine("none")


def _saved(figure: Figure, name: str) -> Drawing:
    svg, png = io.StringIO(), io.BytesIO()  # by canvases, as `savefig` would draw each twice
    FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None})
    figure.set_dpi(DPI)
    FigureCanvasAgg(figure).print_png(png)
    text = svg.getvalue()
    element = text[text.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    inline = element.replace(INK, "currentColor").replace(GROUND, "none")
    for index, color in enumerate(COLORS):
        inline = inline.replace(color, f"var(--series-{index})")
    return Drawing(
        inline=_own_identifiers(inline, name),
        svg=text.replace(INK, "#000000").replace(GROUND, "#ffffff"),
        png=png.getvalue(),
    )


def _own_identifiers(svg: str, name: str) -> str:
    """Prefix all identifiers and what refers to them: many drawings share one page."""
    for found in sorted(set(re.findall(r'\bid="([^"]+)"', svg)), key=len, reverse=True):
        own = f"{name}-{found}"
        svg = svg.replace(f'id="{found}"', f'id="{own}"')
        svg = svg.replace(f'href="#{found}"', f'href="#{own}"')
        svg = svg.replace(f"url(#{found})", f"url(#{own})")
    return svg


@cache
def _drawable() -> frozenset[int]:
    """Code points that the font has a picture of."""
    return frozenset(get_font(findfont(FontProperties(family=[FONT]))).get_charmap())


def _plain(text: str) -> str:
    """Text that the font can draw; other letters become question marks."""
    drawn = "".join(
        letter if letter.isprintable() and ord(letter) in _drawable() else "?"
        for letter in text.lstrip("_")  # which matplotlib would hide from the legend
    )
    return clipped(drawn, MAX_LABEL_LETTERS)
