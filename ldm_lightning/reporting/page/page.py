"""The HTML page: one file that needs no other and asks the network for nothing."""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from ldm_lightning.reporting.page.charts import RECONSTRUCTION, STAGES, Chart
from ldm_lightning.reporting.page.drawing import COLORS, DARK_COLORS, Drawing
from ldm_lightning.reporting.page.labels import (
    clipped,
    digits,
    listed,
    meaning_of,
    setting_words,
    unit_of,
)
from ldm_lightning.reporting.page.pictures import Comparison, SampleGrid
from ldm_lightning.reporting.page.protocols import Protocols
from ldm_lightning.reporting.page.runs import Run
from ldm_lightning.reporting.page.settings import Difference
from ldm_lightning.reporting.page.table import Table, build_table

TEMPLATES = Path(__file__).parent / "templates"

HINTS = {
    "Rate and distortion": "What latents cost against what they keep. Digits at points are the "
    "numbers of runs. Rings and a dashed line mark the Pareto front: runs that none is better "
    "than in both directions.",
    "Perception and distortion": "A sharper picture is paid for in PSNR. Rings and a dashed line "
    "mark the Pareto front: runs that none is better than in both directions.",
    "Metrics against settings": "Lines join runs that differ in nothing else but the seed and what "
    "is named in the caption, through the mean of the seeds; bars reach from the lowest seed to "
    "the highest.",
    "Training curves": "Digits at lines are the numbers of runs.",
}

NUM_TOLD = 3
"""Settings and metrics under a picture."""

MAX_LETTERS = 40
MAX_SETTING_LETTERS = 300


@dataclass(frozen=True)
class Pictures:
    """Pictures shown, of ``num_pictured`` runs; the others have none."""

    comparisons: Sequence[Comparison]
    grids: Sequence[SampleGrid]
    num_pictured: int


@dataclass(frozen=True)
class _Figure:
    chart: Chart
    svg: Markup
    meanings: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class _Section:
    heading: str
    hint: str
    groups: Mapping[str, Sequence[_Figure]]


def render_page(
    patterns: Sequence[str],
    runs: Sequence[Run],
    protocols: Protocols,
    differences: Sequence[Difference],
    figures: Sequence[tuple[Chart, Drawing]],
    pictures: Pictures,
) -> str:
    """Return the page. Whatever comes from files is escaped; drawings escape their own text."""
    # Markup is not escaped. It is made of files of this package, in which a closing tag would end
    # the element (none has one), and of drawings, whose texts matplotlib escapes.
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    css = Markup(_palette() + (TEMPLATES / "page.css").read_text("utf-8"))  # nosec B704
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    table = build_table(runs, protocols, differences)
    return environment.get_template("page.html").render(
        heading=_heading(runs),
        place=", ".join(patterns),
        now=datetime.now(tz=UTC).strftime("%Y-%m-%d %H:%M"),
        runs=runs,
        unfinished=[run for run in runs if not run.is_done and run.state != "dry_run"],
        states=sorted({run.state for run in runs}),
        table=table,
        single=_single(runs[0], table) if len(runs) == 1 else None,
        has_extra=any(column.is_extra for column in table.columns),
        has_best=any(cell.is_best for _, cells in table.rows for cell in cells),
        sections=list(_sections(figures, runs)),
        comparisons=pictures.comparisons,
        grids=pictures.grids,
        told={run.number: _told(run, differences) for run in runs},
        num_pictured=pictures.num_pictured,
        num_not_pictured=len(runs) - pictures.num_pictured,
        protocols=_protocol_table(protocols),
        css=css,
        script=Markup(script),  # nosec B704
        script_hash=f"sha256-{digest}",
    )


def _heading(runs: Sequence[Run]) -> str:
    """Subject of the page: one run, one chain with its parts, or several runs."""
    chains = [run for run in runs if run.kind == "chain"]
    if len(runs) == 1:
        return runs[0].name
    parts = [run for run in runs if chains and run.folder.parent == chains[0].folder]
    if len(chains) == 1 and len(parts) == len(runs) - 1:
        return f"{chains[0].name}: a chain of {len(parts)} run{'' if len(parts) == 1 else 's'}"
    return f"{len(runs)} runs"


