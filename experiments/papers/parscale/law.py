"""The scaling law and its rivals, fitted to tables of runs and told honestly."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rich.table import Table as TextTable

from experiments.papers.parscale import published
from experiments.study.found import Found
from experiments.tables import print_table
from gam_jax.scaling import LAWS, Fit, Run, fit_law

NAME = re.compile(r"(?:(?P<mixer>\w+)-)?w(?P<width>\d+)-p(?P<streams>\d+)")
"""Of an arm of the law."""


def fits(runs: Sequence[Run]) -> list[Fit]:
    """Every law with its numbers, the best told by the data (least BIC) first."""
    return sorted((fit_law(runs, law) for law in LAWS), key=lambda one: one.bic)


def of_published(corpus: str) -> dict[str, float]:
    """The law's numbers for a table of the paper; and by how much less BIC it beats each rival."""
    found = {one.law.name: one for one in fits(published.runs(corpus))}
    own = found["parallel"]
    beats = {f"beats_{n}": one.bic - own.bic for n, one in found.items() if n != "parallel"}
    return {**own.values, **beats}


def runs_of(found: Found) -> list[Run]:
    """Those of a law that a study has trained, means over seeds."""
    losses, counts = found.of("loss"), found.of("counted")
    runs = []
    for name, loss in losses.items():
        arm = NAME.fullmatch(name)
        if arm and name in counts:
            runs.append(Run(counts[name].mean, int(arm["streams"]), loss.mean))
    return runs


def enough(runs: Sequence[Run], found: Found) -> bool:
    """Whether there are three widths and three numbers of streams, without which no law shows."""
    names = [arm for name in found.arms if (arm := NAME.fullmatch(name))]
    return min(len({arm[kind] for arm in names}) for kind in ("width", "streams")) > 2 and bool(
        runs
    )


def print_fits(title: str, rows: Sequence[Fit], paper: Mapping[str, float] | None = None) -> None:
    """A table of the laws, and which the data prefers."""
    table = TextTable("law", "numbers", "R2", "BIC", title=title)
    for row in rows:
        table.add_row(row.law.name, _shown(row.values), f"{row.r2:.5f}", f"{row.bic:.1f}")
    if paper is not None:
        table.add_row("parallel, by the paper's script", _shown(paper), "", "")
    print_table(table)
    first, second = rows[0], rows[1]
    print(
        f"the data prefers '{first.law.name}', {first.law.formula}, to '{second.law.name}' by "
        f"{second.bic - first.bic:.1f} in BIC"
    )


def _shown(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.5g}" for name, value in values.items())
