"""The table of a comparison, and which rows of it no other beats."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table as TextTable

from experiments.tables import print_table as print_text_table


def summary(trials: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a mixer, best first: means over seeds, the spread of the loss, and `pareto`.

    `pareto` says that no other row has both a lower loss and more tokens/s.
    """
    rows = []
    for name in dict.fromkeys(trial["mixer"] for trial in trials):
        own = [trial for trial in trials if trial["mixer"] == name]
        losses = [trial["loss"] for trial in own]
        row = {
            **{key: own[0][key] for key in ("mixer", "title")},
            "seeds": [trial["seed"] for trial in own],
            "loss": statistics.fmean(losses),
            "spread": max(losses) - min(losses),
            "bits_per_byte": statistics.fmean(trial["bits_per_byte"] for trial in own),
            "tokens_per_second": statistics.median(trial["tokens_per_second"] for trial in own),
            **{key: own[0][key] for key in ("parameters", "carry_bytes", "peak_bytes")},
        }
        rows.append(row)
    front = pareto_front([(-row["tokens_per_second"], row["loss"]) for row in rows])
    for row, kept in zip(rows, front, strict=True):
        row["pareto"] = kept
    return sorted(rows, key=lambda row: row["loss"])


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """For each point, whether no other is at most as large in both and smaller in one."""

    def beats(p: tuple[float, float], q: tuple[float, float]) -> bool:
        return p[0] <= q[0] and p[1] <= q[1] and p != q

    return [not any(beats(other, point) for other in points) for point in points]


def print_table(result: Mapping[str, Any]) -> None:
    """On standard output."""
    columns = ("loss", "bits per byte", "tokens/s", "parameters", "step MB", "carry bytes")
    table = TextTable("mixer", *columns)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in result["rows"]:
        spread = f" ±{row['spread'] / 2:.4f}" if len(row["seeds"]) > 1 else ""
        cells = (
            f"{row['loss']:.4f}{spread}",
            f"{row['bits_per_byte']:.4f}",
            f"{row['tokens_per_second']:,.0f}" + (" *" if row["pareto"] else "  "),
            f"{row['parameters']:,}",
            f"{row['peak_bytes'] / 1e6:,.1f}",
            f"{row['carry_bytes']:,}",
        )
        table.add_row(row["title"], *cells)
    for name in ("bigram", "unigram"):
        values = result["baselines"][name]
        cells = (f"{values['loss']:.4f}", f"{values['bits_per_byte']:.4f}", *[""] * 4)
        table.add_row(name, *cells, style="dim")
    print_text_table(table)
    print(f"{result['tokens']:,} training tokens each; * no other is both better and faster")
