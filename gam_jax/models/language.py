"""The language model: embedding, a stack of blocks, head."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from gam_jax import params as tables
from gam_jax.data.base import Dataset
from gam_jax.layers.base import (
    WHOLE,
    Layer,
    inherit,
    known,
    refuses_documents,
    told,
)
from gam_jax.layers.norm import LayerNorm
from gam_jax.layers.parscale import ParScale
from gam_jax.layers.pattern import Pattern
from gam_jax.layers.stack import Stack
from gam_jax.models import language_parts, suits
from gam_jax.models.base import (
    BATCH,
    TOKEN,
    Batch,
    Measures,
    Model,
    Parts,
    check_no_workers,
    check_stages,
    reported,
)
from gam_jax.models.carry import ModelCarry
from gam_jax.models.token_scores import TokenMeasure, TokenScores
from gam_jax.models.trunk import Trunk
from gam_jax.ops import documents
from gam_jax.ops.cache import known_most
from gam_jax.ops.cross_entropy import block_size, capped, token_losses, token_scores
from gam_jax.ops.dropout import dropout
from gam_jax.ops.vocabulary import embed, padded_rows
from gam_jax.params import Param, Params, Table
from gam_jax.units import ALL_CHANNELS, WIDTH, Part, Unit, UnitTable, joined, within
from sharding import collectives, residual
from sharding.axes import Axes
from sharding.bounds import Count, NotNegative, Rate, Share, Size
from sharding.layout import Layout

INITS = ("sound", "published")
DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class LanguageModel(Model):
    """Predicts the next token: logits, carry = model(params, tokens).

    Attributes:
      block: the residual block; it takes width and dropout from here where it leaves them None.
      width: D.
      depth: L.
      vocab: V, of at least the tokenizer's ids; None for as many, once they are known.
      context: how many learned positions there are; 0 for none (the model then streams forever).
      dropout: rate on the embedding and wherever the block leaves its own None.
      init: "sound" draws positions from N(0, 0.02^2), so that tokens are seen beside them;
        "published" from N(0, 1), as the official GAM code does (tokens are then 0.07 % of the
        variance that enters the first block).
      dtype: of the arithmetic, one of `DTYPES`; norms, softmaxes and losses stay float32.
      remat: recompute blocks in the backward pass, see `Stack`.
      unroll: blocks in one turn of the scan, see `Stack`.
      norm: of the last block's output.
      tied: whether the head is the embedding; if not, it is a parameter of its own.
      embedding_scale: constant on the embedding of a token.
      logit_scale: constant on the logits.
      loss_block: tokens whose logits the loss holds at once; 0 for what the machine has. `gam tune`
        finds it.
      logit_cap: scaled logits become cap * tanh(logit / cap) (arXiv 2408.00118); 0 for none.
      streams: P, parallel streams of blocks and last norm that are mixed before the head, see
        `layers.ParScale`; 1 for none.
      prefix, smoothing: of the streams, likewise.
      packed: whether batches say where documents begin (`starts`); the data decide it.
      ladder: so many last blocks read the stream one half block earlier, see `Stack`.
    """

    block: Layer
    width: Size
    depth: Size
    vocab: Size | None = None
    context: Count = 0
    dropout: Rate = 0.0
    init: str = "sound"
    dtype: str = "float32"
    remat: bool = False
    unroll: Size = 1
    norm: Layer = LayerNorm()
    tied: bool = True
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_cap: NotNegative = 0.0
    streams: Size = 1
    prefix: Count = 48
    smoothing: Share = 0.1
    packed: bool = False
    ladder: Count = 0
    loss_block: Count = 0

    computed: ClassVar[tuple[str, ...]] = ("remat", "unroll", "loss_block")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init not in INITS:
            raise ValueError(f"LanguageModel.init '{self.init}' is not one of {', '.join(INITS)}")
        if self.dtype not in DTYPES:
            raise ValueError(
                f"LanguageModel.dtype '{self.dtype}' is not one of {', '.join(DTYPES)}"
            )
        suits.check_causal(self.block)
        for name in ("block", "norm"):
            inner = inherit(getattr(self, name), width=self.width, dropout=self.dropout)
            object.__setattr__(self, name, inner)
        _ = self.trunk

    @property
    def trunk(self) -> ParScale:
        """Blocks and last norm as one layer, of all streams."""
        trunk = Trunk(self.stack, self.norm)
        return ParScale(trunk, self.streams, self.prefix, self.smoothing, self.width)

    @property
    def stack(self) -> Stack:
        """The blocks as one layer; a `Pattern` has the loops of its own."""
        if not isinstance(self.block, Pattern):
            return Stack(self.block, self.depth, self.remat, self.unroll, self.ladder)
        unroll, remat = max(self.unroll, self.block.unroll), self.remat or self.block.remat
        block = dataclasses.replace(self.block, unroll=unroll, remat=remat)
        return Stack(block, self.depth, ladder=self.ladder)

    def table(self) -> Table:
        """embedding [V, D], positions [context, D], blocks, final norm; untied, head [V, D].

        With streams, their starts and aggregator.
        """
        shape, axes = (known(self.vocab, "vocab", self), self.width), ("vocab", "embed")
        rows = Param(shape, axes, tables.fan_in(self.width), pads="vocab")
        table: dict[str, Table | Param] = {"embedding": rows, **self.trunk.table()}
        if not self.tied:
            table["head"] = rows
        if self.context:
            std = 1.0 if self.init == "published" else 0.02
            shape, axes = (self.context, self.width), ("position", "embed")
            table["positions"] = Param(shape, axes, tables.normal(std))
        return table

    def unit_table(self) -> UnitTable:
        """Those of its blocks; the width where all of it can be copied. None of streams."""
        if self.streams > 1:
            return {}
        made = [Part("embedding", 1), *([Part("positions", 1)] if self.context else [])]
        tied = "the head is the embedding, which both makes and takes it" if self.tied else ""
        head = () if self.tied else (Part("head", 1),)
        own = {WIDTH: Unit(tuple(made), head, equal=ALL_CHANNELS, fixed=tied)}
        blocks = within("blocks", 0, self.stack.unit_table(), "")
        return joined(blocks, within("final_norm", 0, self.norm.unit_table(), "norm"), own)

    def with_units(self, name: str, size: int) -> LanguageModel:
        """With so many channels of the residual stream."""
        if name != WIDTH:
            raise KeyError(f"a language model has no units '{name}'")
        inner = {field: getattr(self, field).with_units(WIDTH, size) for field in ("block", "norm")}
        return dataclasses.replace(self, width=size, **inner)

    def batch_axes(self) -> dict[str, tuple[str | None, ...]]:
        """inputs, targets and weights, each [rows, tokens]; packed, starts too."""
        names = ("inputs", "targets", "weights", *(("starts",) if self.packed else ()))
        return dict.fromkeys(names, (BATCH, TOKEN))

    def ids(self) -> dict[str, int]:
        """inputs and targets, of the vocabulary."""
        return dict.fromkeys(("inputs", "targets"), known(self.vocab, "vocab", self))

    def fitted(self, data: Dataset) -> LanguageModel:
        """The model with what the data decide: whether rows are packed, and an unknown vocabulary.

        A vocabulary that is known stays, since it may have more ids than the tokenizer uses.

        Raises:
          UserError: the data do not suit it, see `suits.check_data`.
        """
        suits.check_data(self, data.sizes, data.config.name)
        packed = bool(data.sizes.get("packed", 0))
        vocab = data.sizes["vocab"] if self.vocab is None else self.vocab
        return dataclasses.replace(self, vocab=vocab, packed=packed)

    def cannot_pack(self) -> str:
        """What of the model cannot keep the documents of a row apart; empty if all can."""
        return refuses_documents(self.block)

    def check_mesh(self, layout: Layout) -> None:
        """Refuses devices for streams or stages that there are not, see `suits.check_streams`."""
        check_stages(self, layout)
        check_no_workers(layout)
        suits.check_streams(self.streams, layout.mesh.shape["stream"])

    def carry(self, batch: int, axes: Axes = WHOLE) -> ModelCarry:
        """The start of a sequence; caches in the dtype of the arithmetic."""
        trunk = self.trunk
        layers = tables.in_caches(self.dtype, trunk.carry_table(batch), trunk.carry(batch, axes))
        return ModelCarry(jnp.zeros(batch, jnp.int32), layers)

    def for_length(self, tokens: int) -> LanguageModel:
        """The model for sequences of at most so many tokens: caches that hold no more than they
        need, in whole blocks, and positions that are stretched as such sequences ask for.

        Raises:
          ValueError: more tokens than the `limit`.
        """
        self.check_length(tokens)
        return dataclasses.replace(self, block=self.block.for_length(tokens))

    def carry_bytes(self, batch: int) -> int:
        """Bytes that it keeps of so many sequences between two chunks."""
        leaves = jax.tree.leaves(jax.eval_shape(lambda: self.carry(batch)))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    def carry_specs(self, batch: int, layout: Layout, rows: tuple[str, ...] = ()) -> ModelCarry:
        """How a carry of `batch` rows lies on a mesh: a PartitionSpec for each array.

        Args:
          batch: rows on all devices together.
          layout: the mesh and its rules.
          rows: the mesh axes that split the rows, the outer one first.
        """
        specs = tables.carry_specs(self.trunk.carry_table(batch), layout, rows)
        return ModelCarry(PartitionSpec(rows or None), specs)  # type: ignore[arg-type]

    def __call__(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        carry: ModelCarry | None = None,
        axes: Axes = WHOLE,
        *,
        key: Array | None = None,
        starts: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T V"], ModelCarry]:
        """Float32 logits of the next token at each place, and the carry after the last.

        Args:
          params: see `init_params`.
          tokens: ids, this device's part. One outside the vocabulary makes logits NaN.
          carry: from the call before; None starts a sequence.
          axes: mesh axes, inside `jax.shard_map`.
          key: for dropout; None when not training.
          starts: where documents begin, see `Layer.__call__`.

        Raises:
          ValueError: more tokens than learned positions, or than a cache holds (where the
            position is traced and not known when this is compiled, the logits beyond are NaN).
        """
        params = self.own(params, axes)
        hidden, carry = self._hidden(params, tokens, carry, axes, key=key, starts=starts)
        hidden = collectives.all_gather(hidden, axes.residual, dim=1)
        return self._logits(params, hidden, axes), carry

    def last_logits(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        carry: ModelCarry | None = None,
        axes: Axes = WHOLE,
    ) -> tuple[Float[Array, "B V"], ModelCarry]:
        """As a call, the logits after the last token alone."""
        params = self.own(params, axes)
        hidden, carry = self._hidden(params, tokens, carry, axes)
        last = hidden[:, -1:]
        for axis in reversed(axes.tokens):
            last = collectives.from_last(last, axis)
        return self._logits(params, last, axes)[:, 0], carry

    def logits(
        self, params: Params, hidden: Float[Array, "B T D"], axes: Axes = WHOLE
    ) -> Float[Array, "B T V"]:
        """Float32 logits of what `hidden` gives, where the stream's tokens are whole."""
        return self._logits(self.own(params, axes), hidden, axes)

    def _logits(self, params: Params, hidden: Array, axes: Axes) -> Array:
        head = self._head(params).astype(hidden.dtype)
        logits = jnp.dot(hidden, head.T, preferred_element_type=jnp.float32)
        logits = capped(collectives.all_gather(logits, axes.of("vocab"), dim=2), self.logit_cap)
        return logits if self._padded(axes) is None else logits[..., : self.vocab]

    def _head(self, params: Params) -> Array:
        return params["embedding" if self.tied else "head"]

    def own(self, params: Params, axes: Axes) -> Params:
        """Parameters with this device's rows of a padded vocabulary, found once for all uses."""
        axis = axes.of("vocab")
        if axis is None or self._padded(axes) is None:
            return params
        names = ("embedding",) if self.tied else ("embedding", "head")
        return {**params, **{name: padded_rows(params[name], axis) for name in names}}

    def _padded(self, axes: Axes) -> int | None:
        """V where the devices that split the vocabulary do not divide it; else None."""
        vocab = known(self.vocab, "vocab", self)
        return vocab if vocab % collectives.axis_size(axes.of("vocab")) else None

    def loss(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        targets: Int[Array, "B T"],
        weights: Float[Array, "B T"] | None = None,
        axes: Axes = WHOLE,
        *,
        key: Array | None = None,
    ) -> Float[Array, ""]:
        """Weighted mean cross-entropy in nats over the whole batch, all devices of it.

        A batch whose weights are all zero has loss 0.
        """
        weights = jnp.ones(targets.shape) if weights is None else weights
        batch = {"inputs": tokens, "targets": targets, "weights": weights}
        total, _, _ = self.objective(params, batch, axes, key=key)
        count = self.count(batch, axes)
        return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 0)

    def objective(
        self, params: Params, batch: Batch, axes: Axes = WHOLE, *, key: Array | None = None
    ) -> tuple[Float[Array, ""], Float[Array, ""] | float, Measures]:
        """The weighted sum of cross-entropies in nats, and what layers add and tell.

        Args:
          params: see `init_params`.
          batch: inputs and targets, int32 [B, T]; weights, float32 [B, T]. An id outside the
            vocabulary makes the loss NaN, whatever its weight.
          axes: mesh axes, inside `jax.shard_map`.
          key: for dropout; None when not training.

        Returns:
          The sum over all devices, the penalties of layers that have any
          (`layers.base.Statistics`), and each measure by the path of its layer and its own name,
          as "ffn/routed/load".
        """
        if (parts := self.parts()) is not None:
            return parts.objective(params, batch, axes, key)
        given, params = batch.get("starts"), self.own(params, axes)
        hidden, carry = self._hidden(params, batch["inputs"], None, axes, key=key, starts=given)
        return self.told(params, hidden, self.trunk.sequences(carry.layers), batch, axes)

    def told(
        self, params: Params, hidden: Array, carry: Any, batch: Batch, axes: Axes
    ) -> tuple[Array, Array | float, Measures]:
        """What `objective` gives, from what `hidden` gives and the carry of the blocks."""
        total = self._scores(params, hidden, batch, axes).loss()
        return total, *reported(carry, axes)

    def parts(self) -> Parts | None:
        """The objective in three; None of a model that is more than embedding, blocks and head."""
        own = type(self).scored is not LanguageModel.scored
        found = language_parts.parts(self)
        return dataclasses.replace(found, scored=None) if own else found

    def scored(self, params: Params, batch: Batch, axes: Axes = WHOLE) -> Measures:
        """The loss, and the accuracy: how often the likeliest token is the target."""
        params = self.own(params, axes)
        hidden, _ = self._hidden(params, batch["inputs"], None, axes, starts=batch.get("starts"))
        return self.hits(params, hidden, batch, axes)

    def hits(self, params: Params, hidden: Array, batch: Batch, axes: Axes) -> Measures:
        """What `scored` gives, from what `hidden` gives."""
        count = self.count(batch, axes)
        loss, hits = self._scores(params, hidden, batch, axes).sums(token_scores)
        return {"loss": (loss, count), "accuracy": (hits, count)}

    def losses(self, params: Params, batch: Batch, axes: Axes = WHOLE) -> Float[Array, "B T"]:
        """The cross-entropy of each token in nats."""
        return self.of_tokens(params, batch, axes, token_losses)

    def of_tokens(self, params: Params, batch: Batch, axes: Axes, measure: TokenMeasure) -> Any:
        """What a measure finds for each token, [B, T]."""
        params = self.own(params, axes)
        hidden, _ = self._hidden(params, batch["inputs"], None, axes, starts=batch.get("starts"))
        return self._scores(params, hidden, batch, axes).whole(measure)

    def _scores(self, params: Params, hidden: Array, batch: Batch, axes: Axes) -> TokenScores:
        head, block = self._head(params), self.loss_tokens(axes.backend)
        return TokenScores(head, hidden, batch, axes, block, self._padded(axes), self.logit_cap)

    def loss_tokens(self, backend: str | None) -> int:
        """Tokens of a block of logits on "cpu", "gpu" or "tpu"; None for JAX's default."""
        return self.loss_block or block_size(backend)

    def hidden(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        carry: ModelCarry | None = None,
        axes: Axes = WHOLE,
        *,
        key: Array | None = None,
        starts: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], ModelCarry]:
        """The normalised output of the last block times `logit_scale`, in the arithmetic's dtype.

        With `axes.residual`, of this device's tokens of the residual stream.

        Raises:
          ValueError: `starts`, and a layer that cannot keep documents apart; too many tokens.
        """
        params = self.own(params, axes)
        return self._hidden(params, tokens, carry, axes, key=key, starts=starts)

    def _hidden(
        self,
        params: Params,
        tokens: Array,
        carry: ModelCarry | None,
        axes: Axes,
        *,
        key: Array | None = None,
        starts: Array | None = None,
    ) -> tuple[Array, ModelCarry]:
        """`hidden`, given this device's own parameters."""
        embedding_key, blocks_key = (None, None) if key is None else jax.random.split(key)
        x, after = self.embedded(params, tokens, carry, axes, key=embedding_key, starts=starts)
        layers = None if carry is None else carry.layers
        x, layers = self.trunk(params, x, layers, axes, key=blocks_key, **told(starts))
        return self.scaled(x), ModelCarry(after, layers)

    def scaled(self, x: Array) -> Array:
        """What the last norm gives, as the head is given it."""
        return x if self.logit_scale == 1 else self.logit_scale * x

    def embedded(
        self,
        params: Params,
        tokens: Array,
        carry: ModelCarry | None,
        axes: Axes,
        *,
        key: Array | None = None,
        starts: Array | None = None,
    ) -> tuple[Array, Array]:
        """What enters the first block, and the position after the last token."""
        if starts is not None and (layer := self.cannot_pack()):
            raise ValueError(
                f"{layer} cannot keep the documents of a row apart: give each a row of its own"
            )
        before = 0 if carry is None else carry.position[:, None]
        position = jnp.zeros(tokens.shape[0], jnp.int32) if carry is None else carry.position
        length = tokens.shape[1] * collectives.axis_size(axes.seq)
        x = self.looked_up(params, tokens, axes)
        self.check_length(known_most(position) + length)
        after = position + length
        places = before + residual.first_token(x.shape[1], axes) + jnp.arange(x.shape[1])
        if starts is not None:
            places, after = documents.places(starts, position, axes.seq)
            places = collectives.own_shard(places, axes.residual, dim=1)
        if self.context:
            x = x + jnp.take(params["positions"], places, axis=0, mode="fill", fill_value=jnp.nan)
        return dropout(x, self.dropout, key, axes).astype(self.dtype), after

    def looked_up(self, params: Params, tokens: Array, axes: Axes) -> Float[Array, "B t D"]:
        """The embedding of tokens, float32, of this device's part of the residual stream."""
        x = embed(tokens, params["embedding"], axes, self._padded(axes)).astype(jnp.float32)
        return x if self.embedding_scale == 1 else self.embedding_scale * x

    @property
    def limit(self) -> int:
        """The most tokens that a sequence may have, by positions and caches; 0 for any."""
        return min((n for n in (self.context, self.block.limit) if n), default=0)

    def check_length(self, tokens: int) -> None:
        """Raises a ValueError if a sequence of `tokens` tokens exceeds the `limit`."""
        suits.check_length(self, tokens)
