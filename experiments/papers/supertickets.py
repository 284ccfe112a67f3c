"""Pruning while a net is trained (SuperTickets): one threshold, masks that come back, and when.

Source: arXiv 2207.03677. The search by scales of channels in a vision net is not here: what is
asked is what masks do, what taking a channel away changes, and whether pruning in steps while
training beats training and then pruning.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.study import Absent, Arm, Claim, Measure, Setting, Study
from experiments.study.declare import CPU, SHORT, Numbers
from gam_jax import units
from gam_jax.data.text import Text
from gam_jax.layers import GAM, MLP, Block
from gam_jax.models import LanguageModel, Masked
from gam_jax.models.masked import MASKS, pruned, share_at
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.params import init_params
from gam_jax.training.state import init_state
from gam_jax.training.step import make_eval_step, make_train_step
from sharding.layout import Layout
from sharding.mesh import make_mesh

MODEL = Masked(LanguageModel(Block(GAM(slots=64), MLP(hidden=256)), width=64, depth=2, vocab=256))
STEPS = {SHORT: 10, CPU: 400}
MOST = {"80": 0.8, "90": 0.9}
DURING, ONCE, AFTER = "during", "once", "after"
WAYS = {
    DURING: "by tenths while trained",
    ONCE: "at once at three quarters",
    AFTER: "after training",
}
ROWS, TOKENS = 16, 128


def masks(setting: Setting, seed: int) -> Numbers:
    """Counts, the schedule, and gradients of what is masked."""
    params = MODEL.init_params(jax.random.key(0))
    size = sum(np.size(x) for x in jax.tree.leaves(params[MASKS]))
    off = 0
    for share in ("0.3", "0.7", "0.95"):
        found = jax.tree.leaves(pruned(params, float(share))[MASKS])
        wanted = size - math.floor(Fraction(share) * size)
        off = max(off, abs(sum(int(np.sum(x)) for x in found) - wanted))
    told = [share_at(epoch, 25, 0.9) for epoch in range(1, 351)]
    right = all(told[25 * i - 1] == min(round(0.1 * i, 1), 0.9) for i in range(1, 15))
    ids = np.random.default_rng(0).integers(0, 256, (2, 17)).astype(np.int32)
    batch = {"inputs": ids[:, :-1], "targets": ids[:, 1:], "weights": np.ones((2, 16), np.float32)}
    half = pruned(params, 0.5)

    def loss(weights: Any, masks: Any) -> Any:
        return MODEL.objective({**weights, MASKS: masks}, batch)[0]

    weights = {name: x for name, x in half.items() if name != MASKS}
    whole = jax.tree.map(jnp.ones_like, half[MASKS])
    slope = jax.jit(jax.grad(loss))
    under, free = (_masked(slope(weights, m), half[MASKS]) for m in (half[MASKS], whole))
    return {
        "count": float(off),
        "schedule": float(not right),
        "under": float(np.max(np.abs(under))),
        "free": float(np.mean(free != 0)),
    }


def _masked(grads: Any, masks: Any) -> np.ndarray:
    """Gradients of what the masks leave out."""
    if not isinstance(masks, dict):
        return np.asarray(grads)[~np.asarray(masks)]
    return np.concatenate([_masked(grads[name], masks[name]) for name in masks])


def channels(activation: str, setting: Setting, seed: int) -> Numbers:
    """A hidden channel that reads nothing, taken away: what changes beside act(b) w_out."""
    layer = MLP(width=6, hidden=5, activation=activation)
    params = {**init_params(layer.table(), jax.random.key(0))}
    unit, gone = layer.unit_table()["hidden"], 2
    params["w_in"] = params["w_in"].at[:, gone].set(0.0)
    params["b_in"] = params["b_in"].at[gone].set(-0.7)
    x = jax.random.normal(jax.random.key(1), (3, 4, 6))
    kept = np.delete(np.arange(5), gone)
    smaller = layer.with_units("hidden", 4)
    change = layer(params, x)[0] - smaller(units.keep(params, unit, kept), x)[0]
    act = {"relu": jax.nn.relu, "silu": jax.nn.silu}[activation]
    constant = act(jnp.float32(-0.7)) * params["w_out"][:, gone]
    return {
        "change": float(jnp.max(jnp.abs(change))),
        "beside": float(jnp.max(jnp.abs(change - constant))),
    }


def share_after(step: int, steps: int, most: float, way: str) -> float | None:
    """The share that is left out after a step, as it begins to hold; None where masks stay.

    By tenths, evenly in the first three quarters of the steps; or the most at once, when the tenths
    have come to it. Either way masks are chosen again at the same steps until the end. Or the most
    at once after the last step.
    """
    if way == AFTER:
        return most if step == steps else None
    every = max(1, round(0.75 * steps / round(10 * most)))
    if step % every:
        return None
    share = share_at(step, every, most)
    return share if way == DURING or share == most else None


def trained(most: float, way: str, setting: Setting, seed: int) -> Numbers:
    """Validation loss of the pruned model, and the steps that it was trained at the most."""
    steps = setting.steps or STEPS[setting.scale]
    text = Text(name=setting.data or "python_stdlib", tokenizer="bytes", window=TOKENS)
    if setting.data_dir:
        text = Text(name=text.name, tokenizer="bytes", window=TOKENS, dir=setting.data_dir)
    data, layout = text.open(), Layout(make_mesh(devices=jax.devices()[:1]))
    config = OptimizerConfig(3e-3, warmup=0.05)
    optimizer = make_optimizer(config, steps, MODEL.table())
    step = make_train_step(MODEL, optimizer, layout)
    state = init_state(MODEL, optimizer, layout, seed)
    stream = data.train_stream(ROWS, seed)
    sparse, full = 0, False
    for number in range(1, steps + 1):
        state, _ = step(state, next(stream))
        sparse += full
        share = share_after(number, steps, most, way)
        if share is not None:
            state = state.replace(params=pruned(state.params, share))
            full = share == most
    stream.close()
    params = state.params
    scored = make_eval_step(MODEL, layout)
    batches = [batch for _, batch in zip(range(8), data.validation_stream("", ROWS), strict=False)]
    sums = [scored(params, batch)["loss"] for batch in batches]
    kept = jax.tree.leaves(params[MASKS])
    share = 1 - sum(int(np.sum(x)) for x in kept) / sum(x.size for x in kept)
    loss = sum(float(total) for total, _ in sums) / sum(float(count) for _, count in sums)
    return {"loss": loss, "left_out": 100 * share, "sparse": float(sparse)}


STUDY = Study(
    name="supertickets",
    title="Pruning while a net is trained",
    source="arXiv 2207.03677",
    page="growing.md",
    arms={
        "masks": Arm("masks", numbers=masks, exact=True),
        "relu": Arm(
            "a dead channel, act(b) = 0", numbers=functools.partial(channels, "relu"), exact=True
        ),
        "silu": Arm(
            "a dead channel, act(b) not 0",
            numbers=functools.partial(channels, "silu"),
            exact=True,
        ),
        **{
            f"{way}-{name}": Arm(
                f"pruned {words}, {name} %", numbers=functools.partial(trained, most, way)
            )
            for name, most in MOST.items()
            for way, words in WAYS.items()
        },
    },
    measures={
        "loss": Measure("validation loss", "lower", "nats a token"),
        "left_out": Measure("weights left out", form=".1f", unit="%"),
        "sparse": Measure("steps trained with all of them left out", form=".0f"),
        "count": Measure("weights too many or few", "lower", form=".0f"),
        "schedule": Measure("shares that are wrong", "lower", form=".0f"),
        "under": Measure("largest gradient under a mask", "lower", form=".2g"),
        "free": Measure("share with a gradient once masks are off", form=".3f"),
        "change": Measure("largest change of the output", "lower", form=".2g"),
        "beside": Measure("beside the constant", "lower", form=".2g"),
    },
    claims=(
        Claim("n - floor(r n) weights are kept", "at_most", ("masks",), "count", 0, source="code"),
        Claim(
            "Shares are 10, 20, ... 90 % at epochs 25, 50, ... 225",
            "at_most",
            ("masks",),
            "schedule",
            0,
            source="code",
        ),
        Claim("Masked weights have gradient 0", "at_most", ("masks",), "under", 0, source="code"),
        Claim(
            "and have one once masks are off",
            "at_least",
            ("masks",),
            "free",
            0.9,
            source="section 3.3: reactivation",
        ),
        Claim(
            "A dead channel can be taken away where act(b) = 0",
            "at_most",
            ("relu",),
            "change",
            1e-6,
            source="derived",
        ),
        Claim(
            "elsewhere the output is off by more than rounding",
            "at_least",
            ("silu",),
            "change",
            1e-3,
            source="derived",
        ),
        Claim(
            "by the constant act(b) w_out, which the released code leaves out",
            "at_most",
            ("silu",),
            "beside",
            1e-6,
            source="derived",
        ),
        *(
            Claim(
                f"At {name} % left out, by tenths beats at once, with as many steps afterwards",
                "lower",
                (f"{DURING}-{name}", f"{ONCE}-{name}"),
                "loss",
                source="after the paper's claim that pruning while training beats pruning after it",
            )
            for name in MOST
        ),
    ),
    notes=(
        "all ways take 400 steps on the same rows; by tenths and at once 80 % are left out from "
        "step 304 on and 90 % from 297, masks are chosen again every 38 or 33 steps, the last time "
        "at 380 and 396, and training goes on",
        "what is pruned after training is not trained any more: no claim compares it",
        "channels are not searched: only weights are left out",
    ),
    absent=(
        Absent("Tickets that carry over between ImageNet, Cityscapes, ADE20K and COCO", "images"),
    ),
)
