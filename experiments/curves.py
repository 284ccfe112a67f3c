"""The picture of a run: losses by step, with the baselines as lines."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.pictures import drawn
from gam_jax.training.metrics import points

BASELINE_COLOURS = {"unigram": "#999999", "bigram": "#666666", "gzip": "#c28f2c", "xz": "#8a6d1d"}


def draw_curves(
    rows: Sequence[Mapping[str, Any]], baselines: Mapping[str, float], path: pathlib.Path
) -> None:
    """Writes a PNG.

    Args:
      rows: the lines of metrics.jsonl.
      baselines: name -> loss in nats per token, drawn as horizontal lines.
      path: where to.
    """
    with drawn(path, 7, 4.2) as figure:
        axes = figure.add_subplot()
        train, held_out = points(rows, "train"), points(rows, "validation")
        if train:
            axes.plot(*zip(*train, strict=True), color="#9ecae1", linewidth=1, label="train")
        if held_out:
            style = {"color": "#08519c", "marker": "o", "markersize": 3, "linewidth": 1.6}
            axes.plot(*zip(*held_out, strict=True), label="validation", **style)
        for name, loss in baselines.items():
            axes.axhline(loss, color=BASELINE_COLOURS.get(name, "#bbbbbb"), linestyle=":", zorder=0)
            place = {"xy": (1, loss), "xycoords": ("axes fraction", "data")}
            axes.annotate(name, **place, xytext=(4, -3), textcoords="offset points", fontsize=8)
        axes.set_xlabel("step")
        axes.set_ylabel("loss, nats per token")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
