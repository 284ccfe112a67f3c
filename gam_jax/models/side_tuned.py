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
from jaxtyping import Array, Float, Int

from gam_jax import params as tables
from gam_jax.data.base import Dataset
from gam_jax.layers.base import WHOLE, Layer, row_counter
from gam_jax.layers.in_order import gathered
from gam_jax.layers.norm import LayerNorm
from gam_jax.layers.stack import Stack
from gam_jax.models.base import Batch, Measures, Model, check_stages
from gam_jax.models.language import LanguageModel
from gam_jax.models.trunk import Trunk
from gam_jax.ops.cache import cache_size, check_fits, write_rows
from gam_jax.ops.cross_entropy import token_losses
from gam_jax.params import Param, Params, Table, fan_in, ones, zeros
from sharding.axes import Axes
from sharding.bounds import Size
from sharding.errors import UserError
from sharding.layout import Layout

SIDE = "side"
"""Its entry in a table, beside those of the model inside."""
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
    z = narrowed(params, taps)
    return beside(params, z, z[:-1], jnp.arange(taps.shape[2])[None])


def narrowed(params: Params, taps: Float[Array, "L B T D"]) -> Float[Array, "L B T r"]:
    """z_i of `side`, of each layer."""
    norm = LayerNorm(width=params["b_mix"].shape[0])

    def read(own: Any, h: Array) -> Array:
        z = jnp.einsum("btd,dr->btr", h, own["w_in"]) + own["b_in"]
        return norm(own["in_norm"], z)[0]

    return jax.vmap(read)({name: params[name] for name in ("w_in", "b_in", "in_norm")}, taps)


def beside(
    params: Params,
    z: Float[Array, "L B T r"],
    seen: Float[Array, "L1 B S r"],
    places: Int[Array, "B1 T"],
) -> Float[Array, "B T O"]:
    """`side` of tokens that may follow others.

    Args:
      params: see `side_table`.
      z: of these tokens, see `narrowed`.
      seen: of all tokens up to the last of these, of the layers before the anchor.
      places: of these tokens among all, of all rows or of each; what is later is not seen.
    """
    norm = LayerNorm(width=params["b_mix"].shape[0])
    anchor, before = z[-1], z[:-1]
    visible = jnp.arange(seen.shape[2]) <= places[..., None]

    @jax.checkpoint
    def mixed(both: tuple[Array, Array]) -> Array:
        z, every = both
        scores = jnp.einsum("bsr,btr->bst", anchor, every, preferred_element_type=jnp.float32)
        scores = jnp.where(visible, jax.nn.relu(scores), 0)
        scores = scores / jnp.maximum(jnp.sum(scores, axis=-1, keepdims=True), LEAST)
        return jnp.einsum("bst,btr->bsr", scores.astype(z.dtype), every) + z

    if before.shape[0]:
        found = lax.map(mixed, (before, seen))
        logits = jnp.einsum("btr,lbtr,r->lbt", anchor, before, params["w_layers"])
        weights = jax.nn.softmax(logits.astype(jnp.float32) + params["b_layers"], axis=0)
        m = jnp.einsum("lbt,lbtr->btr", weights.astype(z.dtype), found)
    else:
        m = anchor
    y = anchor + norm(params["mix_norm"], m @ params["w_mix"] + params["b_mix"])[0]
    return jax.nn.relu(y) @ params["w_out"] + params["b_out"]


