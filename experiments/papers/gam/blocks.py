"""Table 2: time and memory of a block by length, GAM against the Transformer."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from experiments.papers.gam.arms import transformer
from experiments.papers.gam.protocol import SCALES, Scale
from experiments.study import Arm, Setting
from experiments.study.declare import Numbers
from gam_jax.layers import GAM, Block, Layer
from gam_jax.layers.base import WHOLE, known
from gam_jax.ops.linear import linear
from gam_jax.params import Param, Params, Table, fan_in, init_params
from sharding.axes import Axes


@dataclasses.dataclass(frozen=True)
class ScoresAtOnce(Layer):
    """The paper's attention: all T x T scores in memory; one device, whole sequences alone."""

    width: int | None = None
    heads: int = 8

    @property
    def streams(self) -> bool:
        """It has no cache."""
        return False

    def table(self) -> Table:
        """w_in [D, 3 D] and its bias, w_out [D, D] and its bias."""
        width = known(self.width, "width", self)
        init = fan_in(width)
        return {
            "w_in": Param((width, 3 * width), ("embed", None), init),
            "b_in": Param((3 * width,), (None,), init, decay=False),
            "w_out": Param((width, width), (None, "embed"), init),
            "b_out": Param((width,), ("embed",), init, decay=False),
        }

    def __call__(
        self,
        params: Params,
        x: Float[Array, "B T D"],
        carry: Any = None,
        axes: Axes = WHOLE,
        *,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], tuple[()]]:
        """softmax(q k^T / sqrt(K)) v, causal."""
        batch, tokens, width = x.shape
        flat = linear(x.reshape(-1, width), params["w_in"], params["b_in"])
        q, k, v = jnp.split(flat.reshape(batch, tokens, self.heads, -1), 3, axis=3)
        scores = jnp.einsum("bthk,bshk->bhts", q, k) / math.sqrt(width // self.heads)
        scores = jnp.where(jnp.tri(tokens, dtype=bool), scores, -jnp.inf)
        mixed = jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(scores.astype(jnp.float32)), v)
        mixed = mixed.astype(x.dtype).reshape(-1, width)
        return linear(mixed, params["w_out"], params["b_out"]).reshape(x.shape), ()


def blocks(scale: Scale) -> dict[str, Layer]:
    """GAM, the paper's Transformer, and ours, whose attention never holds all scores."""
    at_once = Block(ScoresAtOnce(heads=scale.heads), width=scale.width)
    longest = dataclasses.replace(scale, window=max(scale.lengths))
    in_blocks: Any = transformer(longest)
    return {
        "gam": Block(GAM(slots=scale.slots, kernel=3), width=scale.width),
        "at_once": at_once,
        "in_blocks": dataclasses.replace(in_blocks, width=scale.width),
    }


TITLES = {
    "gam": "GAM",
    "at_once": "Transformer, all scores at once",
    "in_blocks": "Transformer, in blocks",
}


def block_arms(lengths: Sequence[int]) -> dict[str, Arm]:
    """Forward and backward of each block at each length, as the paper times it.

    In bfloat16, on CPU in float32. Bytes are those that the compiler says a step needs, arguments
    and temporaries; a block whose bytes do not fit is not timed.
    """
    return {
        f"{name}-{tokens}": Arm(
            f"{title}, {tokens:,} tokens",
            numbers=functools.partial(_needed, name, tokens),
            timed=functools.partial(_calls, name, tokens),
            exact=True,
            default=False,
        )
        for tokens in lengths
        for name, title in TITLES.items()
    }


def _needed(name: str, tokens: int, setting: Setting, seed: int) -> Numbers:
    return {"bytes": _Step.of(name, tokens, setting).bytes}


def _calls(name: str, tokens: int, setting: Setting) -> dict[str, Callable[[], Any]]:
    step = _Step.of(name, tokens, setting)
    return {"block": step} if step.bytes < memory() else {}


@dataclasses.dataclass(frozen=True)
class _Step:
    """A compiled step, its arguments, and the bytes that it needs."""

    compiled: Any
    params: Any
    x: Any
    bytes: int

    def __call__(self) -> Any:
        return self.compiled(self.params, self.x)

    @staticmethod
    def of(name: str, tokens: int, setting: Setting) -> _Step:
        scale = SCALES[setting.scale]
        block = blocks(dataclasses.replace(scale, lengths=(*scale.lengths, tokens)))[name]
        return _step(block, (scale.rows, tokens, scale.width))


@functools.cache
def _step(block: Layer, shape: tuple[int, int, int]) -> _Step:
    """Compiled once, for its bytes and for its time."""
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    x = jax.random.normal(jax.random.key(0), shape, dtype)
    params = init_params(block.table(), jax.random.key(1))

    def loss(params: Params, x: Array) -> Array:
        cast = jax.tree.map(lambda p: p.astype(x.dtype), params)
        return jnp.sum(block(cast, x)[0].astype(jnp.float32))

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, x).compile()
    needs: Any = compiled.memory_analysis()
    bytes_needed = needs.argument_size_in_bytes + needs.temp_size_in_bytes
    return _Step(compiled, params, x, bytes_needed)


def memory() -> int:
    """Bytes that a block may take: of the device, or half of this machine's."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
