"""Both directions of a sequence at once."""

from __future__ import annotations

import dataclasses

import jax
from jaxtyping import Array, Float

from gam_jax.layers.base import WHOLE, Layer, inherit, known
from gam_jax.ops.linear import linear
from gam_jax.params import Param, Params, Table, fan_in
from sharding import exchange, residual
from sharding.axes import Axes
from sharding.bounds import Rate, Size, check_bounds


@dataclasses.dataclass(frozen=True)
class Bidirectional(Layer):
    """y_t = W_f f(x)_t + W_b b(x)_t + bias: a layer f from the left, another b from the right.

    Both are of the kind `inner`, each with its own parameters. Every token sees the whole
    sequence, so there is no carry and no next token to predict: it is for encoders. Rows of a
    batch must be of equal length: padding would be read first by b. Source: Schuster and Paliwal
    1997; Lipton et al. 2015 (arXiv 1506.00019), section 4.2.

    Attributes:
      inner: any layer.
    """

    inner: Layer
    width: Size | None = None
    dropout: Rate | None = None

    def __post_init__(self) -> None:
        check_bounds(self)
        inner = inherit(self.inner, width=self.width, dropout=self.dropout)
        object.__setattr__(self, "inner", inner)

    @property
    def causal(self) -> bool:
        """False: every output depends on later tokens too."""
        return False

    @property
    def documents(self) -> bool:
        """False: the layer from the right would read on into the document before."""
        return False

    def table(self) -> Table:
        """forward, backward, w_out [2, D, D], b_out [D]."""
        width = known(self.width, "width", self)
        shape, axes = (2, width, width), (None, "embed", "channel")
        return {
            "forward": self.inner.table(),
            "backward": self.inner.table(),
            "w_out": Param(shape, axes, fan_in(2 * width)),
            "b_out": Param((width,), ("channel",), fan_in(2 * width), decay=False),
        }

    def __call__(
        self,
        params: Params,
        x: Float[Array, "B T D"],
        carry: tuple[()] | None = None,
        axes: Axes = WHOLE,
        *,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], tuple[()]]:
        """Two sequences of states and what they give together; carries are not handed on."""
        keys = (None, None) if key is None else jax.random.split(key)
        ahead, _ = self.inner(params["forward"], x, None, axes, key=keys[0])
        back = exchange.reverse(x, axes.tokens)
        back, _ = self.inner(params["backward"], back, None, axes, key=keys[1])
        both = (ahead, exchange.reverse(back, axes.tokens))
        parts = [residual.enter(part, axes, "channel") for part in both]
        flat = [part.reshape(-1, part.shape[2]) for part in parts]
        sums = linear(flat[0], params["w_out"][0], params["b_out"])
        sums = (sums + linear(flat[1], params["w_out"][1])).reshape(*parts[0].shape[:2], -1)
        return residual.leave_channels(sums, axes.of("channel"), axes), ()