@dataclasses.dataclass(frozen=True)
class SideBlocks(Layer):
    """All blocks of a frozen model, its last norm and the network at its side, as one that streams.

    Its carry is that of the blocks, and what the network has read of earlier tokens.

    Attributes:
      stack: the blocks.
      norm: after them.
      reduce: see `SideTuned`.
      scale: of what the norm gives.
      context: tokens that the carry has room for.
    """

    stack: Stack
    norm: Layer
    width: Size
    reduce: Size
    scale: float
    context: Size

    @property
    def limit(self) -> int:
        """The context, or that of the blocks."""
        return min(self.context, self.stack.limit or self.context)

    def for_length(self, tokens: int) -> SideBlocks:
        """With room for so many tokens, in whole blocks."""
        context = cache_size(tokens, self.context)
        return dataclasses.replace(super().for_length(tokens), context=context)

    def table(self) -> Table:
        """blocks, final_norm and side."""
        inner = self.width // self.reduce
        return {
            "blocks": self.stack.table(),
            "final_norm": tables.precise(self.norm.table()),
            SIDE: side_table(self.width, self.stack.depth + 1, inner, self.width),
        }

    def carry_table(self, batch: int) -> Any:
        """Of the blocks; seen [B, L, S, r], of the layers before the anchor; position [B]."""
        shape = batch, self.stack.depth, self.context, self.width // self.reduce
        seen = Param(shape, ("batch", None, None, None), zeros, cache=True)
        blocks = self.stack.carry_table(batch)
        return {"blocks": blocks, "seen": seen, "position": row_counter(batch)}

    def __call__(
        self,
        params: Params,
        x: Float[Array, "B T D"],
        carry: Any = None,
        axes: Axes = WHOLE,
        *,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """What the head is given; nothing is dropped.

        Raises:
          UserError: more tokens than the context.
        """
        begin = None if carry is None else carry["blocks"]
        own = self.begun(carry, x, axes)
        position, tokens = own["position"], x.shape[1]
        check_fits(position, tokens, self.context, "context of the network at the side")
        taps, after = tapped(self.stack, params["blocks"], x, begin, axes)
        network = tables.cast(self.table()[SIDE], params[SIDE], x.dtype)
        z = narrowed(network, taps)
        new = jnp.swapaxes(z[:-1], 0, 1)
        seen = write_rows(own["seen"], new, position, axis=2)
        places = position[:, None] + jnp.arange(tokens)
        added = beside(network, z, jnp.swapaxes(seen, 0, 1).astype(z.dtype), places)
        normed = self.scale * self.norm(params["final_norm"], taps[-1], None, axes)[0]
        y = (normed + added.astype(normed.dtype)).astype(x.dtype)
        return y, {"blocks": after, "seen": seen, "position": position + tokens}


@dataclasses.dataclass(frozen=True)
class _AsItIs(Layer):
    """Hands on what it is given."""

    def table(self) -> Table:
        """No parameters."""
        return {}

    def __call__(self, params: Params, x: Array, carry: Any = None, *_: Any, **__: Any) -> Any:
        return x, carry


def tapped(
    stack: Stack, params: Params, x: Float[Array, "B T D"], carry: Any, axes: Axes
) -> tuple[Float[Array, "L B T D"], Any]:
    """What enters the blocks and what each of them gives; and their carry."""
    blocks = tables.cast(stack.table(), params, x.dtype)

    def step(h: Array, own: tuple[Params, Any]) -> tuple[Array, Any]:
        h, after = stack.block(gathered(stack.block, own[0]), h, own[1], axes)
        return h, (h, after)

    _, (outputs, after) = lax.scan(step, x, (blocks, carry))
    return jnp.concatenate([x[None], outputs]), after


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
      context: the most tokens of a text that it writes, where the inner model has no limit.
    """

    inner: LanguageModel
    reduce: Size = 2
    context: Size = 2048

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

    @property
    def frozen(self) -> tuple[str, ...]:
        """The inner model."""
        return tuple(self.inner.table())

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
        taps = lax.stop_gradient(tapped(self.inner.stack, frozen["blocks"], x, None, axes)[0])
        trunk = Trunk(self.inner.stack, self.inner.norm)
        final = lax.stop_gradient(self.inner.scaled(trunk.normed(frozen, taps[-1], axes)))
        network = tables.cast(self.table()[SIDE], params[SIDE], x.dtype)
        return frozen, final + side(network, taps).astype(final.dtype)

    def writing(self) -> LanguageModel:
        """The same as a language model that streams, of one block, for `writing_params`."""
        inner = self.inner
        sizes = inner.width, self.reduce, inner.logit_scale, inner.limit or self.context
        return dataclasses.replace(
            inner,
            block=SideBlocks(inner.stack, inner.norm, *sizes),
            depth=1,
            norm=_AsItIs(),
            dropout=0.0,
            logit_scale=1.0,
            remat=False,
            unroll=1,
        )

    def writing_params(self, params: Params) -> Params:
        """Parameters of `writing`: the same arrays, in other places."""
        names = ("blocks", "final_norm", SIDE)
        block = {name: jax.tree.map(lambda x: x[None], params[name]) for name in names}
        outside = {name: branch for name, branch in params.items() if name not in names}
        return {**outside, "blocks": block, "final_norm": {}}

    def carry_bytes(self, batch: int) -> int:
        """Of the model that streams."""
        return self.writing().carry_bytes(batch)

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
