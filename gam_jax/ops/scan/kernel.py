"""The memory scan as one Pallas kernel: a head's chunks one after another, its state on the chip.

The backward pass is a second kernel, which goes through the chunks from the last to the first with
the states that entered them, computes each again and pulls gradients through it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from gam_jax.ops.scan.layout import Inputs
from gam_jax.ops.scan.one_chunk import Part, finite, one_chunk
from sharding.errors import UserError
from sharding.opaque import opaque
from sharding.products import product_flops

SMALLEST = 8
"""Tokens of the smallest chunk: the rows of a TPU's tile."""


def run(
    inputs: Inputs,
    state: Float[Array, "P R K N"],
    rule: str,
    chunk: int,
    backend: str | None = None,
) -> tuple[Float[Array, "P R T N"], Float[Array, "P R K N"]]:
    """Runs the memory scan in the kernel; for the backward pass a state a chunk is stored.

    See `memory_scan` for the arguments, in the layout of `Inputs`. On a processor the kernel is
    interpreted, slowly: a model opens there too, and what the kernel says is tested there.

    Raises:
      UserError: a GPU.
    """
    tokens, backend = inputs.v.shape[2], backend or jax.default_backend()
    if backend not in ("cpu", "tpu"):
        raise UserError(f"memory_scan: method 'pallas' is for TPUs, not {backend}; use 'chunked'")
    size = max(SMALLEST, 1 << (min(chunk, tokens) - 1).bit_length())
    arrays, tree = jax.tree.flatten((_parts(inputs.padded(size), size), state))
    how = _How(rule, size, interpret=backend == "cpu")

    def scanned(*arrays: Array) -> tuple[Array, Array]:
        return _scan(how, *tree.unflatten(arrays))

    y, last = opaque(scanned, (), arrays, _flops(how, *tree.unflatten(arrays)))
    return y[:, :, :tokens], last


class _Once(NamedTuple):
    """An array [P, R, ...] of which a head has one block, whatever the chunk: a state.

    Attributes:
      x: the array, or its shape and dtype.
    """

    x: Any


class _How(NamedTuple):
    """What is known before the arrays.

    Attributes:
      rule: see `memory_scan`.
      size: C.
      interpret: compute what the kernel says, on any device.
    """

    rule: str
    size: int
    interpret: bool


def _parts(inputs: Inputs, size: int) -> Part:
    """Chunks side by side: arrays [P, 1 or R, T, ...], and rows [P, R, T / C, 1, C]."""
    q, k, v, log_decay, beta, _ = inputs
    lead = v.shape[:2]

    def rows(x: Array) -> Array:
        return x.reshape(*lead, -1, 1, size)

    if log_decay is not None:
        log_decay = jnp.broadcast_to(finite(log_decay), (*lead, *log_decay.shape[2:]))
        log_decay = rows(log_decay) if log_decay.shape[-1] == 1 else log_decay
    return Part(q, k, v, log_decay, None if beta is None else rows(beta))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(how: _How, part: Part, state: Array) -> tuple[Array, Array]:
    y, last = _forward(how, part, state, kept=False)
    return y, last


def _scan_forward(how: _How, part: Part, state: Array) -> Any:
    y, last, states = _forward(how, part, state, kept=True)
    return (y, last), (part, states)


def _scan_backward(how: _How, saved: tuple[Part, Array], g: tuple[Array, Array]) -> Any:
    part, states = saved
    to_part, to_state = _backward(how, part, states, *g)
    return jax.tree.map(lambda to, x: _shared(to, x.shape[1]), to_part, part), to_state


_scan.defvjp(_scan_forward, _scan_backward)


def _shared(gradient: Array, heads: int) -> Array:
    """The gradient by what the heads of a group share, or by each head's own."""
    return jnp.sum(gradient, axis=1, keepdims=True) if heads == 1 else gradient


def _forward(how: _How, part: Part, state: Array, kept: bool) -> tuple[Array, ...]:
    """y, the last state and, where they are `kept`, those before chunks [P, R, T / C, K, N]."""
    arrays, tree = jax.tree.flatten(part)
    count = part.v.shape[2] // how.size

    def kernel(*refs: Any) -> None:
        *given, first, y, last = refs[: len(arrays) + 3]
        *states, held = refs[len(arrays) + 3 :]
        turn = pl.program_id(2)

        @pl.when(turn == 0)
        def _() -> None:
            held[...] = first[...]

        for before in states:
            before[...] = held[...]
        own = tree.unflatten([ref[...] for ref in given])
        y[...], held[...] = one_chunk(own, held[...], how.rule)

        @pl.when(turn == count - 1)
        def _() -> None:
            last[...] = held[...]

    states = jax.ShapeDtypeStruct((*state.shape[:2], count, *state.shape[2:]), jnp.float32)
    results = [part.v, _Once(state), *([states] if kept else [])]
    return _call(kernel, how, [*arrays, _Once(state)], results, state.shape, lambda turn: turn)


