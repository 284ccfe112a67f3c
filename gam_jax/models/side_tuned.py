"""A frozen language model, and a small network beside it that reads all its layers.

Source: UniPT (arXiv 2308.14316), in the form of its text encoder, made causal: a token sees itself
and earlier ones, and weighs the layers by itself, where the paper looks at all tokens and weighs
by their mean.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from gam_jax import params as tables
from gam_jax.data.base import Dataset
from gam_jax.layers.base import WHOLE
from gam_jax.layers.in_order import gathered
from gam_jax.layers.norm import LayerNorm
from gam_jax.models.base import Batch, Measures, Model, check_stages
from gam_jax.models.language import LanguageModel
from gam_jax.models.trunk import Trunk
from gam_jax.ops.cross_entropy import token_losses
from gam_jax.params import Param, Params, Table, fan_in, ones, zeros
from sharding.axes import Axes
from sharding.bounds import Size
from sharding.errors import UserError
from sharding.layout import Layout

SIDE = "side"
"""Its entry in a table, beside those of the model inside."""
ONLY = "side/*"
"""What an optimizer trains of it."""
LEAST = 1e-6
"""What sums of scores are divided by at least."""


def side_table(width: int, taps: int, inner: int, out: int) -> Table:
    """The parameters of the network at the side.

    Args:
      width: D of the taps.
      taps: how many.
      inner: r, its own width.
      out: of what it gives.
    """

    def norm(*lead: int) -> dict[str, Param]:
        axes = (None,) * (len(lead) + 1)
        return {
            "scale": Param((*lead, inner), axes, ones, decay=False, precise=True),
            "bias": Param((*lead, inner), axes, zeros, decay=False, precise=True),
        }

    def vector(size: int, init: Any) -> Param:
        return Param((size,), (None,), init, decay=False)

    return {
        "w_in": Param((taps, width, inner), (None, None, None), fan_in(width)),
        "b_in": Param((taps, inner), (None, None), fan_in(width), decay=False),
        "in_norm": norm(taps),
        "w_layers": vector(inner, fan_in(inner)),
        "b_layers": vector(1, fan_in(inner)),
        "w_mix": Param((inner, inner), (None, None), fan_in(inner)),
        "b_mix": vector(inner, fan_in(inner)),
        "mix_norm": norm(),
        "w_out": Param((inner, out), (None, None), zeros),
        "b_out": vector(out, zeros),
    }


def side(params: Params, taps: Float[Array, "L B T D"]) -> Float[Array, "B T O"]:
    """What the network makes of the layers, the last of which is the anchor.

    z_i = norm(h_i P_i + p_i). Of each layer before the anchor, a_i = relu(z_L z_i^T) over this and
    earlier tokens, each row divided by its sum, and m_i = (a_i + 1) z_i. A token weighs layers by
    softmax_i(w . (z_L * z_i) + b), their sum is m, and y = W_out relu(z_L + norm(m Q + q)) + b_out.
    """
    norm = LayerNorm(width=params["b_mix"].shape[0])

    def read(own: Any, h: Array) -> Array:
        z = jnp.einsum("btd,dr->btr", h, own["w_in"]) + own["b_in"]
        return norm(own["in_norm"], z)[0]

    each = {name: params[name] for name in ("w_in", "b_in", "in_norm")}
    z = jax.vmap(read)(each, taps)
    anchor, before = z[-1], z[:-1]
    tokens = anchor.shape[1]
    seen = jnp.tril(jnp.ones((tokens, tokens), bool))

    @jax.checkpoint
    def mixed(z: Array) -> Array:
        scores = jnp.einsum("bsr,btr->bst", anchor, z, preferred_element_type=jnp.float32)
        scores = jnp.where(seen, jax.nn.relu(scores), 0)
        scores = scores / jnp.maximum(jnp.sum(scores, axis=-1, keepdims=True), LEAST)
        return jnp.einsum("bst,btr->bsr", scores.astype(z.dtype), z) + z

    if before.shape[0]:
        found = lax.map(mixed, before)
        logits = jnp.einsum("btr,lbtr,r->lbt", anchor, before, params["w_layers"])
        weights = jax.nn.softmax(logits.astype(jnp.float32) + params["b_layers"], axis=0)
        m = jnp.einsum("lbt,lbtr->btr", weights.astype(z.dtype), found)
    else:
        m = anchor
    y = anchor + norm(params["mix_norm"], m @ params["w_mix"] + params["b_mix"])[0]
    return jax.nn.relu(y) @ params["w_out"] + params["b_out"]


@dataclasses.dataclass(frozen=True)
class SideTuned(Model):
    """The inner model frozen; what a small network makes of its layers is added before the head.

    No gradient goes through the inner model, so nothing of its insides is kept: memory is that of
    its layers' outputs and of the network. It begins as the inner model, since what it adds begins
    as 0. `optimizer.only` must be "side/*", so that decay moves nothing else and moments are the
    network's alone; `--init` takes over a trained run.

    Attributes:
      inner: the frozen model, without parallel streams.
      reduce: the network's width is the inner model's divided by this.
    """

    inner: LanguageModel
    reduce: Size = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner.width % self.reduce:
            raise ValueError(
                f"SideTuned.reduce={self.reduce} does not divide {self.inner.width} channels"
            )
        if self.inner.streams > 1 or self.inner.ladder:
            raise ValueError("SideTuned.inner must have no parallel streams and no ladder")

    def table(self) -> Table:
        """The inner model's, and side: see `side_table`."""
        width = self.inner.width
        own = side_table(width, self.inner.depth + 1, width // self.reduce, width)
        return {**self.inner.table(), SIDE: own}

    def batch_axes(self) -> dict[str, tuple[str | None, ...]]:
        """The inner model's."""
        return self.inner.batch_axes()

    def ids(self) -> dict[str, int]:
        """The inner model's."""
        return self.inner.ids()

    def fitted(self, data: Dataset) -> SideTuned:
        """With the inner model fitted.

        Raises:
          UserError: rows that hold several documents; see also `LanguageModel.fitted`.
        """
        inner = self.inner.fitted(data)
        if inner.packed:
            raise UserError("a model that is tuned at its side needs a row for each document")
        return dataclasses.replace(self, inner=inner)

    def check_mesh(self, layout: Layout) -> None:
        """Refuses devices that split tokens.

        Raises:
          UserError: these, and what the inner model refuses.
        """
        self.inner.check_mesh(layout)
        check_stages(self, layout)
        if layout.axes.tokens:
            raise UserError(
                f"mesh axes {', '.join(layout.axes.tokens)} split tokens, which the network at the "
                f"side reads whole: make seq 1, and take tensor for tensor_tokens"
            )

    def hidden(
        self, params: Params, tokens: Array, axes: Axes = WHOLE
    ) -> tuple[Params, Float[Array, "B T D"]]:
        """The frozen parameters, and what the head is given."""
        own = {name: branch for name, branch in params.items() if name != SIDE}
        frozen = self.inner.own(lax.stop_gradient(own), axes)
        x, _ = self.inner.embedded(frozen, tokens, None, axes)
        block = self.inner.stack.block
        blocks = tables.cast(self.inner.stack.table(), frozen["blocks"], x.dtype)

        def step(h: Array, own: Params) -> tuple[Array, Array]:
            h, _ = block(gathered(block, own), h, None, axes)
            return h, h

        last, after = lax.scan(step, x, blocks)
        taps = lax.stop_gradient(jnp.concatenate([x[None], after]))
        trunk = Trunk(self.inner.stack, self.inner.norm)
        final = lax.stop_gradient(self.inner.scaled(trunk.normed(frozen, last, axes)))
        network = tables.cast(self.table()[SIDE], params[SIDE], x.dtype)
        return frozen, final + side(network, taps).astype(final.dtype)

    def objective(
        self, params: Params, batch: Batch, axes: Axes = WHOLE, *, key: Array | None = None
    ) -> tuple[Float[Array, ""], Float[Array, ""] | float, Measures]:
        """The weighted sum of cross-entropies in nats; the frozen model has no dropout."""
        frozen, hidden = self.hidden(params, batch["inputs"], axes)
        return self.inner._scores(frozen, hidden, batch, axes).loss(), 0.0, {}

    def scored(self, params: Params, batch: Batch, axes: Axes = WHOLE) -> Measures:
        """The loss, and the accuracy."""
        frozen, hidden = self.hidden(params, batch["inputs"], axes)
        return self.inner.hits(frozen, hidden, batch, axes)

    def losses(self, params: Params, batch: Batch, axes: Axes = WHOLE) -> Float[Array, "B T"]:
        """The cross-entropy of each token in nats."""
        frozen, hidden = self.hidden(params, batch["inputs"], axes)
        return self.inner._scores(frozen, hidden, batch, axes).whole(token_losses)
