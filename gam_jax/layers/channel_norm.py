"""Norms of arrays of space or time, channels last: over groups of channels, or over the batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from gam_jax.layers.base import WHOLE
from gam_jax.ops.counted import averaged
from gam_jax.params import Param, Params, Table, ones, zeros
from sharding import collectives
from sharding.axes import Axes
from sharding.bounds import Positive, Rate, Size, check_bounds
from sharding.errors import UserError


@dataclasses.dataclass(frozen=True)
class GroupNorm:
    """(x - mean) / sqrt(variance + eps) scale + bias, over space and a group of channels.

    One group is a layer norm over space too, as many as channels an instance norm (arXiv
    1803.08494). Statistics are float32, and those of each row alone; where `seq` splits the first
    axis of space they are of the whole.

    Attributes:
      width: D.
      groups: of channels, that divide D.
      eps: added to the variance.
    """

    width: Size
    groups: Size = 1
    eps: Positive = 1e-5

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.width % self.groups:
            raise UserError(f"GroupNorm.groups={self.groups} does not divide {self.width} channels")

    def table(self) -> Table:
        """scale and bias [D]."""
        return _scale_and_bias(self.width)

    def __call__(
        self,
        params: Params,
        x: Float[Array, "B *N D"],
        axes: Axes = WHOLE,
        training: bool = True,
    ) -> Float[Array, "B *N D"]:
        """Normalised x; `training` makes no difference.

        Raises:
          UserError: another number of channels.
        """
        _check_width(self, x)
        own = x.astype(jnp.float32).reshape(len(x), -1, self.groups, self.width // self.groups)
        mean, variance, _ = _moments(own, (1, 3), (axes.seq,) if axes.seq else ())
        y = (own - mean) * lax.rsqrt(variance + self.eps)
        return (y.reshape(x.shape) * params["scale"] + params["bias"]).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class BatchNorm:
    """(x - mean) / sqrt(variance + eps) scale + bias, over all rows and all of space.

    In training the statistics are those of the whole batch: of all devices, but of each part of it
    (`train.accumulate`) alone. Otherwise they are running averages of these, `mean` and `variance`,
    which are parameters that each update sets, see `ops.counted.averaged`; the variance is that of
    a population of which the batch is a sample, as in PyTorch. Statistics are float32. Rows of
    weight 0 count like all others. Used twice in an objective, it moves them by what both uses
    find; where no loss depends on its output, they stay.

    Source: arXiv 1502.03167.

    Attributes:
      width: D.
      eps: added to the variance.
      rate: the part of the way that running averages go to a batch's statistics.
    """

    width: Size
    eps: Positive = 1e-5
    rate: Rate = 0.1

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.rate:
            raise UserError("BatchNorm.rate=0: running averages would never move, give more")

    def table(self) -> Table:
        """scale and bias [D]; mean and variance [D]."""
        running: Any = {"decay": False, "precise": True, "average": self.rate}
        return {
            **_scale_and_bias(self.width),
            "mean": Param((self.width,), (None,), zeros, **running),
            "variance": Param((self.width,), (None,), ones, **running),
        }

    def __call__(
        self,
        params: Params,
        x: Float[Array, "B *N D"],
        axes: Axes = WHOLE,
        training: bool = True,
    ) -> Float[Array, "B *N D"]:
        """Normalised x.

        Args:
          params: see `table`.
          x: this device's rows, and its part of space.
          axes: mesh axes.
          training: whether by the batch's statistics, or else by the running ones.

        Raises:
          UserError: another number of channels; a batch of a single number for each, in training.
        """
        _check_width(self, x)
        own = x.astype(jnp.float32)
        mean, variance = params["mean"], params["variance"]
        if training:
            over = tuple(range(x.ndim - 1))
            mean, variance, count = _moments(own, over, axes.batch)
            if count < 2:
                raise UserError(
                    "BatchNorm: a batch of one number for each channel has no variance: give more "
                    "rows"
                )
            mean, variance = mean.reshape(-1), variance.reshape(-1)
            # This device's part of each: what is found is summed over devices.
            off = jnp.sum(jnp.square(own - mean), over) / (count - 1)
            found = {"mean": jnp.sum(own, over) / count, "variance": off}
        y = (own - mean) * lax.rsqrt(variance + self.eps) * params["scale"] + params["bias"]
        if training:
            for name, value in found.items():
                y = averaged(y, params[name], lax.stop_gradient(value), axes.batch)
        return y.astype(x.dtype)


def _check_width(norm: GroupNorm | BatchNorm, x: Array) -> None:
    """A width of 1 would be spread over all channels, without a word."""
    if x.shape[-1] != norm.width:
        raise UserError(
            f"{type(norm).__name__}.width={norm.width}, and x has {x.shape[-1]} channels: give the "
            f"same"
        )


def _moments(
    x: Array, over: Sequence[int], axes: Sequence[str]
) -> tuple[Float[Array, ...], Float[Array, ...], int]:
    """Mean and variance over dimensions and mesh axes, and of how many numbers."""
    count = math.prod(x.shape[dim] for dim in over)
    count *= math.prod(collectives.axis_size(axis) for axis in axes)
    mean = collectives.psum(jnp.sum(x, over, keepdims=True), axes) / count
    off = jnp.sum(jnp.square(x - mean), over, keepdims=True)
    return mean, collectives.psum(off, axes) / count, count


def _scale_and_bias(width: int) -> dict[str, Param]:
    return {
        "scale": Param((width,), (None,), ones, decay=False),
        "bias": Param((width,), (None,), zeros, decay=False),
    }
