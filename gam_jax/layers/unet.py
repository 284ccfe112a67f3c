"""A U-Net: features of space made smaller and larger again, beside what each size had."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gam_jax.layers.base import WHOLE
from gam_jax.layers.channel_norm import BatchNorm, GroupNorm
from gam_jax.ops.convolution import convolve
from gam_jax.ops.resize import NEAREST, enlarged, shrunk
from gam_jax.params import Param, Params, Table, fan_in, zeros
from sharding.axes import Axes
from sharding.bounds import Few, Size, check_bounds
from sharding.errors import UserError

KERNEL = 3
"""Taps of a convolution along each axis."""


@dataclasses.dataclass(frozen=True)
class ConvolutionBlock:
    """W x + conv(silu(norm(conv(silu(norm(x)))))), of as many sizes of space as come in.

    Attributes:
      inputs: channels.
      width: channels of the output. W is left out where they are as many.
      dims: axes of space.
      norm: of the channels; None for none.
    """

    inputs: Size
    width: Size
    dims: Few = 2
    norm: GroupNorm | BatchNorm | None = None

    def table(self) -> Table:
        """norm_0, conv_0, norm_1, conv_1; skip."""
        found: dict[str, Any] = {}
        for number, inputs in enumerate((self.inputs, self.width)):
            if self.norm is not None:
                found[f"norm_{number}"] = dataclasses.replace(self.norm, width=inputs).table()
            found[f"conv_{number}"] = _filters(self.dims, KERNEL, inputs, self.width)
        if self.inputs != self.width:
            found["skip"] = _filters(self.dims, 1, self.inputs, self.width)
        return found

    def __call__(
        self, params: Params, x: Float[Array, "B *N C"], axes: Axes = WHOLE, training: bool = True
    ) -> Float[Array, "B *N D"]:
        """The output; `seq` may split the first axis of space."""
        y = x
        for number, inputs in enumerate((self.inputs, self.width)):
            if self.norm is not None:
                norm = dataclasses.replace(self.norm, width=inputs)
                y = norm(params[f"norm_{number}"], y, axes, training)
            y = _same(params[f"conv_{number}"], jax.nn.silu(y), axes)
        return y + (_same(params["skip"], x, axes) if "skip" in params else x)


@dataclasses.dataclass(frozen=True)
class UNet:
    """An array of space to one of the same size.

    A block at each size; between sizes, means of 2 along each axis on the way down. On the way up
    features are enlarged, and those of the way down at the same size stand beside them. Channels
    double with each halving. Source: arXiv 1505.04597, with blocks of arXiv 1512.03385.

    Attributes:
      inputs: channels.
      out: channels of the output.
      width: channels at the full size.
      halvings: how often sizes are halved; 2^halvings divides each side, and each device's part
        where `seq` splits the first axis.
      dims: axes of space, 1 to 3.
      norm: of blocks, in which the width is replaced; None for none.
      how: see `ops.resize.enlarged`.
    """

    inputs: Size
    out: Size
    width: Size = 32
    halvings: Few = 2
    dims: Few = 2
    norm: GroupNorm | BatchNorm | None = GroupNorm(4, groups=4)
    how: str = NEAREST

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.dims > 3:
            raise UserError(f"UNet.dims={self.dims}: give 1, 2 or 3")

    def _blocks(self) -> dict[str, ConvolutionBlock]:
        def block(inputs: int, width: int) -> ConvolutionBlock:
            return ConvolutionBlock(inputs, width, self.dims, self.norm)

        found, width = {}, self.width
        for number in range(self.halvings):
            found[f"down_{number}"] = block(width, width)
            found[f"wider_{number}"] = block(width, 2 * width)
            width *= 2
        found["middle"] = block(width, width)
        for number in reversed(range(self.halvings)):
            width //= 2
            found[f"up_{number}"] = block(3 * width, width)
        return found

    def table(self) -> Table:
        """first; down_0, wider_0 ...; middle; up_0 ...; last."""
        blocks = {name: block.table() for name, block in self._blocks().items()}
        return {
            "first": _filters(self.dims, KERNEL, self.inputs, self.width),
            **blocks,
            "last": _filters(self.dims, 1, self.width, self.out),
        }

    def __call__(
        self, params: Params, x: Float[Array, "B *N C"], axes: Axes = WHOLE, training: bool = True
    ) -> Float[Array, "B *N F"]:
        """The output.

        Args:
          params: see `table`.
          x: this device's rows, and its part of the first axis of space where `seq` splits it.
          axes: mesh axes.
          training: whether batch norms take the batch's statistics.

        Raises:
          UserError: sides that cannot be halved so often.
        """
        blocks, kept = self._blocks(), []

        def run(name: str, x: Array) -> Array:
            return blocks[name](params[name], x, axes, training)

        x = _same(params["first"], x, axes)
        for number in range(self.halvings):
            x = run(f"down_{number}", x)
            kept.append(x)
            x = run(f"wider_{number}", shrunk(x, 2))
        x = run("middle", x)
        for number in reversed(range(self.halvings)):
            x = jnp.concatenate([enlarged(x, 2, self.how, axes.seq), kept.pop()], -1)
            x = run(f"up_{number}", x)
        return _same(params["last"], x, axes)


def _filters(dims: int, kernel: int, inputs: int, outputs: int) -> Table:
    shape = *(kernel,) * dims, inputs, outputs
    return {
        "weight": Param(shape, (None,) * len(shape), fan_in(kernel**dims * inputs)),
        "bias": Param((outputs,), (None,), zeros, decay=False),
    }


def _same(params: Params, x: Array, axes: Axes) -> Array:
    """A convolution to as many places, with zeros around the whole."""
    weight = params["weight"]
    beside = weight.shape[0] // 2
    pads = [(beside, beside)] * (x.ndim - 2)
    return convolve(x, weight, params["bias"], pads=pads, axis=axes.seq)
