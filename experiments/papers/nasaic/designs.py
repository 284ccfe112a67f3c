"""All designs of two nets on two parts of the devices, and what searches find among them."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np

from experiments.papers.nasaic.nets import TASKS, accuracy, nets
from experiments.planned import run_of
from experiments.search.cosearch import (
    STYLES,
    Cosearch,
    Counted,
    Landscape,
    best_of,
    limits_at,
    nets_first,
    prices,
)
from experiments.study import Setting
from experiments.study.declare import CPU, SHORT, Numbers
from gam_jax.search import Space, penalty, search, strategy_of

SHAPES = {1: "v5e:1x1", 2: "v5e:1x2", 4: "v5e:2x2", 8: "v5e:2x4"}
"""What a part of the 16 devices may be."""
TRIALS = {SHORT: 60, CPU: 1000}
"""Designs that a search measures."""
BATCH = 16
"""Designs that are asked at once."""
TIGHT = 25
"""Limits are this percentile of each figure, over all designs."""
STRATEGIES = {
    "table": "table:rule=cross_entropy,count=64,rate=0.1,elite=0.1",
    "evolve": "evolve:pool=64,parents=16",
    "random": "random",
}
"""Chosen on other accuracies, see `settings`."""


@functools.cache
def space(scale: str) -> Space:
    """Two nets, how many devices each has, and what these are used for."""
    values: dict[str, list[Any]] = {task: list(nets(scale)[task]) for task in TASKS}
    values["devices"] = [list(both) for both in itertools.product(SHAPES, repeat=2)]
    return Space.of(values | {f"{task} style": list(STYLES) for task in TASKS})


@functools.cache
def landscape(scale: str) -> Landscape:
    """Every design of two nets on two parts."""
    costs = {
        task: {name: prices(run_of(one), SHAPES) for name, one in own.items()}
        for task, own in nets(scale).items()
    }
    figures = Landscape(space(scale), costs, ()).figures().values()
    return Landscape(space(scale), costs, limits_at(TIGHT, figures))


@functools.cache
def optimum(setting: Setting, seed: int) -> float:
    """Of all designs; nets that no search has asked for are trained for it."""
    return best_of(landscape(setting.scale), lambda net: accuracy(net, setting, seed))


def searched(strategy: str, setting: Setting, seed: int) -> Numbers:
    """A search, and what of the best reward it has found."""
    land = landscape(setting.scale)
    counted = Counted(land, lambda net: accuracy(net, setting, seed))
    own = Cosearch(land, counted)
    trials = TRIALS[setting.scale]
    chosen = strategy_of(STRATEGIES[strategy])
    found = search(land.space, chosen, own.measure, trials, seed, BATCH)
    reward = -found.best.score
    return {
        **land.told(found.best.point),
        "reward": reward,
        "share": 100 * reward / optimum(setting, seed),
        "trained": len(own.trained),
        "above": counted.above,
        "stopped": 100 * own.stopped / len(found.results),
        "measured": len(found.results),
        "designs": land.space.size,
    }


def first(setting: Setting, seed: int) -> Numbers:
    """Nets first, then devices."""
    land = landscape(setting.scale)
    point, reward = nets_first(land, lambda net: accuracy(net, setting, seed))
    share = 100 * reward / optimum(setting, seed)
    return {**land.told(point), "reward": reward, "share": share}


def every(setting: Setting, seed: int) -> Numbers:
    """The best of all designs, and how many are within the limits."""
    land = landscape(setting.scale)
    figures = land.figures()
    within = sum(penalty(each, land.limits) == 0 for each in figures.values())
    best = optimum(setting, seed)
    return {"reward": best, "share": 100.0, "designs": len(figures), "within": within}


def penalties(setting: Setting, seed: int) -> Numbers:
    """Over all designs, penalties that are 0 beside limits that hold; and penalties at bounds."""
    land = landscape(setting.scale)
    figures = list(land.figures().values())
    hold = [all(each[one.name] <= one.most for one in land.limits) for each in figures]
    none = [penalty(each, land.limits) == 0 for each in figures]
    within = {one.name: one.most for one in land.limits}
    bounds = [penalty({**within, one.name: one.bound}, land.limits) for one in land.limits]
    return {
        "wrong": float(np.sum(np.array(hold) != np.array(none))),
        "bound": max(abs(each - 1) for each in bounds),
    }
