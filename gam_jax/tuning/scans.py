"""Ways to compute scans: of memories, of selective state spaces, of single numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax

from gam_jax.layers import FusedDelta, LinearMemory, Mamba, Mamba2, MinimalRNN
from gam_jax.ops.norm import unit_norm
from gam_jax.ops.scan import diagonal_scan, memory_scan
from gam_jax.ops.scan.diagonal import DIAGONAL_METHODS
from gam_jax.ops.scan.memory import METHODS
from gam_jax.ops.selective import METHODS as SELECTIVE_METHODS
from gam_jax.ops.selective import selective_scan
from gam_jax.tuning.ops import Arrays, Op, Part, Settings, Shape, Sizes, Tunable, shorter

CHUNKS = (16, 32, 64, 128, 256)
SMALL_CHUNKS = (2, 4, 8, 16, 32)
"""Of a scan whose program grows with its chunk."""
DECAYS = {"none": "none", "fixed": "head", "head": "head", "channel": "channel"}
"""A recipe's decay -> what a scan sees of it."""
KINDS = ("hebb:none", "hebb:head", "hebb:channel", "delta:none", "delta:head", "delta:channel")
"""Memory scans by their rule and what a decay is of."""


def of_memory(layer: LinearMemory, part: Part) -> Shape:
    """What the scan of a linear memory is given."""
    return {
        "rule": layer.recipe.rule,
        "decay": "channel" if layer.decay_rank else DECAYS[layer.recipe.decay],
        "rows": part.rows,
        "tokens": part.tokens,
        "groups": part.of(layer.groups, "heads", "key heads of LinearMemory"),
        "heads": part.of(layer.heads, "heads", "LinearMemory.heads"),
        "keys": layer.keys,
        "values": layer.values + layer.averages,
    }


def of_mamba2(layer: Mamba2, part: Part) -> Shape:
    """That of Mamba-2: a group whose heads lie on several devices is as many equal ones."""
    devices = part.devices("heads")
    return {
        "rule": "hebb",
        "decay": "head",
        "rows": part.rows,
        "tokens": part.tokens,
        "groups": math.lcm(layer.groups, devices) // devices,
        "heads": part.of(layer.heads, "heads", "heads of Mamba2"),
        "keys": layer.state,
        "values": layer.head,
    }


def of_fused_delta(layer: FusedDelta, part: Part) -> Shape:
    """That of a delta rule among other paths."""
    heads = part.of(layer.heads, "heads", "FusedDelta.heads")
    kinds = {"rule": "delta", "decay": "head", "rows": part.rows, "tokens": part.tokens}
    return {**kinds, "groups": heads, "heads": heads, "keys": layer.keys, "values": layer.values}


def _asked(shape: Shape) -> list[str]:
    decays, writes = shape["decay"] != "none", shape["rule"] == "delta"
    return [*(["log_decay"] if decays else []), *(["beta"] if writes else [])]


def _memory(shape: Shape, settings: Settings, backend: str | None) -> Callable[..., Any]:
    def scanned(q: Any, k: Any, v: Any, *more: Any) -> Any:
        own = dict(zip(_asked(shape), more, strict=True))
        return memory_scan(q, k, v, rule=shape["rule"], backend=backend, **own, **settings)[0]

    return scanned


def _memory_arrays(shape: Shape, dtype: str, key: Any) -> Arrays:
    keys = jax.random.split(key, 5)
    lead = shape["rows"], shape["tokens"]
    sizes = ("groups", "keys"), ("groups", "keys"), ("heads", "values")
    q, k, v = (
        jax.random.normal(key, (*lead, *(shape[name] for name in names)), dtype)
        for key, names in zip(keys, sizes, strict=False)
    )
    of = (shape["keys"],) if shape["decay"] == "channel" else ()
    log_decay = -jax.nn.softplus(jax.random.normal(keys[3], (*lead, shape["heads"], *of)) - 3)
    beta = jax.nn.sigmoid(jax.random.normal(keys[4], (*lead, shape["heads"])))
    found = {"log_decay": log_decay, "beta": beta}
    return (q, unit_norm(k).astype(dtype), v, *(found[name] for name in _asked(shape)))


def _memory_ways(op: Op, backend: str) -> Sequence[Settings]:
    """On a TPU its kernel takes part; its chunk is what lies on the chip at once."""
    methods = ["chunked", *(["pallas"] if backend == "tpu" else [])]
    chunks = shorter(CHUNKS, op.shape["tokens"])
    found = [{"method": method, "chunk": chunk} for method in methods for chunk in chunks]
    return [*found, {"method": "associative", "chunk": 64}]


def plain_scan(kind: str, sizes: Sizes) -> Shape:
    """The shape of a scan: a rule and what a decay is of, as "hebb:head"; "none" for no decay."""
    rule, _, decay = kind.partition(":")
    shape = {"rule": rule, "decay": decay, "rows": sizes.rows, "tokens": sizes.tokens}
    shape |= {"groups": sizes.heads, "heads": sizes.heads}
    return shape | {"keys": sizes.size, "values": sizes.values}


