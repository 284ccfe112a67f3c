"""Lexical units: a language model that tells several tokens at once, where it is sure of them.

Source: "Decoding at the Speed of Thought: Harnessing Parallel Decoding of Lexical Units for LLMs"
(arXiv 2405.15208). A unit is a run of tokens of which a model, reading the text, is sure but for
the first. After the tokens that came before a unit, placeholders stand for those that are not
known yet: the last token tells the unit's first, the m-th placeholder the m-th after that.

The paper has no published code. How marks become examples is ours: placeholders go on from the
model's state after each `every` tokens, and count as far as a unit that begins there would reach.
The state is that of any mixer, so that no mask is needed.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from gam_jax import params as tables
from gam_jax.data.base import Dataset
from gam_jax.layers.base import WHOLE, known
from gam_jax.models.base import Batch, Measures
from gam_jax.models.carry import ModelCarry
from gam_jax.models.language import LanguageModel
from gam_jax.ops.cross_entropy import token_likeliest, token_losses
from gam_jax.params import Param, Params, Table
from sharding import collectives
from sharding.axes import Axes
from sharding.bounds import Share, Size
from sharding.errors import UserError
from sharding.layout import Layout


@dataclasses.dataclass(frozen=True)
class LexicalUnits(LanguageModel):
    """A language model with a placeholder, which stands for a token that is not known yet.

    In its inputs the placeholder is the id V, one more than its vocabulary has. It is never drawn.

    Attributes:
      unit: k, the most tokens of a unit.
      sure: the probability from which on a token belongs to the unit before it.
      every: tokens between two places after which placeholders are trained.
      accept: the probability that the likeliest token must have at a placeholder to be a guess.
    """

    unit: Size = 4
    sure: Share = 0.7
    every: Size = 4
    accept: Share = 0.5

    @property
    def placeholder(self) -> int:
        """Its id."""
        return known(self.vocab, "vocab", self)

    def table(self) -> Table:
        """That of the language model, and placeholder [D]."""
        vector = Param((self.width,), ("embed",), tables.fan_in(self.width), decay=False)
        return {**super().table(), "placeholder": vector}

    def looked_up(self, params: Params, tokens: Array, axes: Axes) -> Float[Array, "B t D"]:
        """The embedding of tokens, that of placeholders their own vector."""
        unknown = tokens == self.placeholder
        x = super().looked_up(params, jnp.where(unknown, 0, tokens), axes)
        unknown = collectives.own_shard(unknown, axes.residual, dim=1)
        return jnp.where(unknown[..., None], params["placeholder"].astype(x.dtype), x)

    def fitted(self, data: Dataset) -> LexicalUnits:
        """See `LanguageModel.fitted`.

        Raises:
          UserError: rows of several documents, over whose borders placeholders would look.
        """
        found = super().fitted(data)
        if found.packed:
            raise UserError(
                "data.documents=packed: placeholders would look over the end of a document: say "
                "joined, or rows"
            )
        return dataclasses.replace(self, vocab=found.vocab)

    def check_mesh(self, layout: Layout) -> None:
        """Refuses what `LanguageModel` does, and splits of the tokens.

        Raises:
          UserError: devices along `seq`, or a preset that splits tokens over `tensor`.
        """
        super().check_mesh(layout)
        if layout.axes.seq or layout.axes.residual:
            raise UserError(
                "placeholders go on from states within a text, so its tokens are not split: make "
                "mesh axis seq 1, and leave out the preset tensor_tokens"
            )

    def parts(self) -> None:
        """None: placeholders begin in every layer."""
        return None

    def objective(
        self, params: Params, batch: Batch, axes: Axes = WHOLE, *, key: Array | None = None
    ) -> tuple[Float[Array, ""], Float[Array, ""] | float, Measures]:
        """That of the language model, and the cross-entropies of what placeholders stand for.

        A placeholder counts as a token. Measures are `units`, tokens of the units that begin where
        placeholders are trained, and `placeholder_loss`, in nats.
        """
        total, penalty, told = super().objective(params, batch, axes, key=key)
        if self.unit == 1:
            return total, penalty, told
        found, count, begun = self.placeholder_losses(params, batch, axes)
        measures = {"placeholder_loss": (found, count), "units": (begun + count, begun)}
        return total + found, penalty, {**told, **measures}

    def placeholder_losses(
        self, params: Params, batch: Batch, axes: Axes = WHOLE
    ) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
        """Over all devices: the sum of cross-entropies at placeholders, how many, and of how many
        units. Marks are the model's own, as it is; no gradient goes through them.
        """
        inputs, targets, weights = (batch[name] for name in ("inputs", "targets", "weights"))
        params = self.own(params, axes)
        read, guessed = self._looking_ahead(params, inputs, axes)
        size = read.shape[1]
        scored = {"targets": targets[:, :size], "weights": weights[:, :size]}
        losses = self._scores(params, lax.stop_gradient(read), scored, axes).whole(token_losses)
        ends, places, inside = self._marked(size)
        sure = (losses <= (-math.log(self.sure) if self.sure else math.inf)) & (weights > 0)[
            :, :size
        ]
        marks = jnp.cumprod(lax.stop_gradient(sure)[:, places] * inside, axis=-1)
        wanted = {
            "targets": targets[:, places].reshape(len(targets), -1),
            "weights": (marks * weights[:, places]).reshape(len(targets), -1),
        }
        total = self._scores(params, guessed, wanted, axes).loss()
        first = weights[:, ends] * (jnp.asarray(ends < size - 1, jnp.float32))
        count, begun = jnp.sum(wanted["weights"]), jnp.sum(first)
        return total, collectives.psum(count, axes.batch), collectives.psum(begun, axes.batch)

    def scored(self, params: Params, batch: Batch, axes: Axes = WHOLE) -> Measures:
        """That of the language model, and what guesses at placeholders would have given.

        Where placeholders are trained, they guess up to the first whose likeliest token has less
        than the probability `accept`; a guess stands if the model, reading the text, finds the
        same one likeliest. `tokens_a_pass` are those that stand and one more, `agreed` is the part
        of the guesses that stand of those up to the first that falls.
        """
        found = super().scored(params, batch, axes)
        if self.unit == 1:
            return found
        params, weights = self.own(params, axes), batch["weights"]
        read, guessed = self._looking_ahead(params, batch["inputs"], axes)
        ends, places, inside = self._marked(read.shape[1])

        def likeliest(hidden: Array) -> tuple[Array, Array]:
            none = jnp.zeros(hidden.shape[:2], jnp.int32)
            given = {"targets": none, "weights": none.astype(jnp.float32)}
            return self._scores(params, hidden, given, axes).whole(token_likeliest)

        guesses, sure = (x.reshape(len(x), *places.shape) for x in likeliest(guessed))
        wanted, _ = likeliest(read)
        offered = (sure >= math.log(self.accept) if self.accept else sure <= 0) & (inside > 0)
        offered = jnp.cumprod(offered & (weights[:, places] > 0), axis=-1)
        stood = jnp.cumprod(offered * (guesses == wanted[:, places]), axis=-1)
        before = jnp.concatenate([jnp.ones_like(stood[..., :1]), stood[..., :-1]], axis=-1)
        first = (weights[:, ends] > 0) & (ends < read.shape[1] - 1)
        counts = [jnp.sum(x * first[..., None]) for x in (stood, offered * before)]
        stood, judged, begun = (
            collectives.psum(x.astype(jnp.float32), axes.batch) for x in (*counts, jnp.sum(first))
        )
        return {**found, "tokens_a_pass": (begun + stood, begun), "agreed": (stood, judged)}

    def _marked(
        self, size: int
    ) -> tuple[Int[np.ndarray, N], Int[np.ndarray, "N k-1"], Float[Array, "N k-1"]]:
        """Of so many tokens the last ones before placeholders; the places of those that these stand
        for, the last token's where there are no more; and 1 where there are."""
        ends = np.arange(self.every - 1, size, self.every)
        places = ends[:, None] + np.arange(1, self.unit)
        return ends, np.minimum(places, size - 1), jnp.asarray(places < size, jnp.float32)

    def _looking_ahead(
        self, params: Params, tokens: Array, axes: Axes
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B N D"]]:
        """What `hidden` gives for the tokens, and for the k - 1 placeholders after each `every`."""
        rows, count = len(tokens), tokens.shape[1] // self.every
        if not count:
            raise UserError(
                f"model.every={self.every} is more than the {tokens.shape[1]} tokens of a row: "
                f"make it less"
            )
        model: LexicalUnits = self.for_length(tokens.shape[1] + self.unit)  # type: ignore
        chunks = tokens[:, : count * self.every].reshape(rows, count, self.every).swapaxes(0, 1)

        def step(carry: ModelCarry, chunk: Array) -> tuple[ModelCarry, tuple[Array, Array]]:
            read, after = model._hidden(params, chunk, carry, axes)
            return after, (read, model.ahead(params, after, rows, axes))

        start = model.carry(rows, axes)
        types = jax.eval_shape(step, start, chunks[0])[0]
        _, (read, guessed) = lax.scan(step, collectives.typed_as(start, types), chunks)

        def joined(x: Array) -> Array:
            return x.swapaxes(0, 1).reshape(rows, -1, x.shape[-1])

        return joined(read), joined(guessed)

    def ahead(
        self, params: Params, carry: ModelCarry, rows: int, axes: Axes = WHOLE
    ) -> Float[Array, "B k-1 D"]:
        """What `hidden` gives for k - 1 placeholders from a state, which stays as it is."""
        unknown = jnp.full((rows, self.unit - 1), self.placeholder, jnp.int32)
        return self._hidden(params, unknown, carry, axes)[0]


def as_units(model: LanguageModel, **fields: Any) -> LexicalUnits:
    """A language model with placeholders.

    Args:
      model: without, or with, which then stay.
      **fields: of `LexicalUnits`.
    """
    own = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    return LexicalUnits(**{**own, **fields})


def mark_units(probabilities: Float[np.ndarray, N], sure: float, unit: int) -> Int[np.ndarray, M]:
    """The lengths of a text's units, in order; their sum is N.

    A unit goes on as long as its tokens after the first have at least the probability `sure`, and
    ends after `unit` tokens.

    Args:
      probabilities: of each token, given those before it.
      sure: alpha of the paper; above 1, every token is a unit.
      unit: k, the most tokens of one.
    """
    lengths: list[int] = []
    for probability in probabilities:
        if lengths and probability >= sure and lengths[-1] < unit:
            lengths[-1] += 1
        else:
            lengths.append(1)
    return np.asarray(lengths, int)
