"""Unlike branches of a model at once, on as many devices of a mesh axis."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from sharding import collectives
from sharding.axes import Axes
from sharding.errors import UserError
from sharding.layout import Layout

Branch = Callable[[Any], Array]
"""Of what both branches are given to an array."""


def branches(a: Branch, b: Branch, given: Any, axes: Axes = Axes()) -> tuple[Array, Array]:
    """a(given) and b(given), the one on the first device along `stream`, the other on the second.

    They meet in one gather, of the larger output from each, see `exchanged_bytes`. Where nothing
    splits `stream` a device computes them one after the other, and sends nothing. Every device
    holds the parameters of both. The choice is a `lax.cond` on the device's place: sums and gathers
    over other axes may stand in a branch, all devices along those take the same one. A `ppermute`
    waits for every device, so branches are refused where `seq` is split, and where products at the
    ends of layers go round a ring (`check_branches`).

    Args:
      a: a pure function; outputs of both have one dtype.
      b: likewise.
      given: parameters and inputs, all that the branches read.
      axes: mesh axes, inside `jax.shard_map`.

    Returns:
      Both outputs, on every device.

    Raises:
      UserError: outputs of unlike dtypes.
    """
    axis = axes.of("stream")
    if axis is None:
        return a(given), b(given)
    given = jax.tree.map(lambda x: collectives.as_varying(x, axis), given)
    shapes = [jax.eval_shape(branch, given) for branch in (a, b)]
    if shapes[0].dtype != shapes[1].dtype:
        kinds = " and ".join(str(shape.dtype) for shape in shapes)
        raise UserError(f"branches: their outputs are {kinds}: give both one dtype")
    size = max(shape.size for shape in shapes)

    def flat(branch: Branch) -> Branch:
        def run(given: Any) -> Array:
            y = branch(given).reshape(-1)
            return jnp.pad(y, (0, size - y.size))

        return run

    made = lax.cond(lax.axis_index(axis) == 0, flat(a), flat(b), given)
    both = collectives.all_gather(made, axis, 0).reshape(2, size)
    first, second = (
        own[: math.prod(shape.shape)].reshape(shape.shape)
        for own, shape in zip(both, shapes, strict=True)
    )
    return first, second


def summed(parts: Sequence[Branch], given: Any, axes: Axes = Axes()) -> Array:
    """The sum of what several branches make of the same; one a device along `stream`, and one sum.

    As `branches`, but that outputs have one shape and are added: each device brings one of them.

    Args:
      parts: pure functions; outputs of all have one shape and dtype.
      given: parameters and inputs, all that the branches read.
      axes: mesh axes, inside `jax.shard_map`; devices along `stream` are as many as branches.

    Raises:
      UserError: outputs of unlike shapes or dtypes.
    """
    kinds = {(y.shape, y.dtype) for y in (jax.eval_shape(part, given) for part in parts)}
    if len(kinds) > 1:
        raise UserError(f"summed: branches give {sorted(map(str, kinds))}: they must be alike")
    axis = axes.of("stream")
    if axis is None:
        return functools.reduce(operator.add, (part(given) for part in parts))
    given = jax.tree.map(lambda x: collectives.as_varying(x, axis), given)
    return collectives.psum(lax.switch(lax.axis_index(axis), parts, given), axis)


def coupled(x: Float[Array, "P B T D"], axes: Axes = Axes()) -> Float[Array, "P B T D"]:
    """Two streams that add each other, the second after the first has: (m, p) to (m + p, m + 2 p).

    Where two devices split `stream` each holds one, and sends it to the other: B T D numbers, see
    `swapped_bytes`. The sums are the same, to the bit.

    Source: AP-BWE (arXiv 2401.06387) and its released code.

    Args:
      x: both streams, or a device's own, P = 1.
      axes: mesh axes, inside `jax.shard_map`.
    """
    axis = axes.of("stream")
    if axis is None:
        first = x[0] + x[1]
        return jnp.stack([first, x[1] + first])
    both = x + lax.ppermute(x, axis, [(0, 1), (1, 0)])
    return jnp.where(lax.axis_index(axis) == 0, both, x + both)


def swapped_bytes(numbers: int, itemsize: int = 4) -> int:
    """Bytes that a device sends in each `coupled`: its own stream.

    Args:
      numbers: of a device's own rows, in a stream.
      itemsize: bytes of a number.
    """
    return numbers * itemsize


def exchanged_bytes(numbers: tuple[int, int], itemsize: int = 4) -> int:
    """Bytes that a device brings to the gather: the larger of both outputs.

    Args:
      numbers: of a device's own rows, in each output.
      itemsize: bytes of a number.
    """
    return max(numbers) * itemsize


def check_branches(layout: Layout, name: str, count: int = 2) -> None:
    """Refuses a mesh on which a model's branches cannot run at once.

    Raises:
      UserError: devices along `stream` that are not one a branch; beside them any along `seq`, or
        `parallel.overlap`.
    """
    stream, seq = (layout.mesh.shape.get(axis, 1) for axis in ("stream", "seq"))
    if stream not in (1, count):
        raise UserError(
            f"mesh axis stream={stream}: {name} has {count} branches, make it 1 or {count}"
        )
    if stream > 1 and seq > 1:
        raise UserError(
            f"mesh axes stream={stream} and seq={seq}: a message along seq inside one of {name}'s "
            f"branches would wait for ever: make one of them 1"
        )
    axes = layout.axes
    if stream > 1 and axes.residual and axes.overlap:
        raise UserError(
            f"mesh axis stream={stream} and parallel.overlap={axes.overlap}: a message along "
            f"{axes.residual} inside one of {name}'s branches would wait for ever: make stream 1, "
            f"or parallel.overlap none"
        )
