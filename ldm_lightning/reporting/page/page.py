"""The HTML page: one file that needs no other and asks the network for nothing."""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ldm_lightning.reporting.page.charts import Chart
from ldm_lightning.reporting.page.drawing import Drawing
from ldm_lightning.reporting.page.pictures import Comparison, SampleGrid
from ldm_lightning.reporting.page.protocols import Protocols
from ldm_lightning.reporting.page.runs import Run
from ldm_lightning.reporting.page.table import Table

TEMPLATES = Path(__file__).parent / "templates"

HINTS = {
    "Rate and distortion": "What latents cost against what they keep. Numbers are those of runs; "
    "rings and a dashed line mark those that none is better than in both directions.",
    "Perception and distortion": "A sharper picture is paid for in PSNR. Rings and a dashed line "
    "mark runs that none is better than in both directions.",
    "Metrics against settings": "Lines join runs that differ in nothing else but the seed, "
    "through the mean of the seeds.",
    "Training curves": "Numbers before names are those of runs.",
}


@dataclass(frozen=True)
class Pictures:
    """What is shown as pixels, of ``num_pictured`` runs; the others have none."""

    comparisons: Sequence[Comparison]
    grids: Sequence[SampleGrid]
    num_pictured: int


@dataclass(frozen=True)
class _Figure:
    chart: Chart
    svg: Markup


@dataclass(frozen=True)
class _Section:
    heading: str
    hint: str
    figures: Sequence[_Figure]


def render_page(
    title: str,
    runs: Sequence[Run],
    protocols: Protocols,
    table: Table,
    figures: Sequence[tuple[Chart, Drawing]],
    pictures: Pictures,
) -> str:
    """Return the page. Whatever comes from files is escaped; drawings escape their own text."""
    # A closing tag within would end the element; neither file has one.
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        title=title,
        now=datetime.now(tz=UTC).strftime("%Y-%m-%d %H:%M"),
        num_runs=len(runs),
        unfinished=[run for run in runs if not run.is_done and run.state != "dry_run"],
        states=sorted({run.state for run in runs}),
        table=table,
        has_extra=any(column.is_extra for column in table.columns),
        sections=list(_sections(figures)),
        comparisons=pictures.comparisons,
        grids=pictures.grids,
        num_pictured=pictures.num_pictured,
        num_not_pictured=len(runs) - pictures.num_pictured,
        protocols=[(one, protocols.metrics_of(one)) for one in protocols.all],
        css=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )


def _sections(figures: Iterable[tuple[Chart, Drawing]]) -> Iterable[_Section]:
    """Figures under their headings, in the order they come."""
    by_heading: dict[str, list[_Figure]] = {}
    for chart, drawing in figures:
        figure = _Figure(chart, Markup(drawing.inline))
        by_heading.setdefault(chart.section, []).append(figure)
    for heading, group in by_heading.items():
        yield _Section(heading, HINTS[heading], group)
