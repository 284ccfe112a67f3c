"""The report as Markdown: its tables, for a README, a pull request or a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence

from experiments.report import figures
from experiments.report.page import shown_value
from experiments.report.runs import Run, cautions, differences, measure, shared_baselines, turns


def markdown(runs: Sequence[Run], command: str) -> str:
    """The whole report.

    Args:
      runs: best first.
      command: what was typed to make it.
    """
    title = f"Report on {runs[0].name}" if len(runs) == 1 else f"Report on {len(runs)} runs"
    parts = [f"# {escaped(title)}", escaped(figures.verdict(runs, measure(runs)))]
    parts.append("\n".join(f"- {escaped(note)}" for note in cautions(runs)))
    columns = figures.columns(runs)
    rows = [[run.name, *(column.text(run) for column in columns)] for run in runs]
    parts += ["## Results", table(["run", *(column.name for column in columns)], rows)]
    if baselines := shared_baselines(runs):
        ordered = sorted(baselines.items(), key=lambda item: -item[1]["loss"])
        every = set.intersection(*(set(values) for _, values in ordered))
        names = [name for name in ("loss", "bits_per_byte") if name in every]
        lines = [[k, *(f"{v[name]:.4f}" for name in names)] for k, v in ordered]
        head = ["", *(name.replace("_", " ") for name in names)]
        parts += ["## Baselines", table(head, lines)]
    if found := differences(runs):
        fields = [[name, *map(shown_value, values)] for name, values in found.items()]
        parts.append("## What differs between the runs")
        parts.append(table(["field", *(run.name for run in runs)], fields))
    if found := turns(runs):
        lines = [
            [runs[place].name, f"{began.step:,}", began.time, "; ".join(began.told())]
            for place, began in found
        ]
        parts += ["## What changed on the way", table(["run", "from step", "at", "what"], lines)]
    parts.append(f"Made by `{command}`")
    return "\n\n".join(filter(None, parts)) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], text: bool = False) -> str:
    """The first column to the left, the others to the right.

    Args:
      head: names of columns.
      rows: cells.
      text: whether cells are Markdown already, all to the left.
    """
    rule = ["---", *("---" if text else "---:" for _ in head[1:])]
    cells = [[cell if text else escaped(cell) for cell in row] for row in (head, *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (cells[0], rule, *cells[1:]))


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", " ".join(text.split()))
