"""Ways to compute a mixture's experts: products of rows that belong to different weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gam_jax.layers import MLP, MoE
from gam_jax.ops.grouped import CHOSEN, METHODS
from gam_jax.params import init_params
from gam_jax.tuning.ops import Arrays, Op, Part, Settings, Shape, Sizes, Tunable
from sharding.axes import Axes

EXPERTS, TAKEN = 8, 2
"""Of an example."""


def of_moe(layer: MoE, part: Part) -> Shape | None:
    """What experts are given; None where devices exchange tokens, or where places are bounded."""
    if part.devices("expert") > 1 or layer.capacity.factor or layer.router.by == "expert":
        return None
    return {
        "tokens": part.rows * part.tokens,
        "width": layer.width,
        "hidden": part.of(layer.ffn.size, "ffn", "hidden units of MoE.ffn"),
        "experts": layer.experts,
        "chosen": layer.chosen,
        "activation": layer.ffn.activation,
        "bias": layer.ffn.bias,
    }


def _layer(shape: Shape, method: str = "auto") -> MoE:
    names = "hidden", "activation", "bias"
    ffn = MLP(**{name: shape[name] for name in names})
    experts, chosen = shape["experts"], shape["chosen"]
    return MoE(experts, chosen, ffn, width=shape["width"], method=method)


def _ways(op: Op, backend: str) -> Sequence[Settings]:
    """What "auto" is not, and no kernel of another machine."""
    out = {"auto", CHOSEN.get(backend, "ragged"), "" if backend == "tpu" else "kernel"}
    return [{"method": name} for name in METHODS if name not in out]


def _call(shape: Shape, settings: Settings, backend: str | None) -> Callable[..., Any]:
    layer, axes = _layer(shape, settings["method"]), Axes(backend=backend)

    def run(x: Any, params: Any, weights: Any, owner: Any) -> Any:
        return layer.through_chosen(params, x, owner, weights, axes, x.shape[0])

    return run


def _every(shape: Shape, x: Any, params: Any, weights: Any, owner: Any) -> Any:
    """Every expert on every token, one expert after another."""
    ffn = _layer(shape).ffn

    @jax.checkpoint
    def one(total: Any, expert: Any) -> Any:
        number, own = expert
        share = jnp.sum(jnp.where(owner == number, weights, 0.0), axis=1, keepdims=True)
        return total + share * ffn(own, x[None])[0][0].astype(jnp.float32), None

    zeros = jnp.zeros(x.shape, jnp.float32)
    return lax.scan(one, zeros, (jnp.arange(shape["experts"]), params))[0]


def _draw(shape: Shape, dtype: str, key: Any) -> Arrays:
    """Tokens choose at random: each expert has about as many."""
    keys, tokens = jax.random.split(key, 4), shape["tokens"]
    x = jax.random.normal(keys[0], (tokens, shape["width"]), dtype)
    params = init_params(_layer(shape).table()["experts"], keys[1])
    scores = jax.random.normal(keys[2], (tokens, shape["experts"]))
    owner = lax.top_k(scores, shape["chosen"])[1].astype(jnp.int32)
    weights = jax.nn.softmax(jax.random.normal(keys[3], owner.shape))
    return x, jax.tree.map(lambda p: p.astype(dtype), params), weights, owner


def _example(sizes: Sizes) -> Shape:
    numbers = {"experts": EXPERTS, "chosen": TAKEN, "activation": "swiglu", "bias": False}
    tokens, width = sizes.rows * sizes.tokens, sizes.width
    return {"tokens": tokens, "width": width, "hidden": 4 * width, **numbers}


MIXTURE = Tunable(
    name="experts",
    shapes={MoE: of_moe},
    default={"method": "auto"},
    ways=_ways,
    call=_call,
    plainest=_every,
    draw=_draw,
    differentiated=3,
    examples={"experts": _example},
    words={"method": METHODS},
)
