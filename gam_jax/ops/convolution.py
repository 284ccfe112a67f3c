"""Convolutions over any number of axes of space or time, and their transpose."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

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

    Raises:
      UserError: shapes that do not fit.
    """
    axes = _checked("convolve", x, weight, bias, groups)
    return _convolved(
        x,
        weight,
        bias,
        window_strides=_each(stride, axes),
        rhs_dilation=_each(dilation, axes),
        padding=[(0, 0)] * axes if pads is None else list(pads),
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

    Raises:
      UserError: shapes that do not fit.
    """
    axes = _checked("transposed", x, weight, bias, groups)
    taps = weight.shape[:axes]
    crops = [(0, 0)] * axes if crops is None else crops
    return _convolved(
        x,
        jnp.flip(weight, range(axes)),
        bias,
        window_strides=(1,) * axes,
        lhs_dilation=_each(stride, axes),
        padding=[(k - 1 - a, k - 1 - b) for k, (a, b) in zip(taps, crops, strict=True)],
        groups=groups,
    )


def _convolved(x: Array, weight: Array, bias: Array | None, *, groups: int, **how: object) -> Array:
    inner = "".join(map(str, range(x.ndim - 2)))
    dims = (f"N{inner}C", f"{inner}IO", f"N{inner}C")
    how |= {"dimension_numbers": dims, "feature_group_count": groups}
    y = lax.conv_general_dilated(x, weight.astype(x.dtype), **how)  # type: ignore[arg-type]
    return y if bias is None else y + bias.astype(x.dtype)


def _each(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(value)


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
