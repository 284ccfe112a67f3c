"""A small model of phases: which head and which loss an angle wants.

Source: the ablation of APNet (arXiv 2305.07952), on responses of two paths in place of speech.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from gam_jax.data.base import Dataset
from gam_jax.layers.base import WHOLE, known
from gam_jax.models.base import BATCH, Batch, Measures, Model, sizes_of
from gam_jax.ops.activation import gelu
from gam_jax.ops.linear import linear
from gam_jax.ops.spectrum import anti_wrapped, phase_of
from gam_jax.params import Param, Params, Table, fan_in, zeros
from sharding.axes import Axes
from sharding.bounds import Size


@dataclasses.dataclass(frozen=True)
class PhaseModel(Model):
    """Phases of F frequencies from a few numbers: hidden layers and a head.

    Attributes:
      width: of the hidden layers.
      depth: how many.
      inputs: numbers that are given; the data's where it is None.
      bins: F; likewise.
      parallel: whether the head is two linear maps R and I and the angle atan2(I, R); otherwise it
        is one linear map.
      wrapped: whether the loss is that of angles, `anti_wrapped`; otherwise the squared difference.
    """

    width: Size = 128
    depth: Size = 3
    inputs: Size | None = None
    bins: Size | None = None
    parallel: bool = True
    wrapped: bool = True

    def fitted(self, data: Dataset) -> PhaseModel:
        """With the sizes of the data.

        Raises:
          UserError: the data has other sizes than the model.
        """
        return dataclasses.replace(self, **sizes_of(self, data, ("inputs", "bins")))

    def table(self) -> Table:
        """hidden_0 ...: weight, bias; head: weight, bias."""
        size, found = known(self.inputs, "inputs", self), {}
        for number in range(self.depth):
            found[f"hidden_{number}"] = _affine(size, self.width)
            size = self.width
        outputs = known(self.bins, "bins", self) * (2 if self.parallel else 1)
        return {**found, "head": _affine(size, outputs)}

    def batch_axes(self) -> dict[str, tuple[str | None, ...]]:
        """inputs [rows, inputs], phases [rows, F], weights [rows]."""
        return {"inputs": (BATCH, None), "phases": (BATCH, None), "weights": (BATCH,)}

    def __call__(self, params: Params, x: Float[Array, "B N"]) -> Float[Array, "B F"]:
        """Phases."""
        for number in range(self.depth):
            x = gelu(_applied(params[f"hidden_{number}"], x))
        x = _applied(params["head"], x)
        return phase_of(*jnp.split(x, 2, axis=-1)) if self.parallel else x

    def objective(
        self, params: Params, batch: Batch, axes: Axes = WHOLE, *, key: Array | None = None
    ) -> tuple[Float[Array, ""], float, Measures]:
        """The weighted sum of losses; and the mean error of an angle in radians, 0 to pi."""
        off = self(params, batch["inputs"]) - batch["phases"]
        weights, errors = batch["weights"], jnp.mean(anti_wrapped(off), -1)
        losses = errors if self.wrapped else jnp.mean(jnp.square(off), -1)
        told = {"phase_error": (jnp.sum(weights * errors), jnp.sum(weights))}
        return jnp.sum(losses * weights), 0.0, told


def _affine(inputs: int, outputs: int) -> Table:
    return {
        "weight": Param((inputs, outputs), (None, None), fan_in(inputs)),
        "bias": Param((outputs,), (None,), zeros, decay=False),
    }


def _applied(params: Params, x: Array) -> Array:
    return linear(x, params["weight"], params["bias"])
