"""Nets and the devices that they run on, searched at once (NASAIC).

Source: arXiv 2002.04116. Its chips, their energy and area are not here. Two models are trained at
once on two parts of 16 TPUs: what is chosen are both nets, the devices of each and what these are
used for, and the cost is `gam_jax.planning`'s. Nets are trained here, if no limit is exceeded.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.pictures import drawn, shade
from experiments.planned import run_of
from experiments.search.cosearch import (
    PENALTY,
    STYLES,
    Cosearch,
    Landscape,
    Price,
    best_of,
    nets_first,
    prices,
)
from experiments.study import Absent, Arm, Claim, Measure, Setting, Study, as_printed, closed
from experiments.study.declare import CPU, SHORT, Numbers
from experiments.study.found import Found
from gam_jax.data import Digits, Text
from gam_jax.layers import GAM, MLP, Attention, Block, Layer
from gam_jax.models import ImageClassifier, LanguageModel
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.search import Limit, Space, penalty, search, strategy_of
from gam_jax.training import Experiment, TrainConfig
from gam_jax.training.state import init_state
from gam_jax.training.step import make_eval_step, make_train_step
from sharding.layout import Layout
from sharding.mesh import make_mesh

TASKS = ("bytes", "digits")
SHAPES = {1: "v5e:1x1", 2: "v5e:1x2", 4: "v5e:2x2", 8: "v5e:2x4"}
"""What a part of the 16 devices may be."""
STEPS = {SHORT: 2, CPU: 120}
TRIALS = {SHORT: 60, CPU: 1000}
"""Designs that a search measures."""
TIGHT = 25
"""Limits are this percentile of each figure, over all designs."""
STRATEGIES = {
    "table": "table:rule=reinforce,count=16,rate=0.3",
    "evolve": "evolve:pool=32,parents=8",
    "random": "random",
}
ROWS, TOKENS = {"bytes": 16, "digits": 64}, 64


@functools.cache
def nets(scale: str) -> dict[str, dict[str, Experiment]]:
    """For each task, its nets by name."""
    sizes = ((16, 1), (32, 1)) if scale == SHORT else ((32, 1), (64, 1), (32, 2))
    kinds: dict[str, Callable[[], Layer]] = {
        "attention": lambda: Attention(heads=8),
        "GAM": lambda: GAM(slots=32),
    }
    found: dict[str, dict[str, Experiment]] = {task: {} for task in TASKS}
    for (kind, make), (width, depth) in itertools.product(kinds.items(), sizes):
        name = f"{kind} {width} x {depth}"
        block = Block(make(), MLP(expansion=2))
        models = {
            "bytes": LanguageModel(block, width, depth, vocab=256),
            "digits": ImageClassifier(block, width, depth, side=8, classes=10, patch=2),
        }
        data = {
            "bytes": Text("python_stdlib", tokenizer="bytes", window=TOKENS),
            "digits": Digits(),
        }
        for task in TASKS:
            train = TrainConfig(steps=STEPS[scale], batch=ROWS[task])
            found[task][name] = Experiment(models[task], data[task], train=train)
    return found


@functools.cache
def landscape(scale: str) -> Landscape:
    """Every design of two nets on two parts."""
    tasks = nets(scale)
    costs = {
        task: {name: prices(run_of(one), SHAPES) for name, one in own.items()}
        for task, own in tasks.items()
    }
    values: dict[str, list[Any]] = {task: list(tasks[task]) for task in TASKS}
    values["devices"] = [list(both) for both in itertools.product(SHAPES, repeat=2)]
    values |= {f"{task} style": list(STYLES) for task in TASKS}
    space = Space.of(values)
    figures = Landscape(space, costs, ()).figures().values()
    limits = []
    for name in next(iter(figures)):
        own = [each[name] for each in figures]
        limits.append(Limit(name, float(np.percentile(own, TIGHT)), max(own)))
    return Landscape(space, costs, tuple(limits))


@functools.cache
def _program(task: str, name: str, scale: str) -> tuple[Any, ...]:
    """Model, optimizer and steps of a net; all seeds share them."""
    one = nets(scale)[task][name]
    layout = Layout(make_mesh(devices=jax.devices()[:1]))
    config = OptimizerConfig(3e-3, warmup=0.1)
    optimizer = make_optimizer(config, one.train.steps, one.model.table())
    step, scored = make_train_step(one.model, optimizer, layout), make_eval_step(one.model, layout)
    return one, optimizer, layout, step, scored


@functools.cache
def _data(task: str, name: str, folder: str, scale: str) -> Any:
    data: Any = next(iter(nets(scale)[task].values())).data
    if task == "bytes":
        data = dataclasses.replace(data, name=name or data.name, dir=folder or data.dir)
    return data.open()


@functools.cache
def accuracy(net: tuple[str, str], setting: Setting, seed: int) -> float:
    """The validation accuracy of a net that is trained now."""
    one, optimizer, layout, step, scored = _program(*net, setting.scale)
    data = _data(net[0], setting.data, setting.data_dir, setting.scale)
    stream = data.train_stream(one.train.batch, seed)
    state = init_state(one.model, optimizer, layout, seed)
    for _ in range(min(setting.steps or one.train.steps, one.train.steps)):
        state, _ = step(state, next(stream))
    stream.close()
    batches = itertools.islice(data.validation_stream("", 64), 8)
    sums = [scored(state.params, batch)["accuracy"] for batch in batches]
    return sum(float(right) for right, _ in sums) / sum(float(count) for _, count in sums)


@functools.cache
def optimum(setting: Setting, seed: int) -> float:
    """Of all designs; nets that no search has asked for are trained for it."""
    return best_of(landscape(setting.scale), lambda net: accuracy(net, setting, seed))


def searched(strategy: str, setting: Setting, seed: int) -> Numbers:
    """A search, and what of the best reward it has found."""
    land = landscape(setting.scale)
    own = Cosearch(land, lambda net: accuracy(net, setting, seed))
    trials = TRIALS[setting.scale]
    chosen = strategy_of(STRATEGIES[strategy])
    found = search(land.space, chosen, own.measure, trials, seed, batch=16)
    reward = -found.best.score
    return {
        **land.told(found.best.point),
        "reward": reward,
        "share": 100 * reward / optimum(setting, seed),
        "trained": len(own.trained),
        "above": own.above,
        "stopped": 100 * own.stopped / len(found.results),
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


PLANTED = Landscape(
    Space.of(
        {
            "bytes": ["small", "large"],
            "digits": ["small", "large"],
            "devices": [[a, b] for a in (1, 2) for b in (1, 2)],
            "bytes style": ["data"],
            "digits style": ["data"],
        }
    ),
    {
        task: {
            "small": {(1, "data"): Price(1.0, 1.0, 1.0), (2, "data"): Price(0.6, 1.2, 1.0)},
            "large": {(1, "data"): Price(3.0, 3.0, 2.0), (2, "data"): Price(1.6, 3.2, 2.0)},
        }
        for task in TASKS
    },
    (Limit("seconds", 2.0, 4.0), Limit("device_seconds", 5.0, 9.0), Limit("held", 2.0, 3.0)),
)
"""Two large nets exceed a limit on any devices; one large net and one small one do not."""
PLANTED_ACCURACY = {"small": 0.80, "large": 0.84}


def planted(together: bool) -> Numbers:
    """The planted case, nets and devices at once or one after the other."""

    def accuracy(net: tuple[str, str]) -> float:
        return PLANTED_ACCURACY[net[1]]

    if not together:
        point, reward = nets_first(PLANTED, accuracy)
        return {**PLANTED.told(point), "reward": reward}
    own = Cosearch(PLANTED, accuracy)
    found = search(PLANTED.space, strategy_of("all"), own.measure, PLANTED.space.size)
    told = PLANTED.told(found.best.point)
    return {**told, "reward": -found.best.score, "above": own.above}


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


ROW = {
    "apart": {"first": 94.17, "second": 83.94, "cycles": 9.45e5, "energy": 3.56e9, "area": 4.71e9},
    "together": {
        "first": 92.85,
        "second": 83.74,
        "cycles": 7.77e5,
        "energy": 1.43e9,
        "area": 2.03e9,
    },
}
"""Workload 1, one after the other and at once: accuracy and IoU in %, cycles, nJ, square µm."""


def row() -> Numbers:
    """What the abstract says of that row."""
    apart, together = ROW["apart"], ROW["together"]
    lost = [apart[name] - together[name] for name in ("first", "second")]
    return {
        "latency": 100 * (1 - together["cycles"] / apart["cycles"]),
        "energy": apart["energy"] / together["energy"],
        "area": apart["area"] / together["area"],
        "lost": sum(lost) / 2,
    }


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
        "designs": Measure("designs", form=",.0f"),
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
                f"Search by {name} comes within 1 % of the best of all designs",
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
        f"a search measures {TRIALS[CPU]:,} designs; a net is trained once a search, for "
        f"{STEPS[CPU]} steps",
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
