"""A bank of up to millions of slots, read through product keys."""

from __future__ import annotations

import dataclasses

from jaxtyping import Array, Bool, Float

from gam_jax.layers.base import WHOLE, Layer, known
from gam_jax.ops.linear import linear
from gam_jax.ops.norm import layer_norm
from gam_jax.ops.sparse_memory import product_read
from gam_jax.params import Param, Params, Table, fan_in, normal, zeros
from sharding import residual
from sharding.axes import Axes
from sharding.bounds import Size, check_bounds


@dataclasses.dataclass(frozen=True)
class ProductMemory(Layer):
    """Each head finds its `top` best of side^2 slots by two half keys and reads their mixture.

    See `gam_jax.ops.sparse_memory.product_read`. Like GAM's bank it is a weight, not a memory of
    the sequence: it stands where a feed-forward stands, or a mixer. Source: product-key memory
    (arXiv 1907.05242); its queries are batch-normalised, which cannot stream, ours are
    layer-normalised, half by half.

    Attributes:
      width: D.
      side: R; there are M = R^2 slots.
      keys: K, width of a half key.
      heads: Q.
      top: slots that a head reads.
    """

    width: Size | None = None
    side: Size = 256
    keys: Size = 64
    heads: Size = 4
    top: Size = 32

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.top > self.side**2:
            raise ValueError(
                f"ProductMemory.top={self.top} is not from 1 to the slots, side^2 = {self.side**2}"
            )

    def table(self) -> Table:
        """query [D, Q, 2, K] and its norm [Q, 2, K]; keys [Q, 2, R, K]; values [R^2, D]."""
        width = known(self.width, "width", self)
        queries, plain = (self.heads, 2, self.keys), (None, None, None)
        keys = (self.heads, 2, self.side, self.keys)
        values = (self.side**2, width)
        return {
            "query": Param((width, *queries), ("embed", *plain), fan_in(width)),
            "query_bias": Param(queries, plain, zeros, decay=False),
            "keys": Param(keys, (None, *plain), fan_in(self.keys)),
            "values": Param(values, ("slot", "embed"), normal(width**-0.5)),
        }

    def __call__(
        self,
        params: Params,
        x: Float[Array, "B T D"],
        carry: tuple[()] | None = None,
        axes: Axes = WHOLE,
        *,
        key: Array | None = None,
        starts: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], tuple[()]]:
        """Values are split by slot; what devices read adds up."""
        x = residual.enter(x, axes, "slot", "channel")
        flat, weight = x.reshape(-1, x.shape[-1]), params["query"]
        query = linear(flat, weight.reshape(len(weight), -1), params["query_bias"].reshape(-1))
        query = query.reshape(-1, *weight.shape[1:])
        query = layer_norm(query, 1.0, 0.0)  # type: ignore[arg-type]
        channels = axes.of("channel")
        slots = axes.of("slot")
        y = product_read(query, params["keys"], params["values"], self.top, slots, channels)
        return residual.leave_channels(y.reshape(*x.shape[:2], -1), channels, axes), ()
