"""The picture of what the experts of a run had to do."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.pictures import drawn
from gam_jax.training.expert_load import SPLIT


def draw_load(rows: Sequence[Mapping[str, Any]], path: pathlib.Path) -> bool:
    """Writes a PNG: the load of each expert by step, a panel for each block.

    Args:
      rows: the lines of metrics.jsonl.
      path: where to.

    Returns:
      False, and nothing is written, where no router reported.
    """
    found = [row for row in rows if row["split"] == SPLIT]
    if not found:
        return False
    panels = {}
    for layer in dict.fromkeys(row["layer"] for row in found):
        own = [row for row in found if row["layer"] == layer]
        loads = np.array([row["load"] for row in own])  # [steps, L, E]
        for block in range(loads.shape[1]):
            panels[f"{layer} of block {block}"] = [row["step"] for row in own], loads[:, block]
    columns = min(len(panels), 2 if len(panels) < 5 else 3)
    lines = -(-len(panels) // columns)
    with drawn(path, 0.8 + 3.2 * columns, 2.4 * lines) as figure:
        grid = figure.subplots(lines, columns, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        image = None
        for axes, (title, (steps, load)) in zip(grid.flat, panels.items(), strict=False):
            experts = load.shape[1]
            shown = (load * experts).T
            extent = (steps[0], max(steps[-1], steps[0] + 1), experts - 0.5, -0.5)
            style = {"cmap": "RdBu_r", "vmin": 0, "vmax": 2, "interpolation": "nearest"}
            image = axes.imshow(shown, aspect="auto", extent=extent, **style)
            axes.set_title(title, fontsize=9)
            axes.tick_params(labelsize=8)
        for axes in grid[-1]:
            axes.set_xlabel("step", fontsize=8)
        for axes in grid[:, 0]:
            axes.set_ylabel("expert", fontsize=8)
        if image is not None:
            bar = figure.colorbar(image, ax=grid.ravel().tolist(), extend="max", shrink=0.8)
            bar.set_label("load, in even shares", fontsize=8)
    return True
