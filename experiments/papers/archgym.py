"""Search strategies on the planner's meshes (ArchGym): a fair comparison tunes each of them.

Source: arXiv 2306.08888. Its simulators are not here; the cost is `gam_jax.planning`'s predicted
seconds of a training step, of every mesh, preset, number of parts and recomputation.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.planned import run_of
from experiments.study import Absent, Arm, Claim, Measure, Setting, Study, closed
from experiments.study.declare import CPU, SHORT, Numbers
from gam_jax.data.text import Text
from gam_jax.layers import GAM, Block
from gam_jax.layers.attention import Attention
from gam_jax.models.language import LanguageModel
from gam_jax.planning.cluster import clusters
from gam_jax.planning.search import Space as Meshes
from gam_jax.planning.search import plan
from gam_jax.search import Point, Settings, Space, learn, search, strategy_of
from gam_jax.training.experiment import Experiment, TrainConfig

BUDGET, SEEDS = {SHORT: 24, CPU: 320}, {SHORT: 3, CPU: 10}
"""Samples of a search, and searches with each setting."""
ROUND, REPEATS = 8, 5
"""Points of a table's round; how many times its budget a table may ask for, known ones too."""
DRAM = (4, 3, 3, 8, 2, 2, 8, 8, 3, 8)
"""Values of the memory controller's ten parameters, in the released settings file."""
LIMITS = (6, 7)
"""The two of them that the documented mapper gives four values each: refreshes put off, pulled."""

GRIDS: dict[str, tuple[str, ...]] = {
    "random": ("random",),
    "anneal": tuple(
        f"anneal:hot={hot},cold={cold},steps={steps}"
        for hot, cold, steps in itertools.product((0.3, 3.0, 30.0), (0.01,), (100, 320))
    ),
    "evolve": tuple(
        f"evolve:pool={pool},parents={parents},change={change}"
        for pool, parents, change in (
            (8, 2, 0.1),
            (8, 2, 0.3),
            (16, 4, 0.2),
            (16, 1, 0.05),
            (24, 24, 0.05),
            (24, 24, 1.0),
        )
    ),
}
"""Of strategies that ask and are told."""
TABLES: dict[str, tuple[Settings, ...]] = {
    "reinforce": tuple(Settings(rate) for rate in (0.03, 0.1, 0.3, 1.0, 3.0)),
    "ants": tuple(Settings(r, g) for r, g in itertools.product((0.05, 0.2, 0.5), (0.0, 0.5, 0.9))),
    "cross_entropy": tuple(
        Settings(r, 0.0, e) for r, e in itertools.product((0.1, 0.3, 0.7), (0.125, 0.25, 0.5))
    ),
}
"""Of tables, which run under `vmap` over settings and seeds."""
TUNED = (*(name for name in GRIDS if name != "random"), *TABLES)
SAMPLES = {SHORT: (20, 40), CPU: (50, 200, 400)}
"""Designs that a proxy is fitted to."""


class Landscape(NamedTuple):
    """A space and its scores.

    Attributes:
      space: mesh, preset, parts, recomputation and schedule.
      seconds: of each point in the space's order; infinite where it is no plan.
    """

    space: Space
    seconds: np.ndarray

    def measure(self, points: Sequence[Point]) -> list[float]:
        """What a search is told."""
        return [float(self.seconds[self.space.number(point)]) for point in points]


@functools.cache
def landscape(scale: str) -> Landscape:
    """Every design of the planner's space, priced."""
    if scale == SHORT:
        block, width, depth, window = Block(GAM(slots=64)), 64, 2, 64
        machine, devices, axes, remats = "v5e:4x4", 16, ("data", "tensor"), (True,)
    else:
        block, width, depth, window = Block(Attention(heads=8)), 512, 16, 512
        machine, devices, axes = "v5e:8x8", 64, ("data", "tensor", "pipe")
        remats = (False, True)
    model = LanguageModel(block, width=width, depth=depth, vocab=4096)
    run = run_of(Experiment(model, Text(window=window), TrainConfig(batch=256)))
    meshes = Meshes(axes, remats=remats, parts=64)
    found = plan(run, clusters(machine), meshes.candidates(devices, run.batch))
    known = {each.candidate: each.cost.seconds for each in found.priced}
    space = meshes.space(devices, run.batch)
    designs = (meshes.candidate(space.values(point)) for point in space.points())
    return Landscape(space, np.array([known.get(design, math.inf) for design in designs]))


