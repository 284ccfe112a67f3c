"""Times of products learned from measured ones (GEMM on Ada): forests, rooflines, and both.

Source: arXiv 2411.16954 and its repository. It trains a random forest on 16,128 rows of 36 shapes
and splits rows at random, so that every shape that is tested was trained on.
"""

from __future__ import annotations

import functools
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.study import Absent, Arm, Claim, Measure, Setting, Study, as_printed, closed
from experiments.study.declare import CPU, SHORT, Numbers
from gam_jax.planning import profile
from gam_jax.planning.calibrate import Errors, Roofline, calibrate, errors, reached
from sharding.errors import UserError

M, N_AND_K = (512, 1024, 2048, 128_256), (512, 1024, 2048)
SHAPES = np.array(list(itertools.product(M, N_AND_K, N_AND_K)), float)
REPEATS = {SHORT: 10, CPU: 28}
"""Scale -> rows of each shape."""
TREES, DEPTH, FOLDS = {SHORT: 10, CPU: 100}, 6, 5
"""A forest's trees by scale, their depth as in the paper, and parts of which one is left out."""
HERE = {SHORT: (15, 128), CPU: (200, 1024)}
"""Scale -> shapes that are measured here, and their longest side."""
TURNS = 9
"""Of each product; the fastest counts, since other programs can only slow it down."""
TILE, NOISE = 128, 0.05
METHODS = ("roofline", "forest", "ours")


def features(sizes: np.ndarray) -> np.ndarray:
    """The paper's: m, n, k, operations, bytes, and their ratio."""
    m, n, k = sizes.T
    work, moved = 2 * m * n * k, 4 * (m * k + k * n + m * n)
    return np.stack([m, n, k, work, moved, work / moved], -1)


def forest(setting: Setting, sizes: np.ndarray, seconds: np.ndarray):
    """A fitted forest of regression trees."""
    try:
        from sklearn.ensemble import RandomForestRegressor
    except ImportError as error:
        raise UserError(
            "study gemm-ada: forests need scikit-learn: pip install scikit-learn"
        ) from (error)
    made = RandomForestRegressor(TREES[setting.scale], max_depth=DEPTH, random_state=42)
    return made.fit(features(sizes), seconds)


