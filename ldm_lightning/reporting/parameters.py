"""The parameter table of a dry run."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table


def print_parameters(counts: Mapping[str, int], *, title: str) -> None:
    """Print the number of parameters of each part."""
    table = Table(title=title, title_justify="left")
    table.add_column("part")
    table.add_column("parameters", justify="right")
    for name, count in counts.items():
        table.add_row(name, f"{count:,}")
    Console().print(table)
