"""The study of NASAIC: arms, measures and claims.

Source: arXiv 2002.04116. Its chips, their energy and area are not here. Two models are trained at
once on two parts of 16 TPUs: what is chosen are both nets, the devices of each and what these are
used for, and the cost is `gam_jax.planning`'s. Nets are trained here, if no limit is exceeded.
"""

from __future__ import annotations

import functools
import pathlib

import numpy as np

from experiments.papers.nasaic.designs import (
    STRATEGIES,
    TIGHT,
    TRIALS,
    every,
    first,
    landscape,
    penalties,
    searched,
    space,
)
from experiments.papers.nasaic.known import planted, row
from experiments.papers.nasaic.nets import STEPS
from experiments.pictures import drawn, shade
from experiments.search.cosearch import PENALTY
from experiments.study import Absent, Arm, Claim, Measure, Study, as_printed, closed
from experiments.study.declare import CPU
from experiments.study.found import Found
from gam_jax.search import penalty


def draw(study: Study, found: Found, path: pathlib.Path) -> None:
    """Writes a PNG: seconds and device seconds of all designs, and of those that were chosen."""
    land = landscape(found.scale)
    limits = {limit.name: limit.most for limit in land.limits}
    figures = list(land.figures().values())
    seconds, work = (
        np.array([each[name] for each in figures]) / limits[name]
        for name in ("seconds", "device_seconds")
    )
    within = np.array([penalty(each, land.limits) == 0 for each in figures])
    with drawn(path, 6, 4) as figure:
        axes = figure.add_subplot()
        for own, colour, label in ((~within, "#d0d0d0", "designs"), (within, "#9ecae1", "within")):
            axes.scatter(seconds[own], work[own], s=4, color=colour, label=label)
        for number, name in enumerate((*STRATEGIES, "first")):
            both = (found.of(measure).get(name) for measure in ("seconds", "device_seconds"))
            points = [each.values for each in both if each is not None]
            if len(points) == 2:
                style = {"s": 40, "color": shade("tab10", number + 1), "marker": "Pdso"[number]}
                axes.scatter(*points, label=study.arms[name].title, zorder=3, **style)
        axes.axvline(1, color="#555555", linewidth=0.8)
        axes.axhline(1, color="#555555", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.tick_params(which="minor", labelbottom=False, labelleft=False)
        ticks = (0.2, 0.5, 1, 2, 5)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xlabel("seconds of a step, of the limit")
        axes.set_ylabel("device seconds, of the limit")
        axes.legend(frameon=False, fontsize=8)


def _row(text: str, measure: str, figure: str) -> Claim:
    source = "abstract, and workload 1 as recalled"
    return Claim(text, "printed", ("row",), measure, source=source, figures=(figure,))


PRINTED = (
    _row("At once takes 17.8 % less latency", "latency", "17.8"),
    _row("2.49 times less energy", "energy", "2.49"),
    _row("and 2.32 times less area", "area", "2.32"),
    _row("for 0.76 % of accuracy", "lost", "0.76"),
)

STUDY = Study(
    name="nasaic",
    title="Nets and their devices at once",
    source="arXiv 2002.04116",
    page="papers/nasaic.md",
    arms={
        "row": closed("workload 1 as recalled", row),
        "planted": closed("planted, at once", functools.partial(planted, True)),
        "planted-first": closed("planted, nets first", functools.partial(planted, False)),
        "penalties": Arm("penalties of all designs", numbers=penalties, exact=True),
        **{
            name: Arm(f"at once, by {title}", numbers=functools.partial(searched, name))
            for name, title in zip(
                STRATEGIES, ("a table of probabilities", "evolution", "chance"), strict=True
            )
        },
        "first": Arm("nets first, then devices", numbers=first),
        "every": Arm("the best of all designs", numbers=every),
    },
    measures={
        "share": Measure("reward, of the best", "higher", "%", ".2f"),
        "reward": Measure("reward", "higher"),
        "penalty": Measure("penalty", "lower", form=".3f"),
        "above": Measure("nets trained for a design with a penalty", "lower", form=".0f"),
        "trained": Measure("nets trained", "lower", form=".1f"),
        "stopped": Measure("designs that were not trained", "higher", "%", ".1f"),
        "seconds": Measure("seconds, of the limit", "lower", form=".2f"),
        "device_seconds": Measure("device seconds, of the limit", "lower", form=".2f"),
        "held": Measure("bytes of a device, of the limit", "lower", form=".2f"),
        "measured": Measure("designs measured", "lower", form=",.0f"),
        "designs": Measure("of all designs", form=",.0f"),
        "within": Measure("of them within all limits", form=",.0f"),
        "wrong": Measure("penalties that are 0 and should not be, or the reverse", "lower"),
        "bound": Measure("penalty at a bound, less 1", "lower", form=".2g"),
        "latency": Measure("less latency", "higher", "%", ".2f"),
        "energy": Measure("times less energy", "higher", form=".2f"),
        "area": Measure("times less area", "higher", form=".2f"),
        "lost": Measure("accuracy lost", "lower", "%", ".2f"),
    },
    published=as_printed(PRINTED),
    claims=(
        *PRINTED,
        Claim(
            "The abstract's 17.77 % is that within a hundredth",
            "near",
            ("row",),
            "latency",
            17.77,
            0.01,
            source="abstract",
        ),
        Claim(
            "The penalty is 0 where all limits hold, and only there",
            "at_most",
            ("penalties",),
            "wrong",
            0,
            source="its definition",
        ),
        Claim(
            "and 1 where one figure is at its bound",
            "at_most",
            ("penalties",),
            "bound",
            1e-12,
            source="its definition",
        ),
        Claim(
            "Nothing is trained for a design with a penalty",
            "at_most",
            tuple(STRATEGIES),
            "above",
            0,
            source="early pruning",
        ),
        *(
            Claim(
                f"Search by {name} comes within 1 % of the best of all designs, of which it "
                f"measures {100 * TRIALS[CPU] / space(CPU).size:.1f} %",
                "at_least",
                (name,),
                "share",
                99.0,
                source="ours, after its reward",
            )
            for name in ("table", "evolve")
        ),
        Claim(
            "Nets first and then devices exceed a limit here",
            "at_least",
            ("first",),
            "penalty",
            1e-9,
            source="its comparison: successive search violates specifications",
        ),
        Claim(
            "and have a lower reward than nets and devices at once",
            "higher",
            ("table", "first"),
            "reward",
            source="the same",
        ),
        Claim(
            "Where it is planted so too",
            "higher",
            ("planted", "planted-first"),
            "reward",
            source="derived",
        ),
    ),
    figure=draw,
    notes=(
        f"limits are the {TIGHT}th percentile of each figure over all designs, bounds the largest; "
        f"a penalty of 1 takes {PENALTY:g} off the reward, which is the mean accuracy",
        f"a search measures at most {TRIALS[CPU]:,} of {space(CPU).size:,} designs, known ones "
        f"not counted; a net is trained for {STEPS[CPU]} steps",
        "costs are the planner's for two parts of 16 TPU v5e, on which nothing ran",
    ),
    absent=(
        Absent("Latency, energy and area of chips", "a model of dataflows and a library of cells"),
        Absent("Accuracy on CIFAR-10, STL-10 and Nuclei", "nets of that size on pictures"),
        Absent(
            "A recurrent network that draws designs",
            "a table of probabilities does what is claimed of it",
        ),
    ),
)
