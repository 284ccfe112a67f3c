"""The picture of a law: losses by parameters, a line for each number of streams."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from experiments.papers.parscale.law import enough, runs_of
from experiments.pictures import drawn, shade
from experiments.study import Study
from experiments.study.figure import draw as draw_points
from experiments.study.found import Found
from gam_jax.scaling import PARALLEL, fit_law


def draw(study: Study, found: Found, path: pathlib.Path) -> None:
    """Writes a PNG: the runs of the law, and the law as lines where one can be fitted to them."""
    runs = runs_of(found)
    if not runs:
        draw_points(dataclasses.replace(study, figure=None), found, path)
        return
    law = fit_law(runs, PARALLEL) if enough(runs, found) else None
    with drawn(path, 6.4, 4.4) as figure:
        axes = figure.subplots()
        streams = sorted({run.streams for run in runs})
        for i, count in enumerate(streams):
            own = sorted((run.params, run.loss) for run in runs if run.streams == count)
            colour = shade("viridis", i / max(1, len(streams)))
            sizes, losses = zip(*own, strict=True)
            axes.plot(sizes, losses, "o", color=colour, label=f"P = {count:g}")
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