def synthetic(setting: Setting, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the paper's shapes: a known roofline, whole tiles on whole cores, and noise."""
    own = profile("rtx4070")
    roofline = Roofline(own.flops("float32"), own.bandwidth)
    sizes = np.repeat(SHAPES, REPEATS[setting.scale], 0)
    tiles = sizes[:, 0] * sizes[:, 1] / TILE**2 / own.value("cores")
    noise = np.random.default_rng(seed).normal(0, NOISE, len(sizes))
    return sizes, roofline.seconds(sizes) * np.ceil(tiles) / tiles * np.exp(noise)


def determined(predicted: np.ndarray, measured: np.ndarray) -> float:
    """R squared."""
    return 1 - float(
        np.sum((measured - predicted) ** 2) / np.sum((measured - measured.mean()) ** 2)
    )


def split(setting: Setting, seed: int, by_shape: bool) -> Numbers:
    """R squared of a forest, a fifth of rows or of shapes left out at a time."""
    sizes, seconds = synthetic(setting, seed)
    draw = np.random.default_rng(seed)
    shape = np.unique(sizes, axis=0, return_inverse=True)[1].reshape(-1)
    parts = draw.permutation(len(SHAPES))[shape] if by_shape else draw.permutation(len(sizes))
    predicted = np.zeros(len(sizes))
    for fold in range(FOLDS):
        out = parts % FOLDS == fold
        predicted[out] = forest(setting, sizes[~out], seconds[~out]).predict(features(sizes[out]))
    return {"r2": determined(predicted, seconds)}


def outside(setting: Setting, seed: int) -> Numbers:
    """A forest that has seen all but the largest m: its largest answer there, and the truth."""
    sizes, seconds = synthetic(setting, seed)
    out = sizes[:, 0] == max(M)
    answers = forest(setting, sizes[~out], seconds[~out]).predict(features(sizes[out]))
    most = seconds[~out].max()
    return {"outside": answers.max() / most, "truth": seconds[out].max() / most}


@functools.cache
def measured(scale: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random shapes multiplied on this machine in float32: sizes [N, 3] and seconds [N]."""
    count, longest = HERE[scale]
    draw = np.random.default_rng(seed)
    sizes = np.exp(draw.uniform(np.log(16), np.log(longest), (count, 3))).astype(int)
    product = jax.jit(jnp.matmul)
    seconds = []
    for m, n, k in sizes:
        a, b = (jax.device_put(np.ones(shape, np.float32)) for shape in ((m, k), (k, n)))
        jax.block_until_ready(product(a, b))
        turns = []
        for _ in range(TURNS):
            begin = time.perf_counter()
            jax.block_until_ready(product(a, b))
            turns.append(time.perf_counter() - begin)
        seconds.append(min(turns))
    return sizes.astype(float), np.array(seconds)


@functools.cache
def here(scale: str, seed: int) -> dict[str, Errors]:
    """Errors of each way to predict, on shapes that it was not fitted to."""
    sizes, seconds = measured(scale, seed)
    found = {name: np.zeros(len(sizes)) for name in METHODS}
    for fold in range(FOLDS):
        out = np.arange(len(sizes)) % FOLDS == fold
        seen, times = sizes[~out], seconds[~out]
        found["roofline"][out] = reached(seen, times).seconds(sizes[out])
        found["forest"][out] = forest(Setting(scale), seen, times).predict(features(sizes[out]))
        found["ours"][out] = calibrate(seen, times).seconds(sizes[out])
    return {name: errors(predicted, seconds) for name, predicted in found.items()}


def _here(method: str, title: str) -> Arm:
    def numbers(setting: Setting, seed: int) -> Numbers:
        return {"mape": 100 * here(setting.scale, seed)[method].mean}

    return Arm(f"products here, {title}", numbers=numbers)


def readme() -> Numbers:
    """A row of the repository, 512 cubed in 0.04352 ms, and the number of rows.

    Its column "Energy" is 1000 x GFLOP/s / W; energy is power x time.
    """
    seconds, column = 0.04352e-3, 87_902.151
    rate = 2 * 512**3 / seconds / 1e9
    power = 1000 * rate / column
    rows = len(SHAPES) * 4 * 7 * 4 * 4
    return {"rate": rate, "rows": rows, "energy": 1e3 * power * seconds}


ARMS = {
    "readme": closed("the repository's sample row", readme),
    "rows": Arm("forest, rows left out", numbers=lambda s, seed: split(s, seed, False)),
    "shapes": Arm("forest, shapes left out", numbers=lambda s, seed: split(s, seed, True)),
    "outside": Arm("forest, beyond what it saw", numbers=outside),
    "roofline": _here("roofline", "roofline"),
    "forest": _here("forest", "forest"),
    "ours": _here("ours", "roofline x regression"),
}
CLAIMS = (
    Claim(
        "By random rows a forest is near perfect (printed: 0.98)",
        "at_least",
        ("rows",),
        "r2",
        0.98,
        source="the abstract",
    ),
    Claim(
        "With whole shapes left out it is lower", "lower", ("shapes", "rows"), "r2", source="ours"
    ),
    Claim(
        "Beyond what it saw, a forest answers no more than it saw",
        "at_most",
        ("outside",),
        "outside",
        1.0,
        source="exact",
    ),
    Claim(
        "Roofline x regression is better than the roofline alone, on new shapes here",
        "lower",
        ("ours", "roofline"),
        "mape",
        source="ours",
    ),
    Claim("and better than a forest alone", "lower", ("ours", "forest"), "mape", source="ours"),
    Claim(
        "The sample row's 6,168.094 'TFlops' are GFLOP/s",
        "printed",
        ("readme",),
        "rate",
        source="the repository",
        figures=("6168.094",),
    ),
    Claim("16,128 rows", "printed", ("readme",), "rows", source="the abstract", figures=("16128",)),
)

STUDY = Study(
    name="gemm-ada",
    title="Times of products, learned",
    source="arXiv 2411.16954",
    page="machines.md",
    arms=ARMS,
    measures={
        "r2": Measure("R squared", "higher", form=".4f"),
        "outside": Measure("largest answer / largest seen", "", form=".3f"),
        "truth": Measure("truth / largest seen", "", form=".1f"),
        "mape": Measure("mean error", "lower", "%", ".1f"),
        "rate": Measure("rate", "higher", "GFLOP/s", ",.3f"),
        "energy": Measure("energy", "lower", "mJ", ".2f"),
        "rows": Measure("rows", form=",.0f"),
    },
    published=as_printed(CLAIMS),
    claims=CLAIMS,
    notes=("synthetic rows: the roofline of an RTX 4070 in whole tiles of 128, with 5 % noise",),
    absent=(
        Absent(
            "Mean error of 15.57 % in time and R squared of 0.78 in power; tiles up to 3.2 times "
            "faster",
            "measured on an RTX 4070; the table of CUTLASS runs cannot be fetched",
        ),
    ),
)
