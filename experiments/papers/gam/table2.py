"""Table 2: time and memory of a block by length, GAM against the Transformer."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from experiments.benchmark.timing import Quantity, medians
from experiments.papers.gam import published
from experiments.papers.gam.arms import transformer
from experiments.papers.gam.relations import faster
from experiments.papers.gam.scale import Scale
from experiments.papers.gam.sheet import Sheet
from gam_jax.layers import GAM, Block, Layer
from gam_jax.layers.base import WHOLE, known
from gam_jax.ops.linear import linear
from gam_jax.params import Param, Params, Table, fan_in, init_params
from sharding.axes import Axes

LONG = 1024
"""Tokens from which growth is measured: below, what does not depend on them counts."""


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
    in_blocks: Any = dataclasses.replace(transformer(longest), width=scale.width)  # type: ignore[type-var]
    gam = Block(GAM(slots=scale.slots, kernel=3), width=scale.width)
    return {"GAM": gam, "Transformer": at_once, "Transformer, in blocks": in_blocks}


def run(scale: Scale, repeats: int) -> list[dict[str, Any]]:
    """Forward and backward of a block, as the paper times it; bfloat16 but on CPU, float32.

    Returns:
      A row a length: tokens; for each block the seconds (None where its memory does not fit) and
      bytes that the compiler says it needs, arguments and temporaries.
    """
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    rows = []
    for tokens in scale.lengths:
        x = jax.random.normal(jax.random.key(0), (scale.rows, tokens, scale.width), dtype)
        calls, bytes_needed = {}, {}
        for name, block in blocks(scale).items():
            params = init_params(block.table(), jax.random.key(1))
            step, needed = _compiled(block, params, x)
            bytes_needed[name] = needed
            if needed < memory():
                calls[name] = lambda step=step, params=params, x=x: step(params, x)
        times = medians(calls, repeats, warmup=2)
        found = {
            name: {"seconds": times.get(name), "bytes": needed}
            for name, needed in bytes_needed.items()
        }
        rows.append({"tokens": tokens, "blocks": found})
    return rows


def _compiled(block: Layer, params: Params, x: Array) -> tuple[Any, int]:
    """A step and the bytes that it needs."""

    def loss(params: Params, x: Array) -> Array:
        cast = jax.tree.map(lambda p: p.astype(x.dtype), params)
        return jnp.sum(block(cast, x)[0].astype(jnp.float32))

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, x).compile()
    needs: Any = compiled.memory_analysis()
    return compiled, needs.argument_size_in_bytes + needs.temp_size_in_bytes


def memory() -> int:
    """Bytes that a block may take: of the device, or half of this machine's."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def to_json(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `run` as JSON values."""
    blocks = {
        name: {**one, "seconds": one["seconds"] and dataclasses.asdict(one["seconds"])}
        for name, one in row["blocks"].items()
    }
    return {**row, "blocks": blocks}


def sheet(rows: list[dict[str, Any]], scale: Scale) -> Sheet:
    """The table, with the paper's beside it."""
    names = list(rows[0]["blocks"])
    head = [f"{name}: ms" for name in names] + [f"{name}: MB" for name in names]
    head += [f"paper {name}: {unit}" for unit in ("ms", "MB") for name in published.MILLISECONDS]
    lines = []
    for row in rows:
        tokens, found = row["tokens"], row["blocks"]
        cells = [_milliseconds(found[name]["seconds"]) for name in names]
        cells += [f"{found[name]['bytes'] / 1e6:,.1f}" for name in names]
        for theirs in (published.MILLISECONDS, published.MEGABYTES):
            cells += [_theirs(each, tokens) for each in theirs.values()]
        lines.append((f"{tokens:,}", *cells))
    sizes = f"width {scale.width}, {scale.rows} x T tokens, {jax.default_backend()}"
    return Sheet(f"Table 2: {sizes}", ("T", *head), tuple(lines), tuple(_relations(rows)))


def _milliseconds(seconds: Quantity | None) -> str:
    return "too large" if seconds is None else f"{seconds.median * 1e3:,.2f}"


def _theirs(figures: Mapping[int, float], tokens: int) -> str:
    if tokens in figures:
        return f"{figures[tokens]:,.4g}"
    return "OOM" if tokens > max(figures) else ""


def _relations(rows: list[dict[str, Any]]) -> list[str]:
    """What the paper claims by length: who is faster, and how time and memory grow."""
    lines = []
    for row in rows:
        ours, theirs = (row["blocks"][name]["seconds"] for name in ("GAM", "Transformer"))
        if ours and theirs:
            claim = f"at {row['tokens']:,} tokens GAM is faster than the Transformer"
            lines.append(str(faster(claim, ours, theirs)))
    for name in rows[0]["blocks"]:
        found = {row["tokens"]: row["blocks"][name] for row in rows}
        timed = [tokens for tokens, one in found.items() if one["seconds"]]
        first, last = next((t for t in timed if t >= LONG), timed[0]), timed[-1]
        if first < last:
            seconds = [found[tokens]["seconds"].median for tokens in (first, last)]
            sizes = [found[tokens]["bytes"] for tokens in (first, last)]
            powers = (exponent(pair, (first, last)) for pair in (seconds, sizes))
            time, memory_ = (f"T^{power:.2f}" for power in powers)
            lines.append(
                f"{name}: from {first:,} to {last:,} tokens time grows as {time}, memory as "
                f"{memory_}"
            )
    return lines


def exponent(values: Sequence[float], tokens: Sequence[int]) -> float:
    """The power of T with which a value grows between two lengths."""
    return math.log(values[1] / values[0]) / math.log(tokens[1] / tokens[0])
