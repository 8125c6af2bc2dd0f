"""From run folders to ``report.html``, ``results.csv`` and ``figures/``."""

import fnmatch
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from ldm_lightning.reporting.page.charts import Chart
from ldm_lightning.reporting.page.curves import curve_charts
from ldm_lightning.reporting.page.drawing import Drawing, draw_chart
from ldm_lightning.reporting.page.own_files import check_page, replace_figures
from ldm_lightning.reporting.page.page import Pictures, render_page
from ldm_lightning.reporting.page.pictures import compare_reconstructions, find_samples
from ldm_lightning.reporting.page.protocols import Protocols
from ldm_lightning.reporting.page.results_file import is_of_a_report, results_csv
from ldm_lightning.reporting.page.runs import Run, find_runs
from ldm_lightning.reporting.page.settings import find_differences
from ldm_lightning.reporting.page.swept import swept_charts
from ldm_lightning.reporting.page.tradeoffs import perception_charts, rate_charts
from ldm_lightning.storage.files import atomic_writer

log = logging.getLogger(__name__)

MAX_PICTURED = 50
"""So many runs show pictures, or the page would take minutes to open."""


SUFFIXES = (".svg", ".png")
"""Of the files of a figure."""


@dataclass(frozen=True)
class Report:
    """Files that were written."""

    page: Path
    results: Path
    figures: Path
    num_runs: int
    num_figures: int


def write_report(patterns: Sequence[str], output: Path, *, pictured: str = "*") -> Report:
    """Read run folders and write the page; ``results.csv`` and ``figures/`` come beside it.

    Args:
        patterns: Folders or globs of folders.
        output: The page; its folder must exist. Files of an earlier report there are replaced.
        pictured: Pictures are of the ``MAX_PICTURED`` newest runs whose name or folder fits this
            glob.

    Raises:
        ValueError: If there are no runs, or a file to be written is there and not of a report.
        OSError: If a file cannot be written.
    """
    check_page(output)
    results = output.parent / "results.csv"
    if os.path.lexists(results) and not is_of_a_report(results):
        raise ValueError(
            f"{results} is not of a report, and a report would replace it; give output= in another "
            "folder."
        )
    runs = find_runs(patterns)
    protocols, differences = Protocols(runs), find_differences(runs)
    charts = chain(
        rate_charts(runs, protocols),
        perception_charts(runs, protocols),
        swept_charts(runs, protocols, differences),
        curve_charts(runs, protocols),
    )
    figures = [(one, draw_chart(one)) for one in _own_names(charts)]
    chosen = [run for run in runs if _fits(run, pictured)][-MAX_PICTURED:]
    page = render_page(
        patterns,
        runs,
        protocols,
        differences,
        figures,
        Pictures(compare_reconstructions(chosen), find_samples(chosen), len(chosen)),
    )
    folder = output.parent / "figures"
    replace_figures(folder, [f"{one.name}{suffix}" for one, _ in figures for suffix in SUFFIXES])
    _write_figures(figures, folder)
    _write(results, _encoded(results_csv(runs, protocols, differences)))
    _write(output, _encoded(page))
    return Report(output, results, folder, len(runs), len(figures))


def write_own_page(folder: Path) -> None:
    """Write the page of one run, chain or sweep into its folder.

    What goes wrong here is told but does not fail a run of days, whose results are on disk.
    """
    try:
        report = write_report([str(folder)], folder / "report.html")
    except Exception as error:
        is_mistake = not isinstance(error, (OSError, ValueError))  # of ours: tell where
        log.warning("The page of %s could not be written: %s", folder, error, exc_info=is_mistake)
    else:
        log.info("Page: %s", report.page)


def _write_figures(figures: Sequence[tuple[Chart, Drawing]], folder: Path) -> None:
    for one, drawing in figures:
        _write(folder / f"{one.name}.svg", drawing.svg.encode())
        _write(folder / f"{one.name}.png", drawing.png)


def _own_names(charts: Iterable[Chart]) -> Iterable[Chart]:
    """Number those whose name another chart has."""
    seen: dict[str, int] = {}
    for one in charts:
        seen[one.name] = seen.get(one.name, 0) + 1
        times = seen[one.name]
        yield one if times == 1 else replace(one, name=f"{one.name}_{times}")


def _encoded(text: str) -> bytes:
    """As UTF-8; names of files and JSON may hold letters that have no place in it."""
    return text.encode("utf-8", errors="replace")


def _fits(run: Run, pattern: str) -> bool:
    return any(fnmatch.fnmatch(text, pattern) for text in (run.name, run.place))


def _write(path: Path, content: bytes) -> None:
    with atomic_writer(path) as file:
        file.write(content)
