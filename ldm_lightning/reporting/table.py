"""The metrics of a run as a table on the terminal, with what they mean."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_metrics(
    metrics: Mapping[str, float | None],
    meanings: Mapping[str, str],
    *,
    title: str,
    counts: Mapping[str, int] | None = None,
    console: Console | None = None,
) -> None:
    """Print one row a metric: name, value, over how many images, meaning.

    On a terminal this is a drawn table; into a file it is aligned plain text.

    Args:
        metrics: Values by full name (``val/psnr``); None for one that was not finite.
        meanings: One line by metric, under its full name or the part after the first slash.
        title: Said above the table.
        counts: Number of images (or pairs) behind a metric, where that matters.
        console: Where to print; the terminal by default.
    """
    console = Console() if console is None else console
    counts = counts or {}
    rows = [
        (name, _format(value), str(counts.get(name, "")), _meaning(name, meanings))
        for name, value in sorted(metrics.items())
    ]
    header = ("metric", "value", "N", "meaning")
    if console.is_terminal:
        table = Table(title=Text(title), title_justify="left")
        for column in header:
            table.add_column(column, justify="right" if column in ("value", "N") else "left")
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)
        return
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(3)]
    lines = [title]
    for name, value, count, meaning in (header, *rows):
        line = f"{name:<{widths[0]}}  {value:>{widths[1]}}  {count:>{widths[2]}}  {meaning}"
        lines.append(line.rstrip())
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _format(value: float | None) -> str:
    """Four significant digits, more where a whole number has them."""
    if value is None:
        return "not finite"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _meaning(name: str, meanings: Mapping[str, str]) -> str:
    return meanings.get(name, meanings.get(name.split("/", 1)[-1], ""))