def _example(kind: str) -> Callable[[Sizes], Shape]:
    return lambda sizes: plain_scan(kind, sizes)


MEMORY = Tunable(
    name="memory_scan",
    shapes={LinearMemory: of_memory, Mamba2: of_mamba2, FusedDelta: of_fused_delta},
    default={"method": "chunked", "chunk": 64},
    ways=_memory_ways,
    call=_memory,
    plainest=lambda shape, *arrays: _memory(shape, {"method": "recurrent"}, None)(*arrays),
    draw=_memory_arrays,
    differentiated=3,
    examples={kind: _example(kind) for kind in KINDS},
    words={"method": tuple(METHODS)},
)


def of_mamba(layer: Mamba, part: Part) -> Shape:
    """What the selective scan of Mamba is given."""
    channels = part.of(layer.inner, "channel", "channels of Mamba")
    shape = {"rows": part.rows, "tokens": part.tokens}
    return {**shape, "channels": channels, "state": layer.state}


def _selective(shape: Shape, settings: Settings, backend: str | None) -> Callable[..., Any]:
    return lambda *arrays: selective_scan(*arrays, backend=backend, **settings)[0]


def _selective_arrays(shape: Shape, dtype: str, key: Any) -> Arrays:
    keys, lead = jax.random.split(key, 5), (shape["rows"], shape["tokens"])
    x = jax.random.normal(keys[0], (*lead, shape["channels"]), dtype)
    dt = jax.nn.softplus(jax.random.normal(keys[1], x.shape) - 3)
    a = -jax.numpy.exp(jax.random.normal(keys[2], (shape["state"], shape["channels"])))
    b, c = (jax.random.normal(own, (*lead, shape["state"]), dtype) for own in keys[3:])
    return x, dt, a, b, c


def _at_once(chunks: Sequence[int], default: Settings, tokens: int) -> list[Settings]:
    """In chunks, all tokens at once, or one after another."""
    found = [{**default, "chunk": chunk} for chunk in shorter(chunks, tokens)]
    return [*found, *({**default, "method": method} for method in ("associative", "recurrent"))]


_SELECTIVE = {"method": "chunked", "chunk": 8}
SELECTIVE = Tunable(
    name="selective_scan",
    shapes={Mamba: of_mamba},
    default=_SELECTIVE,
    ways=lambda op, backend: _at_once(SMALL_CHUNKS, _SELECTIVE, op.shape["tokens"]),
    call=_selective,
    plainest=lambda shape, *arrays: _selective(shape, {"method": "recurrent"}, None)(*arrays),
    draw=_selective_arrays,
    differentiated=5,
    examples={
        "selective": lambda sizes: {
            **{"rows": sizes.rows, "tokens": sizes.tokens},
            **{"channels": sizes.width, "state": 16},
        }
    },
    words={"method": tuple(SELECTIVE_METHODS)},
)


def of_minimal(layer: MinimalRNN, part: Part) -> Shape:
    """What the scan of a minimal recurrence is given."""
    channels = part.of(layer.inner, "channel", "channels of MinimalRNN")
    return {"rows": part.rows, "tokens": part.tokens, "channels": channels}


def _diagonal(shape: Shape, settings: Settings, backend: str | None) -> Callable[..., Any]:
    return lambda *arrays: diagonal_scan(*arrays, backend=backend, **settings)[0]


def _diagonal_arrays(shape: Shape, dtype: str, key: Any) -> Arrays:
    decay, write = jax.random.split(key)
    size = shape["rows"], shape["tokens"], shape["channels"]
    log = -jax.nn.softplus(jax.random.normal(decay, size))
    return log, jax.random.normal(write, size)  # float32, as the layer's gates are


_DIAGONAL = {"method": "chunked", "chunk": 64}


def _diagonal_ways(op: Op, backend: str) -> Sequence[Settings]:
    """A processor goes token by token, whatever the chunk."""
    if backend == "cpu":
        return [_DIAGONAL, {**_DIAGONAL, "method": "associative"}]
    return _at_once(CHUNKS, _DIAGONAL, op.shape["tokens"])


DIAGONAL = Tunable(
    name="diagonal_scan",
    shapes={MinimalRNN: of_minimal},
    default=_DIAGONAL,
    ways=_diagonal_ways,
    call=_diagonal,
    plainest=lambda shape, *arrays: _diagonal(shape, {"method": "recurrent"}, None)(*arrays),
    draw=_diagonal_arrays,
    differentiated=2,
    examples={
        "diagonal": lambda sizes: {
            "rows": sizes.rows,
            "tokens": sizes.tokens,
            "channels": sizes.width,
        }
    },
    words={"method": DIAGONAL_METHODS},
)
