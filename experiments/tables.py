"""Tables on standard output."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table as TextTable

WIDE = 200
"""Columns of a file or a pipe: cells are not broken there."""


def print_table(table: TextTable) -> None:
    """Prints it, as wide as the terminal at most, or as wide as it is where there is none."""
    console = Console()
    (console if console.is_terminal else Console(width=WIDE)).print(table)
