"""The parameter table of a dry run."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ldm_lightning.utils.terminal import one_line


def print_parameters(counts: Mapping[str, int], *, title: str) -> None:
    """Print the number of parameters of each part."""
    table = Table(title=Text(one_line(title)), title_justify="left")
    table.add_column("part")
    table.add_column("parameters", justify="right")
    for name, count in counts.items():
        table.add_row(Text(one_line(name)), f"{count:,}")
    Console().print(table)
