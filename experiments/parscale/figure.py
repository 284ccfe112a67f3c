"""The picture of a law: losses by parameters, a line for each number of streams."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gam_jax.scaling import Fit


def draw_law(rows: Sequence[Mapping[str, Any]], law: Fit | None, path: pathlib.Path) -> None:
    """Writes a PNG: means with their spread, and the law as lines where one was fitted."""
    figure = Figure(figsize=(6.4, 4.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes, colours = figure.subplots(), colormaps["viridis"]
    streams = sorted({row["streams"] for row in rows})
    for i, count in enumerate(streams):
        own = sorted((r for r in rows if r["streams"] == count), key=lambda row: row["counted"])
        colour = colours(i / max(1, len(streams)))
        sizes, losses = ([row[name] for row in own] for name in ("counted", "loss"))
        spread = [row["spread"] for row in own]
        axes.errorbar(
            sizes, losses, yerr=spread, fmt="o", capsize=3, color=colour, label=f"P = {count}"
        )
        if law is not None:
            line = np.geomspace(min(sizes), max(sizes), 50)
            axes.plot(line, [law.predict(n, count) for n in line], color=colour, alpha=0.6)
    axes.set_xscale("log")
    axes.set_xlabel("parameters without embeddings")
    axes.set_ylabel("validation loss, nats per token")
    axes.grid(alpha=0.25, which="both")
    axes.legend()
    if law is not None:
        axes.set_title(law.law.formula, fontsize=9)
    figure.savefig(path)
