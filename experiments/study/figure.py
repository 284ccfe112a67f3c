"""The picture of a study where it brings none of its own: the first measure of each arm."""

from __future__ import annotations

import pathlib

from experiments.pictures import drawn
from experiments.study.declare import Study
from experiments.study.found import Found
from experiments.study.sheets import heading
from sharding.whole_file import check_place


def draw(study: Study, found: Found, path: pathlib.Path) -> None:
    """Writes a PNG: by the study's own hand, or a point for each value and a line at the mean."""
    check_place(path)
    if study.figure is not None:
        study.figure(study, found, path)
        return
    measure = next((name for name in study.measures if found.of(name)), None)
    if measure is None:
        return
    values = found.of(measure)
    names = [name for name in study.arms if name in values]
    with drawn(path, 7, 1.2 + 0.34 * len(names)) as figure:
        axes = figure.add_subplot()
        for row, name in enumerate(names):
            own = values[name]
            axes.scatter(own.values, [row] * len(own.values), s=22, color="#9ecae1", zorder=2)
            style = {"marker": "|", "s": 160, "color": "#08519c", "zorder": 3}
            axes.scatter([own.mean], [row], **style)
        published = {p.arm: p.value for p in study.published if p.measure == measure}
        known = [(published[name], row) for row, name in enumerate(names) if name in published]
        if known:
            hollow = {"facecolors": "none", "edgecolors": "#c28f2c", "s": 36, "label": "published"}
            axes.scatter(*zip(*known, strict=True), **hollow)
            axes.legend(frameon=False, fontsize=8)
        axes.set_yticks(range(len(names)), [study.arms[name].title for name in names], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel(heading(study.measures[measure]))
        axes.grid(alpha=0.25)
        axes.set_title(study.title, fontsize=9, loc="left")
