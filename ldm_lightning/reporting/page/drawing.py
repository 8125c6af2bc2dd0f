"""Charts as SVG and PNG, drawn with matplotlib.

Within the page, ink is ``currentColor`` and the ground is clear, so that one drawing serves light
and dark. As a file the drawing has a white ground.
"""

import io
import re
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ldm_lightning.reporting.page.charts import Chart, Series

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Of Okabe & Ito 2008, "Color Universal Design": told apart with any kind of colour vision. Black
and yellow are left out, as each vanishes on one of the two grounds."""

MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", ":")

INK, GROUND = "#010203", "#fefdfc"
"""Stand for the colours of the page; no series has either."""

MAX_LABELS = 40
MAX_LABEL_LETTERS = 48

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "font.size": 9.0,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": GROUND,
    "savefig.facecolor": GROUND,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
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
        figure = Figure(figsize=(4.8, 3.4), layout="constrained")
        axes = figure.add_subplot()
        axes.set_xlabel(_plain(chart.x_label))
        axes.set_ylabel(_plain(chart.y_label))
        if chart.is_log_x:
            axes.set_xscale("log")
        axes.grid(visible=True)
        for index, series in enumerate(chart.series):
            _add(axes, series, index)
        if chart.front:
            xs, ys = [point.x for point in chart.front], [point.y for point in chart.front]
            axes.plot(
                xs,
                ys,
                color=INK,
                linewidth=1,
                linestyle="--",
                marker="o",
                markersize=10,
                markerfacecolor="none",
                zorder=1,
                label="best",
            )
        labelled = [point for series in chart.series for point in series.points]
        if len(labelled) <= MAX_LABELS:
            for point in labelled:
                axes.annotate(
                    str(point.run),
                    (point.x, point.y),
                    xytext=(4, 3),
                    textcoords="offset points",
                    fontsize=7,
                )
        if len(axes.get_legend_handles_labels()[1]) > 1:
            figure.legend(loc="outside upper left", ncols=2)
        return _saved(figure, chart.name)


def _add(axes: Axes, series: Series, index: int) -> None:
    """Draw one series in a colour, marker and dash of its own."""
    colour = COLOURS[index % len(COLOURS)]
    dash = DASHES[index // len(COLOURS) % len(DASHES)]
    label = _plain(series.label)
    if series.line:
        xs, ys = zip(*series.line, strict=True)
        marker = "." if len(xs) < 3 else ""
        axes.plot(
            xs, ys, color=colour, linestyle=dash, linewidth=1.4, marker=marker, label=label or None
        )
    if series.points:
        scatter = axes.scatter(
            [point.x for point in series.points],
            [point.y for point in series.points],
            color=colour,
            marker=MARKERS[index % len(MARKERS)],
            s=26,
            zorder=3,
            label=None if series.line else label or None,
        )
        scatter.set_urls([f"#run-{point.run}" for point in series.points])


def _saved(figure: Figure, name: str) -> Drawing:
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    figure.savefig(png, format="png", dpi=150)
    text = svg.getvalue()
    element = text[text.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    inline = element.replace(INK, "currentColor").replace(GROUND, "none")
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


def _plain(text: str) -> str:
    """Text that the font can draw; other letters become question marks."""
    drawn = "".join(
        letter if letter.isprintable() and ord(letter) < 0x180 else "?"
        for letter in text.lstrip("_")  # which matplotlib would hide from the legend
    )
    return drawn if len(drawn) <= MAX_LABEL_LETTERS else f"{drawn[: MAX_LABEL_LETTERS - 3]}..."