def _sections(figures: Iterable[tuple[Chart, Drawing]], runs: Sequence[Run]) -> Iterable[_Section]:
    """Figures under their headings, in the order they come."""
    names = {run.number: run.name for run in runs}
    sections: dict[str, dict[str, list[_Figure]]] = {}
    for chart, drawing in figures:
        meanings = [(name, meaning) for name in chart.metrics if (meaning := meaning_of(name))]
        svg = Markup(_with_names(drawing.inline, names))  # nosec B704
        figure = _Figure(chart, svg, meanings)
        sections.setdefault(chart.section, {}).setdefault(chart.group, []).append(figure)
    for heading, groups in sections.items():
        yield _Section(heading, HINTS[heading], groups)


def _with_names(svg: str, names: Mapping[int, str]) -> str:
    """Tell the name of a run where a mouse rests; the table is for those who use a keyboard."""

    def link(found: re.Match[str]) -> str:
        number = int(found[1])
        return f'{found[0][:-1]} tabindex="-1"><title>{number} {escape(names[number])}</title>'

    return re.sub(r'<a xlink:href="#run-(\d+)">', link, svg)


def _told(run: Run, differences: Sequence[Difference]) -> str:
    """Line under a run's pictures: its settings and its figures."""
    settings = [
        clipped(" ".join(setting_words(one.key, run.settings[one.key])), MAX_LETTERS)
        for one in differences
        if run.settings.get(one.key) is not None
    ]
    rebuilt = (f"{stage}/{name}" for name in RECONSTRUCTION for stage in STAGES)
    deciding = ["gen/fid", "gen/fd_tiny", *rebuilt]
    metrics = [
        f"{name} {digits(value)} {unit_of(name) or ''}".rstrip()
        for name in deciding
        if (value := run.metrics.get(name)) is not None
    ]
    return "; ".join(", ".join(part) for part in (settings[:NUM_TOLD], metrics[:NUM_TOLD]) if part)


def _single(run: Run, table: Table) -> dict[str, object]:
    """Key figures of the page of one run."""
    cells = dict(zip([column.key for column in table.columns], table.rows[0][1], strict=True))
    metrics = [(one, cells[one.key]) for one in table.columns if one.key in run.metrics]
    facts = [(key, cells[key].text) for key in ("kind", "state", "updates", "time", "device")]
    return {
        "run": run,
        "facts": [(key, text) for key, text in facts if text],
        "metrics": metrics,
        "settings": [
            (key, clipped(str(value), MAX_SETTING_LETTERS)) for key, value in run.settings.items()
        ],
    }


def _protocol_table(protocols: Protocols) -> dict[str, object]:
    """Protocols of the metrics; entries that all share are told once."""
    parts = [dict(protocol.parts) for protocol in protocols.all]
    columns = list(dict.fromkeys(what for one in parts for what in one))
    common = [
        (what, parts[0][what])
        for what in columns
        if len(parts) > 1 and all(one.get(what) == parts[0].get(what) for one in parts)
    ]
    columns = [what for what in columns if what not in dict(common)]
    rows = [
        (
            protocol.label,
            listed(protocols.metrics_of(protocol)),
            [one.get(what, "") for what in columns],
        )
        for protocol, one in zip(protocols.all, parts, strict=True)
    ]
    return {"common": common, "columns": columns, "rows": rows}


def _palette() -> str:
    """Colors of the series of figures, as the style sheet names them."""
    light, dark = (
        " ".join(f"--series-{index}: {color};" for index, color in enumerate(colors))
        for colors in (COLORS, DARK_COLORS)
    )
    return f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"


def _breakable(text: str) -> Markup:
    """Text that may be broken after underscores, dots and slashes."""
    return Markup("<wbr>").join(escape(part) for part in re.split(r"(?<=[_./])", text))
