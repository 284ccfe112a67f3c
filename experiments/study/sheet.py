"""A table of results: on a terminal, and as Markdown."""

from __future__ import annotations

import dataclasses

from rich.table import Table as TextTable

from experiments.report.markdown import table
from experiments.tables import print_table

MOST = 8
"""Columns of figures in a table."""
PUBLISHED = "published"
"""The heading of a column of figures that others printed, beside ours."""


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

    @property
    def blocks(self) -> list[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
        """Heads and rows of the tables in which it is shown.

        Rows that have no column in common are no table; one of many columns is several.
        """
        groups: list[tuple[set[int], list[int]]] = []
        for number, row in enumerate(self.rows):
            columns, rows = {at for at, cell in enumerate(row[1:], 1) if cell}, [number]
            apart = []
            for others, members in groups:
                if others & columns or not (others and columns):
                    columns, rows = columns | others, [*members, *rows]
                else:
                    apart.append((others, members))
            groups = [*apart, (columns, rows)]
        found = []
        for columns, rows in sorted(groups, key=lambda group: min(group[1])):
            for few in self._parted(sorted(columns)):
                own = [row for row in sorted(rows) if any(self.rows[row][at] for at in few)]
                picked = [tuple(self.rows[row][at] for at in (0, *few)) for row in own]
                found.append((tuple(self.head[at] for at in (0, *few)), picked))
        return found

    def _parted(self, columns: list[int]) -> list[list[int]]:
        """At most `MOST` columns each; published figures stay beside ours."""
        parts: list[list[int]] = [[]]
        for at in columns:
            if len(parts[-1]) >= MOST and self.head[at] != PUBLISHED:
                parts.append([])
            parts[-1].append(at)
        return parts

    def print(self) -> None:
        """On standard output."""
        for number, (head, rows) in enumerate(self.blocks):
            shown = TextTable(*head, title="" if number else self.title, title_justify="left")
            for column in shown.columns[1:]:
                column.justify = "right"
            for row in rows:
                shown.add_row(*row)
            print_table(shown)
        for note in self.notes:
            print(f"- {note}")

    def markdown(self) -> str:
        """The same for a page."""
        tables = "\n\n".join(table(head, rows) for head, rows in self.blocks)
        notes = "\n".join(f"- {note}" for note in self.notes)
        return f"## {self.title}\n\n{tables}\n\n{notes}\n"
