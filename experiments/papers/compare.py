"""Architectures side by side on one text: equal parameters, equal tokens, the same training.

The setting is that of `experiments/configs/compare.py`; the mixers are `experiments.contenders`.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments.configs import compare
from experiments.contenders import CONTENDERS, EVERY, Contender
from experiments.pictures import drawn, shade
from experiments.study import Arm, Claim, Measure, Setting, Study
from experiments.study.declare import CPU, SHORT
from experiments.study.found import Found
from experiments.study.sheets import heading
from gam_jax.training import Experiment

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DATA = {SHORT: "python_stdlib", CPU: "tfds:tiny_shakespeare"}
OWN_RATE = "lstm_own_rate"
"""The one arm with another optimizer: what lowered the best mixer's loss further."""
MATRIX_RATE = 2.0
OURS = "ours"
AIM = "A mixer of linear time reaches 1.50 with at most 0.82 M parameters"
PANELS = (("speed", -1), ("state_bytes", 1))
"""(measure, sign): with that sign, less is better."""


def experiment(contender: Contender, setting: Setting) -> Experiment:
    """The run of a contender; 20 steps at the short scale, in a program that compiles sooner."""
    one = compare.experiment(contender)
    one = dataclasses.replace(one, data=dataclasses.replace(one.data, name=DATA[setting.scale]))
    if setting.scale == CPU:
        return one
    train = dataclasses.replace(
        one.train, steps=20, log_every=5, validate_every=20, tokens=65_536, validation_tokens=8_192
    )
    optimizer = dataclasses.replace(one.optimizer, warmup=2)
    model = dataclasses.replace(one.model, unroll=1)  # type: ignore[call-arg]
    return dataclasses.replace(one, model=model, train=train, optimizer=optimizer)


def with_own_rate(setting: Setting) -> Experiment:
    """The LSTM's run with a higher rate of its matrices."""
    one = experiment(EVERY["lstm"], setting)
    optimizer = dataclasses.replace(one.optimizer, matrix_rate=MATRIX_RATE)
    return dataclasses.replace(one, optimizer=optimizer)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """For each point, whether no other is at most as large in both and smaller in one."""

    def beats(p: tuple[float, float], q: tuple[float, float]) -> bool:
        return p[0] <= q[0] and p[1] <= q[1] and p != q

    return [not any(beats(other, point) for other in points) for point in points]


def draw(study: Study, found: Found, path: pathlib.Path) -> None:
    """Writes a PNG: loss beside speed and beside state, with the Pareto front.

    Args:
      study: what was asked.
      found: what was found.
      path: of the PNG.
    """
    with drawn(path, 10, 4.4) as figure:
        panels = figure.subplots(1, len(PANELS), sharey=True)
        for axes, (measure, sign) in zip(panels, PANELS, strict=True):
            _panel(axes, study, found, measure, sign)
        panels[0].set_ylabel(heading(study.measures["loss"]))
        figure.suptitle("Dotted: the Pareto front; *: no other is both better and faster")


def _panel(axes: Axes, study: Study, found: Found, measure: str, sign: int) -> None:
    losses, values = found.of("loss"), found.of(measure)
    names = [name for name in study.arms if name in losses and name in values]
    if not names:
        return
    points = [(values[name].mean, losses[name].mean) for name in names]
    front = pareto_front([(sign * x, y) for x, y in points])
    line = sorted(point for point, on in zip(points, front, strict=True) if on)
    axes.plot(*zip(*line, strict=True), ":", color="#888888", zorder=0)
    middle = math.sqrt(min(x for x, _ in points) * max(x for x, _ in points))
    for i, (name, (x, y), on) in enumerate(zip(names, points, front, strict=True)):
        axes.scatter(x, y, color=shade("tab10", i % 10), s=36)
        side, away = ("right", -5) if x > middle else ("left", 5)
        place = {"xytext": (away, 4), "textcoords": "offset points", "ha": side, "fontsize": 8}
        star = " *" if on and measure == "speed" else ""
        axes.annotate(study.arms[name].title + star, (x, y), **place)
    axes.set_xscale("log")
    axes.set_xlabel(heading(study.measures[measure]))
    axes.grid(alpha=0.25, which="both")
    axes.margins(0.18)


STUDY = Study(
    name="compare",
    title="Architectures side by side",
    source="this project",
    page="compare.md",
    arms={
        **{
            name: Arm(
                contender.title,
                experiment=lambda setting, contender=contender: experiment(contender, setting),
                default=name in CONTENDERS,
            )
            for name, contender in EVERY.items()
        },
        OWN_RATE: Arm("LSTM, a rate of its own", experiment=with_own_rate, default=False),
    },
    measures={
        "loss": Measure("validation loss", "lower", "nats a token"),
        "perplexity": Measure("perplexity", "lower", form=".3f"),
        "bits_per_byte": Measure("bits per byte", "lower"),
        "speed": Measure("training speed", "higher", "tokens/s", ",.0f"),
        "parameters": Measure("parameters", form=",.0f"),
        "peak_bytes": Measure("memory of a training step", "lower", "B", ",.0f"),
        "state_bytes": Measure("recurrent state or KV cache", "lower", "B", ",.0f"),
    },
    claims=(
        Claim("Every mixer is below 1.80", "at_most", tuple(CONTENDERS), "loss", 1.8, source=OURS),
        Claim(f"{AIM}: the LSTM", "at_most", ("lstm",), "loss", 1.5, source=OURS),
        Claim(f"{AIM}: the LSTM, at its rate", "at_most", (OWN_RATE,), "loss", 1.5, source=OURS),
        Claim(f"{AIM}: GAM, written memory", "at_most", ("written_gam",), "loss", 1.5, source=OURS),
        Claim(
            "GAM with a written memory and Mamba are level with the LSTM (1.5186), within 0.006",
            "near",
            ("written_gam", "mamba"),
            "loss",
            1.5186,
            0.006,
            OURS,
        ),
        Claim(
            "A written memory in its bank's place lowers GAM's loss",
            "lower",
            ("written_gam", "gam"),
            "loss",
            source=OURS,
        ),
        Claim(
            "GAM has a lower loss than a Transformer of as many parameters",
            "lower",
            ("gam", "transformer"),
            "loss",
            source="arXiv 2509.00605, of other text and size",
        ),
        Claim(
            "Eight experts lower GAM's loss, a token's parameters being equal",
            "lower",
            ("moe_gam", "gam"),
            "loss",
            source=OURS,
        ),
        Claim(
            "Eight experts lower the loss of GAM with a written memory",
            "lower",
            ("moe_written_gam", "written_gam"),
            "loss",
            source=OURS,
        ),
        Claim(
            "A ladder's perplexity is within 3 % of the plain Transformer's",
            "times_at_most",
            ("ladder", "transformer"),
            "perplexity",
            1.03,
            source="arXiv 2501.06589, of 1.2 B and 3.5 B",
        ),
    ),
    figure=draw,
    notes=("figures and claims are of tiny Shakespeare where --data names nothing else",),
)
