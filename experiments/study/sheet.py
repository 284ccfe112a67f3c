"""A table of results: on a terminal, and as Markdown."""

from __future__ import annotations

import dataclasses

from rich.table import Table as TextTable

from experiments.report.markdown import table
from experiments.tables import print_table


@dataclasses.dataclass(frozen=True)
class Sheet:
    """One table with what is to be said of it.

    Attributes:
      title: above it.
      head: names of columns.
      rows: text of cells; the first column is a name.
      notes: lines below it.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def print(self) -> None:
        """On standard output."""
        shown = TextTable(*self.head, title=self.title, title_justify="left")
        for column in shown.columns[1:]:
            column.justify = "right"
        for row in self.rows:
            shown.add_row(*row)
        print_table(shown)
        for note in self.notes:
            print(f"- {note}")

    def markdown(self) -> str:
        """The same for a page."""
        notes = "\n".join(f"- {note}" for note in self.notes)
        return f"## {self.title}\n\n{table(self.head, self.rows)}\n\n{notes}\n"
