"""Convolutions over any number of axes of space or time, and their transpose."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from sharding import collectives
from sharding.errors import UserError


def convolve(
    x: Float[Array, "B *N D"],
    weight: Float[Array, "*K G F"],
    bias: Float[Array, F] | None = None,
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    pads: Sequence[tuple[int, int]] | None = None,
    groups: int = 1,
    axis: str | None = None,
) -> Float[Array, "B *M F"]:
    """y[m] = bias + sum_j weight[j] x[m stride + j dilation - pad], zeros outside x.

    Args:
      x: inputs, channels last.
      weight: one matrix for each tap, of G = D / groups inputs.
      bias: one number for each output channel; None for none.
      stride: inputs from an output to the next, of each axis or of all.
      dilation: inputs from a tap to the next, likewise.
      pads: zeros before and after, of each axis; below 0 inputs are left out. None for no zeros.
      groups: the channels are so many parts, each with filters of its own.
      axis: mesh axis that splits the first axis of space or time. The zeros of its pads are then
        those at the ends of the whole; elsewhere the inputs of neighbours stand in their place.

    Raises:
      UserError: shapes that do not fit; a split axis of which a device's inputs do not make its
        part of the outputs.
    """
    axes = _checked("convolve", x, weight, bias, groups)
    strides, dilations = _each("stride", stride, axes), _each("dilation", dilation, axes)
    pads = _ends("pads", pads, axes)
    if axis is not None:
        (before, after), step = pads[0], strides[0]
        spare = before + after + step - 1 - (weight.shape[0] - 1) * dilations[0]
        if x.shape[1] % step or not 0 <= spare < step:
            raise UserError(
                f"convolve: {x.shape[1]} inputs on each device of mesh axis {axis}, with pads "
                f"{pads[0]} and stride {step}, do not make one output for each stride: give pads "
                f"that sum to the kernel's reach less stride - 1"
            )
        x = collectives.with_halos(x, max(before, 0), max(after, 0), axis)
        pads[0] = min(before, 0), min(after, 0)
    return _convolved(
        x,
        weight,
        bias,
        window_strides=strides,
        rhs_dilation=dilations,
        padding=pads,
        groups=groups,
    )


def transposed(
    x: Float[Array, "B *N D"],
    weight: Float[Array, "*K G F"],
    bias: Float[Array, F] | None = None,
    *,
    stride: int | Sequence[int] = 1,
    crops: Sequence[tuple[int, int]] | None = None,
    groups: int = 1,
    axis: str | None = None,
) -> Float[Array, "B *M F"]:
    """y[n stride + k] = bias + sum over n and k of weight[k] x[n], cut at both ends.

    Args:
      x: inputs, channels last.
      weight: one matrix for each tap, of G = D / groups inputs.
      bias: added once to each output; None for none.
      stride: outputs from an input to the next, of each axis or of all.
      crops: outputs that are cut at the beginning and at the end of the (N - 1) stride + K of each
        axis; below 0 zeros are added there, which get the bias too. None to cut none.
      groups: as in `convolve`.
      axis: mesh axis that splits the first axis of space or time.

    Raises:
      UserError: shapes that do not fit; a split axis with other than a stride of outputs for each
        input.
    """
    axes = _checked("transposed", x, weight, bias, groups)
    taps, strides = weight.shape[:axes], _each("stride", stride, axes)
    crops = _ends("crops", crops, axes)
    if axis is not None:
        (first, last), step, reach = crops[0], strides[0], taps[0] - 1
        if first < 0 or first + last != taps[0] - step:
            raise UserError(
                f"transposed: crops {crops[0]} of a kernel of {taps[0]} with stride {step} do not "
                f"leave {step} outputs for each input on each device of mesh axis {axis}: give "
                f"crops that sum to {taps[0] - step}, the first not below 0"
            )
        outputs = x.shape[1] * step
        before, after = max(0, -(-(reach - first) // step)), -(-first // step)
        x = collectives.with_halos(x, before, after, axis)
        start = before * step + first
        crops[0] = start, (x.shape[1] - 1) * step + taps[0] - start - outputs
    return _convolved(
        x,
        jnp.flip(weight, range(axes)),
        bias,
        window_strides=(1,) * axes,
        lhs_dilation=strides,
        padding=[(k - 1 - a, k - 1 - b) for k, (a, b) in zip(taps, crops, strict=True)],
        groups=groups,
    )


def _convolved(x: Array, weight: Array, bias: Array | None, *, groups: int, **how: object) -> Array:
    inner = "".join(map(str, range(x.ndim - 2)))
    dims = (f"N{inner}C", f"{inner}IO", f"N{inner}C")
    how |= {"dimension_numbers": dims, "feature_group_count": groups}
    y = lax.conv_general_dilated(x, weight.astype(x.dtype), **how)  # type: ignore[arg-type]
    return y if bias is None else y + bias.astype(x.dtype)


def _each(name: str, value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    found = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(found) != axes or min(found) < 1:
        raise UserError(f"{name}={value}: give a whole number from 1, or {axes}, one for each axis")
    return found


def _ends(name: str, value: Sequence[tuple[int, int]] | None, axes: int) -> list[tuple[int, int]]:
    found = [(0, 0)] * axes if value is None else list(value)
    if len(found) != axes:
        raise UserError(f"{name}={value}: give {axes} pairs, one for each axis")
    return found


def _checked(op: str, x: Array, weight: Array, bias: Array | None, groups: int) -> int:
    """How many axes of space or time there are."""
    axes, channels = x.ndim - 2, x.shape[-1]
    fits = axes >= 1 and weight.ndim == axes + 2 and groups >= 1
    if not fits or channels != weight.shape[-2] * groups or weight.shape[-1] % groups:
        raise UserError(
            f"{op}: weight {np.shape(weight)} is not [K, D / groups, F] with a K for each of the "
            f"axes between the first and the last of x {np.shape(x)}, and F divisible by "
            f"groups={groups}"
        )
    if bias is not None and bias.shape != weight.shape[-1:]:
        raise UserError(f"{op}: bias {np.shape(bias)} is not {weight.shape[-1:]}")
    return axes
