"""The picture of a comparison: loss beside speed and beside carry."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from typing import Any

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.compare.table import pareto_front

PANELS = (
    ("tokens_per_second", "training tokens/s", -1),
    ("carry_bytes", "carry of one sequence, bytes", 1),
)
"""(figure, label, sign): with that sign, less is better."""


def draw_comparison(result: Mapping[str, Any], path: pathlib.Path) -> None:
    """Writes a PNG from what the command prints with --json."""
    figure = Figure(figsize=(10, 4.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    rows, colours = result["rows"], colormaps["tab10"]
    for axes, (name, label, sign) in zip(figure.subplots(1, 2, sharey=True), PANELS, strict=True):
        front = pareto_front([(sign * row[name], row["loss"]) for row in rows])
        line = sorted((row[name], row["loss"]) for row, on in zip(rows, front, strict=True) if on)
        axes.plot(*zip(*line, strict=True), ":", color="#888888", zorder=0)
        middle = math.sqrt(min(row[name] for row in rows) * max(row[name] for row in rows))
        for i, row in enumerate(rows):
            axes.scatter(row[name], row["loss"], color=colours(i % 10), s=36)
            side, away = ("right", -5) if row[name] > middle else ("left", 5)
            place = {"xytext": (away, 4), "textcoords": "offset points", "ha": side, "fontsize": 8}
            axes.annotate(row["title"], (row[name], row["loss"]), **place)
        axes.set_xscale("log")
        axes.set_xlabel(label)
        axes.grid(alpha=0.25, which="both")
        axes.margins(0.18)
        if name == "tokens_per_second":
            axes.set_ylabel("validation loss, nats per token")
    figure.suptitle(f"{result['tokens']:,} training tokens each; dotted: the Pareto front")
    figure.savefig(path)
