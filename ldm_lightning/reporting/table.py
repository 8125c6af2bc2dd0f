"""The metrics of a run, and the gate's verdict, as tables on the terminal."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ldm_lightning.metrics.thresholds import GateRow
from ldm_lightning.utils.terminal import one_line


def print_metrics(
    metrics: Mapping[str, float | None],
    meanings: Mapping[str, str],
    *,
    title: str,
    counts: Mapping[str, str] | None = None,
    console: Console | None = None,
) -> None:
    """Print one row a metric: name, value, over how many images, meaning.

    Args:
        metrics: Values by full name (``val/psnr``); None for one that was not finite.
        meanings: One line by metric, under its full name or the part after the first slash.
        title: Said above the table.
        counts: How many images, pairs or windows stand behind a metric, where that matters.
        console: Where to print; the terminal by default.
    """
    counts = counts or {}
    rows = [
        (name, _format(value), counts.get(name, ""), _meaning(name, meanings))
        for name, value in sorted(metrics.items())
    ]
    print_rows(("metric", "value", "N", "meaning"), rows, title=title, console=console)


def print_gate(
    rows: Sequence[GateRow],
    meanings: Mapping[str, str],
    *,
    title: str,
    console: Console | None = None,
) -> None:
    """Print one row a threshold: metric, value, what is wanted, whether it is reached, meaning.

    Args:
        rows: Numbers beside their thresholds.
        meanings: One line by metric, under its full name or the part after the first slash.
        title: Said above the table.
        console: Where to print; the terminal by default.
    """
    cells = [
        (
            row.threshold.metric,
            _format(row.value),
            str(row.threshold),
            "passed" if row.passed else "FAILED",
            _meaning(row.threshold.metric, meanings),
        )
        for row in rows
    ]
    print_rows(("metric", "value", "wanted", "", "meaning"), cells, title=title, console=console)


def print_rows(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str,
    console: Console | None = None,
) -> None:
    """Print a table: drawn on a terminal, aligned plain text into a file.

    Args:
        header: Name of each column; columns called ``value`` and ``N`` are aligned to the right.
        rows: Cells, as many as there are columns.
        title: Said above the table.
        console: Where to print; the terminal by default.
    """
    console = Console() if console is None else console
    title, rows = one_line(title), [tuple(map(one_line, row)) for row in rows]
    if console.is_terminal:
        console.print(drawn_table(header, rows, title=title))
        return
    right = _aligned_right(header)
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header) - 1)]
    lines = [title]
    for row in (header, *rows):
        cells = [
            f"{cell:>{width}}" if i in right else f"{cell:<{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def drawn_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, title: str) -> Table:
    """The table that ``print_rows`` prints on a terminal."""
    right = _aligned_right(header)
    table = Table(title=Text(one_line(title)), title_justify="left")
    for i, column in enumerate(header):
        # Folded where it is too long: the end of a path is what is looked for.
        table.add_column(Text(column), justify="right" if i in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    return table


def _aligned_right(header: Sequence[str]) -> set[int]:
    return {i for i, column in enumerate(header) if column in ("value", "N")}


def _format(value: float | None) -> str:
    """Four significant digits, more where a whole number has them."""
    if value is None:
        return "not finite"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _meaning(name: str, meanings: Mapping[str, str]) -> str:
    return meanings.get(name, meanings.get(name.split("/", 1)[-1], ""))
