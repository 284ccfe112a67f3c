"""The picture of recall: right answers by number of pairs, a line a mixer."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

MARKERS = "osD^vP*X<>hd"


def draw_recall(result: Mapping[str, Any], path: pathlib.Path) -> None:
    """Writes a PNG from what the command prints with --json."""
    figure = Figure(figsize=(7.5, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    pairs, colours = list(result["pairs"]), colormaps["tab10"]
    for i, row in enumerate(result["rows"]):
        shares = [100 * row["accuracy"][n] for n in pairs]
        style = {"marker": MARKERS[i % len(MARKERS)], "color": colours(i % 10), "linewidth": 1.6}
        axes.plot(pairs, shares, label=row["title"], **style)
    axes.plot(pairs, [100 / n for n in pairs], ":", color="#999999", label="chance")
    axes.set_xscale("log", base=2)
    axes.set_xticks(pairs, [str(n) for n in pairs])
    axes.set_ylim(0, 103)
    axes.set_xlabel(f"pairs in {result['tokens']} tokens")
    axes.set_ylabel("questions answered rightly, %")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path)
