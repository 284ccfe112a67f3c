"""The scaling law and its rivals, fitted to a table of runs and told honestly."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table as TextTable

from experiments.parscale import published
from experiments.parscale.figure import draw_law
from experiments.parscale.runs import summary
from experiments.tables import print_table
from gam_jax.scaling import LAWS, PARALLEL, Run, fit
from gam_jax.training.folder import write_atomically


def fits(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Every law with its numbers, the best told by the data (least BIC) first."""
    found = sorted((fit(runs, law) for law in LAWS), key=lambda one: one.bic)
    return [
        {
            "law": one.law.name,
            "formula": one.law.formula,
            "values": one.values,
            "huber": one.huber,
            "r2": one.r2,
            "bic": one.bic,
        }
        for one in found
    ]


def published_fits() -> dict[str, Any]:
    """For each published table: what the paper's script finds, and all laws fitted here."""
    return {
        corpus: {"paper": published.COEFFICIENTS[corpus], "fits": fits(published.runs(corpus))}
        for corpus in published.LOSSES
    }


def of_runs(trials: Sequence[Mapping[str, Any]], out: pathlib.Path) -> dict[str, Any]:
    """What trained runs tell; also written to law.json and drawn as law.png in `out`.

    Returns:
      rows: means over seeds by width and streams; fits: of every law to them, none where there are
      fewer than three sizes or three numbers of streams; trials: as given.
    """
    rows = summary(trials, ("width", "streams"))
    table = [Run(row["counted"], row["streams"], row["loss"]) for row in rows]
    kinds = (len({row[name] for row in rows}) for name in ("width", "streams"))
    enough = min(kinds) > 2
    found = {"rows": rows, "fits": fits(table) if enough else [], "trials": list(trials)}
    write_atomically(out / "law.json", json.dumps(found, indent=2) + "\n")
    draw_law(rows, fit(table, PARALLEL) if enough else None, out / "law.png")
    return found


def print_fits(
    title: str, rows: Sequence[Mapping[str, Any]], paper: Mapping[str, float] | None = None
) -> None:
    """A table of the laws, and which the data prefers."""
    table = TextTable("law", "numbers", "R2", "BIC", title=title)
    for row in rows:
        table.add_row(row["law"], _shown(row["values"]), f"{row['r2']:.5f}", f"{row['bic']:.1f}")
    if paper is not None:
        table.add_row("parallel, by the paper's script", _shown(paper), "", "")
    print_table(table)
    first, second = rows[0], rows[1]
    print(
        f"the data prefers '{first['law']}', {first['formula']}, to '{second['law']}' by "
        f"{second['bic'] - first['bic']:.1f} in BIC"
    )


def _shown(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.5g}" for name, value in values.items())
