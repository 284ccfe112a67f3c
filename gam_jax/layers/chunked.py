"""Long sequences in chunks, for memory that hardly grows with the length."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from gam_jax.layers.base import WHOLE, Carry, Layer, inherit, paired, parted, told
from gam_jax.params import Params, Table
from sharding import collectives
from sharding.axes import Axes
from sharding.bounds import Rate, Size, check_bounds


@dataclasses.dataclass(frozen=True)
class Chunked(Layer):
    """The inner layer, chunk after chunk, each handing its carry to the next.

    The same function as `inner`. The backward pass recomputes a chunk's insides, so only its
    input, output and carry are stored: temporaries are those of one chunk. Where tokens are split
    over devices (`axes.tokens`), each device's part is taken whole. With dropout, the masks differ
    from those of `inner`, since each chunk has its own key.

    Attributes:
      inner: any layer.
      size: tokens in a chunk; what is left over is a last, shorter one.
    """

    inner: Layer
    size: Size = 4096
    width: Size | None = None
    dropout: Rate | None = None

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.inner.causal:
            raise ValueError("Chunked.inner must be causal: it hands a carry from chunk to chunk")
        inner = inherit(self.inner, width=self.width, dropout=self.dropout)
        object.__setattr__(self, "inner", inner)

    def table(self) -> Table:
        """The inner layer's."""
        return self.inner.table()

    def carry_table(self, batch: int) -> Any:
        """The inner layer's."""
        return self.inner.carry_table(batch)

    def __call__(
        self,
        params: Params,
        x: Float[Array, "B T D"],
        carry: Carry | None = None,
        axes: Axes = WHOLE,
        *,
        key: Array | None = None,
        starts: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Carry]:
        """A scan over the whole chunks, then the rest."""
        batch, tokens, width = x.shape
        count = tokens // self.size
        if axes.tokens or count == 0:
            return self.inner(params, x, carry, axes, key=key, **told(starts))

        def step(carry: Carry, chunk: tuple[Array, Array, Array | None]) -> tuple[Carry, Array]:
            part, index, begins = chunk
            own = None if key is None else jax.random.fold_in(key, index)
            carry = paired(carry, begin)
            y, carry = self.inner(params, part, carry, axes, key=own, **told(begins))
            return carry, y

        def cut(x: Array) -> Array:
            parts = x[:, : count * self.size].reshape(batch, count, self.size, *x.shape[2:])
            return jnp.moveaxis(parts, 1, 0)

        carry, begin = parted(self.begun(carry, x, axes))
        chunks = (cut(x), jnp.arange(count), None if starts is None else cut(starts))
        first = jax.tree.map(lambda part: part[0], chunks)
        carry = collectives.typed_as(carry, jax.eval_shape(step, carry, first)[0])
        carry, ys = lax.scan(jax.checkpoint(step, prevent_cse=False), carry, chunks)
        y = jnp.moveaxis(ys, 0, 1).reshape(batch, -1, width)
        if count * self.size == tokens:
            return y, carry
        rest = None if starts is None else starts[:, count * self.size :]
        carry, last = step(carry, (x[:, count * self.size :], jnp.asarray(count), rest))
        return jnp.concatenate([y, last], axis=1), carry
