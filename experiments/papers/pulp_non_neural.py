"""Classical predictors on eight small cores (PULP): what is split, what is sent, what is left over.

Source: arXiv 2107.09448, of which the abstract was read. Its cores' rates are not told, and stay
blank in the profile; the six predictors are `gam_jax.models.classical`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from experiments.study import Absent, Arm, Claim, Measure, Study, as_printed, closed
from experiments.study.declare import Numbers
from gam_jax.models import classical
from gam_jax.planning import profile
from sharding.messages import messages_of

CORES = 8
ASKED, FEATURES, CLASSES, ROWS, NEAR, STEPS, NODES = 16, 64, 10, 80, 5, 3, 15
"""Sizes of the programs that are counted."""


def amdahl(serial: float, cores: int) -> float:
    """Times faster on so many cores, where a part of the time is not split."""
    return 1 / (serial + (1 - serial) / cores)


def serial_part(faster: float, cores: int) -> float:
    """The part of the time that explains how much faster it is: the inverse of `amdahl`."""
    return (cores / faster - 1) / (cores - 1)


def speed() -> Numbers:
    """Of the printed mean of 7.04 times on eight cores."""
    own = profile("pulp_8.pulp_non_neural")
    cores, faster = int(own.value("cores")), own.value("speedup")
    serial = serial_part(faster, cores)
    return {
        "serial": 100 * serial,
        "faster": amdahl(round(serial, 4), cores),
        "efficiency": 100 * faster / cores,
        "sixteen": amdahl(serial, 16),
    }


def _array(*shape: int, dtype: type = jnp.float32) -> Any:
    """The shape of an argument."""
    return jax.ShapeDtypeStruct(shape, dtype)


def _trees() -> classical.Trees:
    whole, index = functools.partial(_array, CORES, NODES), jnp.int32
    return classical.Trees(
        whole(dtype=index), whole(), whole(dtype=index), whole(dtype=index), whole(CLASSES)
    )


def programs() -> dict[str, tuple[Callable, tuple, tuple, int]]:
    """Name -> (function, arguments, what splits them, numbers that a device should send of)."""
    asked, weights, bias = _array(ASKED, FEATURES), _array(FEATURES, CLASSES), _array(CLASSES)
    columns, means = P(None, "data"), _array(CLASSES, FEATURES)
    rows, labels = _array(ROWS, FEATURES), _array(ROWS, dtype=jnp.int32)
    scores = ASKED * CLASSES

    def nearest(asked, rows, labels, axis):
        return classical.neighbours(asked, rows, labels, NEAR, CLASSES, axis)

    def kmeans(rows, centres, axis):
        return classical.fit_kmeans(rows, centres, STEPS, axis)

    def forest(asked, trees, axis):
        return classical.forest(asked, trees, 3, axis)

    linear = (asked, weights, bias), (columns, P("data"), P()), scores
    return {
        "svm": (classical.linear_svm, *linear),
        "logistic": (classical.logistic_regression, *linear),
        "bayes": (
            classical.naive_bayes,
            (asked, means, means, bias),
            (columns, columns, columns, P()),
            scores,
        ),
        "neighbours": (
            nearest,
            (asked, rows, labels),
            (P(), P("data"), P("data")),
            2 * ASKED * NEAR,
        ),
        "kmeans": (
            kmeans,
            (rows, means),
            (P("data"), P()),
            STEPS * CLASSES * (FEATURES + 1),
        ),
        "forest": (forest, (asked, _trees()), (P(), P("data")), scores),
    }


def sent(name: str) -> Numbers:
    """Numbers that each of eight devices puts into collectives, counted in the program."""
    function, arguments, specs, formula = programs()[name]
    mesh = AbstractMesh((CORES,), ("data",))
    split = jax.shard_map(
        lambda *arrays: function(*arrays, axis="data"), mesh=mesh, in_specs=specs, out_specs=P()
    )
    found = messages_of(split, *arguments)
    counted = sum(message.size * message.count for message in found) / 4
    return {"sent": counted, "off": counted - formula}


TITLES = {
    "svm": "linear support vector machine",
    "logistic": "logistic regression",
    "bayes": "Gaussian naive Bayes",
    "neighbours": "nearest neighbours",
    "kmeans": "k-means, 3 steps",
    "forest": "forest",
}
ARMS: dict[str, Arm] = {
    "cores": closed("eight cores", speed),
    **{name: closed(title, lambda n=name: sent(n)) for name, title in TITLES.items()},
}
CLAIMS = (
    Claim(
        "A part of 0.0195 that is not split gives 7.04 times on eight cores",
        "printed",
        ("cores",),
        "faster",
        source="the abstract",
        figures=("7.04",),
    ),
    Claim(
        "7.04 times on eight cores are 88 %",
        "printed",
        ("cores",),
        "efficiency",
        source="the abstract",
        figures=("88",),
    ),
    Claim(
        "Programs send what their partitions say: N C scores, 2 N k neighbours, K (D + 1) sums",
        "near",
        tuple(TITLES),
        "off",
        source="ours",
    ),
)

STUDY = Study(
    name="pulp-non-neural",
    title="Classical predictors on eight small cores",
    source="arXiv 2107.09448",
    page="machines.md",
    arms=ARMS,
    measures={
        "serial": Measure("not split", "lower", "%", ".2f"),
        "faster": Measure("times faster", "higher", form=".2f"),
        "efficiency": Measure("efficiency", "higher", "%", ".0f"),
        "sixteen": Measure("on sixteen", "higher", form=".2f"),
        "sent": Measure("numbers put into collectives", "lower", form=",.0f"),
        "off": Measure("off the formula", form=".0f"),
    },
    published=as_printed(CLAIMS),
    claims=CLAIMS,
    notes=(
        f"{ASKED} rows asked, {FEATURES} features, {CLASSES} classes or centres, {NEAR} neighbours",
    ),
    absent=(
        Absent(
            "Emulated floating point 1.61 times faster, a native unit up to 32.09 times, a "
            "Cortex-M4 12.87 times slower; energy",
            "measured on GAP8 and PULP-OPEN; no rate of a core is printed",
        ),
    ),
)