def gaps(name: str, scale: str) -> list[float]:
    """For each setting of a strategy, percent that its best design is above the best of all.

    The mean over seeds. Each search has the same number of designs to measure; one that it asks
    for again is known.
    """
    land, budget, seeds = landscape(scale), BUDGET[scale], SEEDS[scale]
    least = land.seconds.min()
    if name in TABLES:
        worst = np.max(land.seconds, where=np.isfinite(land.seconds), initial=0.0)
        best = np.minimum(_tables(name, land, budget, seeds), worst)
        return (100 * (best / least - 1)).mean(axis=1).tolist()
    found = []
    for text in GRIDS[name]:
        bests = [
            search(land.space, strategy_of(text), land.measure, budget, seed).best.score
            for seed in range(seeds)
        ]
        found.append(100 * (float(np.mean(bests)) / least - 1))
    return found


def _tables(name: str, land: Landscape, budget: int, seeds: int) -> np.ndarray:
    """Best seconds [settings, seeds], all searches in one program."""
    rounds = REPEATS * budget // ROUND
    seconds, sizes = jnp.asarray(land.seconds), land.space.sizes
    strides = np.cumprod([1, *sizes[:0:-1]])[::-1].copy()

    def cost(points: jax.Array) -> jax.Array:
        return seconds[points @ jnp.asarray(strides)]

    def asked(settings: Settings, key: jax.Array) -> jax.Array:
        drawn = learn(cost, name, sizes, rounds, ROUND, settings, key)[1]
        return drawn.reshape(-1, len(sizes)) @ jnp.asarray(strides)

    grid = jax.tree.map(lambda *each: jnp.asarray(each), *TABLES[name])
    keys = jax.random.split(jax.random.key(0), seeds)
    over = jax.vmap(jax.vmap(asked, in_axes=(None, 0)), in_axes=(0, None))
    numbers = np.asarray(over(grid, keys))
    return np.apply_along_axis(lambda own: _best_of(own, land.seconds, budget), 2, numbers)


def _best_of(asked: np.ndarray, seconds: np.ndarray, budget: int) -> float:
    """The best of the first `budget` designs that are not asked for a second time."""
    first = np.sort(np.unique(asked, return_index=True)[1])[:budget]
    return float(seconds[asked[first]].min())


@functools.cache
def _gaps(name: str, scale: str) -> tuple[float, ...]:
    return tuple(gaps(name, scale))


def strategy(name: str, setting: Setting) -> Numbers:
    """Gap of a strategy's best setting, and how much worse its worst one is."""
    own = _gaps(name, setting.scale)
    return {"gap": min(own), "spread": max(own) - min(own), "settings": len(own)}


def between(setting: Setting) -> Numbers:
    """How far the best settings of the tuned strategies lie apart."""
    best = [min(_gaps(name, setting.scale)) for name in TUNED]
    return {"spread": max(best) - min(best)}


def sizes() -> Numbers:
    """How many designs of a memory controller there are."""
    documented = [4 if place in LIMITS else size for place, size in enumerate(DRAM)]
    found = (
        Space.of({str(place): list(range(size)) for place, size in enumerate(own)}).size
        for own in (DRAM, documented)
    )
    return dict(zip(("designs", "documented"), found, strict=True))


