"""The figures of one machine as a page of the documentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from experiments.benchmark.collect import Measured
from experiments.benchmark.timing import Quantity, Rows
from experiments.report.markdown import escaped, table


def page(measured: Measured, benchmarks: Mapping[str, Callable[..., Rows]]) -> str:
    """Markdown: the machine, then each benchmark with its command and a table.

    Args:
      measured: what `all` wrote.
      benchmarks: by name; what a benchmark does is the first line of its docstring.
    """
    machine = ", ".join(f"{name} {value}" for name, value in measured.machine.items())
    parts = [
        "# Benchmarks: measured",
        escaped(f"{measured.date}. {machine}; load after {measured.load[1]}."),
        "Medians, with quartiles in brackets where there were several runs. This page was written "
        "by these two commands:",
        "```bash\n"
        f"gam benchmark all figures.json {' '.join(measured.options)}\n"
        "gam benchmark page figures.json docs/measured.md\n```",
    ]
    if "--short" in measured.options:
        parts.append("Short: sizes are those of the rows, smaller than those of the descriptions.")
    for name, rows in measured.benchmarks.items():
        parts.append(f"## {name}")
        if documentation := benchmarks[name].__doc__ if name in benchmarks else None:
            parts.append(escaped(documentation.partition("\n")[0]))
        command = " ".join(["gam benchmark", name, *measured.options])
        parts.append(f"`{command}`")
        parts += [_table(group) for group in _alike(rows)]
    return "\n\n".join(parts) + "\n"


def _alike(rows: Rows) -> list[Rows]:
    """Rows in groups of the same columns, so that each is one table."""
    groups: dict[tuple[str, ...], Rows] = {}
    for name, row in rows.items():
        groups.setdefault(tuple(row), {})[name] = row
    return list(groups.values())


def _table(rows: Rows) -> str:
    columns = list(next(iter(rows.values())))
    units = {column: next(iter(rows.values()))[column].unit for column in columns}
    head = [f"{column}, {units[column]}" if units[column] else column for column in columns]
    cells = [[name, *(_shown(row[column]) for column in columns)] for name, row in rows.items()]
    return table(["", *head], cells)


def _shown(figure: Quantity) -> str:
    spread = (
        "" if figure.low == figure.high else f" ({_number(figure.low)} to {_number(figure.high)})"
    )
    return _number(figure.median) + spread


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
