"""A small autoencoder of sounds, made of convolutions that run offline or as a stream."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from gam_jax.layers.base import WHOLE
from gam_jax.layers.convolution import Convolution, Pointwise, Transposed, causal
from gam_jax.layers.delayed import Node, Sequential, residual
from gam_jax.models.base import BATCH, Batch, Measures, Model
from gam_jax.params import Params, Table
from sharding.axes import Axes
from sharding.bounds import Size
from sharding.errors import UserError


@dataclasses.dataclass(frozen=True)
class Autoencoder(Model):
    """Sounds through few numbers and back, in the form of RAVE's (arXiv 2111.05011), far smaller.

    Encoder: a convolution, then one with stride for each ratio, then one to the code. Decoder: for
    each ratio in turn a transposed convolution and residual stacks with dilations 1 and 3.

    Attributes:
      width: channels within.
      code: channels of the narrowest place.
      ratios: strides; samples of a row are a multiple of their product.
      causal: whether all padding stands before the inputs: never late, and blind to the future.
    """

    width: Size = 16
    code: Size = 8
    ratios: tuple[Size, ...] = (4, 2)
    causal: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(1 <= ratio <= 64 for ratio in self.ratios):
            raise UserError(f"Autoencoder.ratios={self.ratios}: give whole numbers from 1 to 64")

    @property
    def network(self) -> Node:
        """[B, N, 1] to [B, N, 1]."""
        width, bend = self.width, Pointwise("leaky_relu_0.2")
        nodes: list[Node] = [Convolution(width, kernel=7)]
        for ratio in self.ratios:
            nodes += [bend, Convolution(width, kernel=2 * ratio + 1, stride=ratio)]
        nodes += [bend, Convolution(self.code, kernel=5), Convolution(width, kernel=7)]
        for ratio in reversed(self.ratios):
            nodes += [bend, Transposed(width, 2 * ratio, ratio, ratio // 2)]
            nodes += [
                residual(bend, Convolution(kernel=3, dilation=d), bend, Convolution(kernel=3))
                for d in (1, 3)
            ]
        network = Sequential((*nodes, bend, Convolution(1, kernel=7)))
        return causal(network) if self.causal else network

    def table(self) -> Table:
        """Those of the network."""
        return {"network": self.network.table(1)}

    def batch_axes(self) -> dict[str, tuple[str | None, ...]]:
        """audio [rows, samples], weights [rows]."""
        return {"audio": (BATCH, None), "weights": (BATCH,)}

    def __call__(self, params: Params, audio: Float[Array, "B N"]) -> Float[Array, "B N"]:
        """The sounds that come out, offline."""
        return self.network(params["network"], audio[..., None])[..., 0]

    def losses(self, params: Params, batch: Batch, axes: Axes = WHOLE) -> Float[Array, B]:
        """The mean squared error of each row over the mean square of its samples."""
        audio = batch["audio"]
        error = jnp.mean(jnp.square(self(params, audio) - audio), axis=1)
        return error / (jnp.mean(jnp.square(audio), axis=1) + 1e-8)

    def objective(
        self, params: Params, batch: Batch, axes: Axes = WHOLE, *, key: Array | None = None
    ) -> tuple[Float[Array, ""], float, Measures]:
        """The weighted sum of `losses`: 1 is silence, 0 the sound itself."""
        return jnp.sum(self.losses(params, batch, axes) * batch["weights"]), 0.0, {}