def proxy(samples: int, setting: Setting) -> Numbers:
    """Error of a cost model on designs that it has not seen, in percent of their seconds.

    Ridge regression of log seconds on one-hot codes and their products, since what a design costs
    is nearly a product of what its parts do.
    """
    land = landscape(setting.scale)
    there = np.flatnonzero(np.isfinite(land.seconds))
    there = np.random.default_rng(0).permutation(there)
    code = land.space.one_hot([land.space.point(int(number)) for number in there])
    pairs = np.triu_indices(code.shape[1])
    features = code[:, pairs[0]] * code[:, pairs[1]]
    logs = np.log(land.seconds[there])
    known, held = slice(0, samples), slice(-len(there) // 4, None)
    mean = logs[known].mean()
    matrix = features[known]
    weights = np.linalg.solve(matrix @ matrix.T + 0.01 * np.eye(samples), logs[known] - mean)
    told = np.exp(features[held] @ (matrix.T @ weights) + mean)
    error = told / land.seconds[there[held]] - 1
    return {"error": 100 * float(np.sqrt(np.mean(error**2)))}


def _searched(title: str, name: str) -> Arm:
    return Arm(title, numbers=lambda setting, seed: strategy(name, setting), exact=True)


def _proxied(place: int) -> Arm:
    def numbers(setting: Setting, seed: int) -> Numbers:
        own = SAMPLES[setting.scale]
        return proxy(own[min(place, len(own) - 1)], setting)

    counts = [str(SAMPLES[scale][min(place, 1)]) for scale in (SHORT,)]
    title = f"a proxy of {SAMPLES[CPU][place]} designs ({counts[0]} at the scale short)"
    return Arm(title, numbers=numbers, exact=True)


CLAIMS = (
    Claim(
        "The released memory controller has 1,769,472 designs",
        "printed",
        ("sizes",),
        "designs",
        source="settings file of the released code",
        figures=("1769472",),
    ),
    Claim(
        "Its documented mapper has 442,368",
        "printed",
        ("sizes",),
        "documented",
        source="documentation of the released code",
        figures=("442368",),
    ),
    *(
        Claim(
            f"The best setting of `{name}` comes within 1 % of the best design",
            "at_most",
            (name,),
            "gap",
            1.0,
            source="abstract: no family dominates once tuned",
        )
        for name in TUNED
    ),
    *(
        Claim(
            f"Settings of `{name}` lie further apart than the best settings of all strategies",
            "higher",
            (name, "between"),
            "spread",
            source="the lottery of hyper-parameters",
        )
        for name in TUNED
    ),
    Claim(
        "A proxy of the costs is better the more designs it has seen",
        "ordered",
        ("proxy-most", "proxy-more", "proxy-few"),
        "error",
        source="section on proxy models",
    ),
)

STUDY = Study(
    name="archgym",
    title="Search strategies on the planner's meshes",
    source="arXiv 2306.08888",
    page="search.md",
    arms={
        "sizes": closed("a memory controller's designs", sizes),
        **{
            name: _searched(f"{name}, its settings tuned" if name in TUNED else name, name)
            for name in (*GRIDS, *TABLES)
        },
        "between": Arm(
            "best settings of all", numbers=lambda setting, seed: between(setting), exact=True
        ),
        "proxy-few": _proxied(0),
        "proxy-more": _proxied(1),
        "proxy-most": _proxied(2),
    },
    measures={
        "gap": Measure("above the best design", "lower", "%", ".2f"),
        "spread": Measure("worst setting less best", "", "%", ".2f"),
        "settings": Measure("settings", form=".0f"),
        "designs": Measure("designs", form=",.0f"),
        "documented": Measure("as documented", form=",.0f"),
        "error": Measure("error of the proxy", "lower", "%", ".1f"),
    },
    claims=CLAIMS,
    notes=(
        "the cost is the predicted time of a step, over the planner's meshes of 64 TPU v5e",
        f"{BUDGET[CPU]} samples a search, the mean of {SEEDS[CPU]} searches with each setting",
    ),
    absent=(
        Absent(
            "A proxy's error of 0.61 %, and simulations 2,000 times as fast",
            "a simulator of DRAM, which is no part of this project",
        ),
    ),
)