def _backward(
    how: _How, part: Part, states: Array, to_y: Array, to_last: Array
) -> tuple[Part, Array]:
    """Gradients by what each chunk has, for each head, and by the first state."""
    arrays, tree = jax.tree.flatten(part)
    count, heads = states.shape[2], part.v.shape[1]

    def kernel(*refs: Any) -> None:
        *given, state, by_y, by_last = refs[: len(arrays) + 3]
        *found, to_first, held = refs[len(arrays) + 3 :]
        turn = pl.program_id(2)

        @pl.when(turn == 0)
        def _() -> None:
            held[...] = by_last[...]

        own = tree.unflatten([ref[...] for ref in given])
        chunk = functools.partial(one_chunk, rule=how.rule)
        pull = jax.vjp(chunk, own, state[...])[1]
        to_part, held[...] = pull((by_y[...], held[...]))
        for ref, gradient in zip(found, jax.tree.leaves(to_part), strict=True):
            ref[...] = gradient

        @pl.when(turn == count - 1)
        def _() -> None:
            to_first[...] = held[...]

    results = [jax.ShapeDtypeStruct((x.shape[0], heads, *x.shape[2:]), x.dtype) for x in arrays]
    *found, to_first = _call(
        kernel,
        how,
        [*arrays, states, to_y, _Once(to_last)],
        [*results, _Once(to_last)],
        to_last.shape,
        lambda turn: count - 1 - turn,
    )
    return tree.unflatten(found), to_first


def _call(
    kernel: Any,
    how: _How,
    given: list[Any],
    results: list[Any],
    state: tuple[int, ...],
    order: Callable[[Any], Any],
) -> tuple[Array, ...]:
    """Runs a kernel for each group, head and chunk, chunks in `order`, with a state beside it."""
    from jax.experimental.pallas import tpu as pltpu  # slow to import, and seldom used

    def spec(x: Any) -> pl.BlockSpec:
        if isinstance(x, _Once):
            return pl.BlockSpec((None, None, *x.x.shape[2:]), lambda p, r, c: (p, r, 0, 0))
        shape, heads = x.shape, x.shape[1]

        def head(own: Any) -> Any:
            return own if heads > 1 else 0

        if len(shape) == 5:
            block = (None, None, None, *shape[3:])
            return pl.BlockSpec(block, lambda p, r, c: (p, r, order(c), 0, 0))
        block = (None, None, how.size, shape[3])
        return pl.BlockSpec(block, lambda p, r, c: (p, head(r), order(c), 0))

    arrays, made = ([x.x if isinstance(x, _Once) else x for x in xs] for xs in (given, results))
    return pl.pallas_call(
        kernel,
        grid=(*state[:2], given[2].shape[2] // how.size),
        in_specs=[spec(x) for x in given],
        out_specs=[spec(x) for x in results],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in made],
        scratch_shapes=[pltpu.VMEM(state[2:], jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        interpret=how.interpret,
    )(*arrays)


def _flops(how: _How, part: Part, state: Array) -> tuple[int, int, int]:
    """Of all chunks: forward; backward, which computes the forward again; and of these that."""
    _, heads, tokens, _ = part.v.shape

    def own(x: Array) -> jax.ShapeDtypeStruct:
        shape = x.shape[3:] if x.ndim == 5 else (how.size, x.shape[3])
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    chunk = functools.partial(one_chunk, rule=how.rule)
    given = jax.tree.map(own, part), jax.ShapeDtypeStruct(state.shape[2:], jnp.float32)

    def pulled(part: Part, state: Array) -> Any:
        y, pull = jax.vjp(chunk, part, state)
        return pull(y)

    forward, both = (
        product_flops(jax.make_jaxpr(fn)(*given).jaxpr).total() for fn in (chunk, pulled)
    )
    count = part.v.shape[0] * heads * (tokens // how.size)
    return count * forward, count * both, count * forward
