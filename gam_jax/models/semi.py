"""A semi-autoregressive drafter: a small network that guesses k tokens of a model in one pass.

Source: "Falcon: Faster and Parallel Inference of Large Language Models through Enhanced
Semi-Autoregressive Drafting and Custom-Designed Decoding Tree" (arXiv 2412.12639).

Each token t_i, beside the feature f_{i-1} that the model had before it, is a slot, and tells the
feature f_{i+k-1} and so the token t_{i+k}. Slots come in blocks of k; one sees all slots of its own
block and of those before (the relaxed mask), here of the last `window` slots. Embedding, features
and head are the model's own, which stays as it is.

Ours, where the paper's code says otherwise or nothing: in place of the two LSTM layers, which that
code applies to each slot by itself, there is one linear map; a glimpse is a run of half a block,
and a slot that was shown its answer is not judged by it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from gam_jax import params as tables
from gam_jax.data.base import Dataset
from gam_jax.layers.base import WHOLE
from gam_jax.layers.mlp import MLP
from gam_jax.layers.norm import RMSNorm
from gam_jax.models.base import Batch, Measures, Model
from gam_jax.models.language import LanguageModel
from gam_jax.ops.rotary import Positions, rotary
from gam_jax.params import Param, Params, Table, fan_in
from sharding import collectives
from sharding.axes import Axes
from sharding.bounds import NotNegative, Share, Size
from sharding.errors import UserError
from sharding.layout import Layout

TRAINED = "drafter/*"
"""What the names of the drafter's own parameters match, for `optimizer.only`."""
TOKENS = 0.1
"""The weight of tokens beside features in the loss; of it, 0.9 is the model's law."""


@dataclasses.dataclass(frozen=True)
class SemiDrafter(Model):
    """A drafter and the model that it guesses for, of which the drafter alone is trained.

    Its loss at each slot, w being `TOKENS`: SmoothL1(f, f') + w (0.9 KL(p, p') + 0.1 CE(t, p')),
    where f', p' are what it tells of feature f and law p of the model, and t is the token. With
    `glance`, it is trained on what it cannot tell yet (coupled sequential glancing distillation):
    it first tells without a gradient; then, of as many slots as a part of those that it got wrong,
    it is shown the answers.

    Attributes:
      target: the model.
      ahead: k, tokens that are told in one pass.
      window: slots that a slot can see, its own block's among them; a multiple of k.
      heads: of its attention; they divide the model's width in even parts.
      glance: the part of wrong slots that are shown at first. It falls to 0 over `steps`; 0 shows
        none.
      steps: updates of the training.
      noise: what is added to features in training is drawn from U(-noise, noise).
    """

    target: LanguageModel
    ahead: Size = 4
    window: Size = 32
    heads: Size = 4
    glance: Share = 0.4
    steps: Size = 1000
    noise: NotNegative = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window % self.ahead:
            raise ValueError(
                f"SemiDrafter.window={self.window} is no multiple of ahead={self.ahead}: change "
                f"the one or the other"
            )
        if self._width % (2 * self.heads):
            raise ValueError(
                f"SemiDrafter.heads={self.heads} do not divide a width of {self._width} in even "
                f"parts: give another number"
            )

    @property
    def _width(self) -> int:
        """D, the model's."""
        return self.target.width

    @property
    def _ffn(self) -> MLP:
        return MLP(width=self._width, dropout=0.0)

    @property
    def _norm(self) -> RMSNorm:
        return RMSNorm(width=self._width)

    def table(self) -> Table:
        """target; drafter, which lies whole on every device: join [2D, D], attention, MLP, norms.

        Beside them progress, the part of the training that is done.
        """
        width = self._width
        whole: dict[str, Any] = {
            "join": Param((2 * width, width), (None, None), fan_in(2 * width)),
            "mixer_norm": self._norm.table(),
            "query": Param((width, width), (None, None), fan_in(width)),
            "key": Param((width, width), (None, None), fan_in(width)),
            "value": Param((width, width), (None, None), fan_in(width)),
            "out": Param((width, width), (None, None), fan_in(width)),
            "ffn_norm": self._norm.table(),
            "ffn": self._ffn.table(),
            "progress": Param((), (), tables.zeros, decay=False, sign_step=1 / self.steps),
        }
        return {"target": self.target.table(), "drafter": jax.tree.map(_whole, whole, is_leaf=_one)}

    @property
    def frozen(self) -> tuple[str, ...]:
        """The model that it guesses for."""
        return ("target",)

    def batch_axes(self) -> dict[str, tuple[str | None, ...]]:
        """The model's."""
        return self.target.batch_axes()

    def ids(self) -> dict[str, int]:
        """The model's."""
        return self.target.ids()

    def fitted(self, data: Dataset) -> SemiDrafter:
        """With the model fitted to the data."""
        return dataclasses.replace(self, target=self.target.fitted(data))

    def check_mesh(self, layout: Layout) -> None:
        """Refuses what `Model` and the target do, and a split of tokens.

        Raises:
          UserError: devices along `seq` or `pipe`.
        """
        self.target.check_mesh(layout)
        if layout.axes.seq or layout.stages > 1:
            raise UserError(
                "a drafter sees a text whole, on one device: make mesh axes seq and pipe 1"
            )

    def objective(
        self, params: Params, batch: Batch, axes: Axes = WHOLE, *, key: Array | None = None
    ) -> tuple[Float[Array, ""], Float[Array, ""] | float, Measures]:
        """See the class. Measures: `agreed`, how often it tells the model's likeliest token, from
        what it is given in use; `loss_features`; and, in training, `glanced`, slots shown.
        """
        frozen, own = lax.stop_gradient(params["target"]), params["drafter"]
        tokens, k = batch["inputs"], self.ahead
        size = tokens.shape[1] - k + 1  # slots whose answer is known
        if size < 1:
            raise UserError(f"model.ahead={k} is more than the {tokens.shape[1]} tokens of a row")
        features, _ = self.target.hidden(frozen, tokens, None, axes, starts=batch.get("starts"))
        features = collectives.all_gather(features, axes.residual, dim=1)
        laws = self.target.logits(frozen, features[:, k - 1 :], axes)
        features = features.astype(jnp.float32)
        embedded = self.embedded(frozen, tokens, axes)
        before = jnp.pad(features[:, :-1], ((0, 0), (1, 0), (0, 0)))
        noise_key, glance_key = (None, None) if key is None else jax.random.split(key)
        if noise_key is not None and self.noise:
            noise_key = _of_device(noise_key, axes)
            shape = before.shape
            before += jax.random.uniform(noise_key, shape, minval=-self.noise, maxval=self.noise)

        def told(embedded: Array, before: Array) -> tuple[Array, Array]:
            found = self.tell(own, embedded, before)[:, :size]
            return found, self.target.logits(frozen, found.astype(self.target.dtype), axes)

        weights = batch["weights"][:, k - 1 :]
        right = jnp.argmax(laws, axis=-1)
        found, logits = told(embedded, before)
        agreed = jnp.sum((jnp.argmax(logits, axis=-1) == right) * weights)
        measures, judged = {"agreed": (agreed, jnp.sum(weights))}, weights
        if glance_key is not None and self.glance:
            wrong = jnp.sum((jnp.argmax(logits, axis=-1) != right) * weights, axis=1)
            share = self.glance * jnp.maximum(1 - lax.stop_gradient(own["progress"]), 0)
            shown = self._shown(share * wrong, tokens.shape[1], _of_device(glance_key, axes))
            shown = (shown & (jnp.arange(tokens.shape[1]) < size))[..., None]
            answers = (_later(embedded, k), _later(features, k - 1))
            given = (
                jnp.where(shown, a, x) for a, x in zip(answers, (embedded, before), strict=True)
            )
            found, logits = told(*given)
            judged = jnp.where(shown[:, :size, 0], 0, weights)  # as in GLAT, arXiv 2008.07905
            measures["glanced"] = (jnp.sum(shown), jnp.asarray(float(tokens.size)))
        targets = batch["targets"][:, k - 1 :]
        apart = jnp.mean(_smooth(found - features[:, k - 1 :]), axis=-1)
        law, said = jax.nn.log_softmax(laws), jax.nn.log_softmax(logits)
        kl = jnp.sum(jnp.exp(law) * (law - said), axis=-1)
        ce = -jnp.take_along_axis(said, targets[..., None], axis=-1)[..., 0]
        each = apart + TOKENS * (0.9 * kl + 0.1 * ce)
        for name, found in (("loss_features", apart), ("loss_tokens", ce)):
            measures[name] = (jnp.sum(found * weights), jnp.sum(weights))
        # The derivative by it is -1 times a count, so that each update adds one `sign_step`.
        still = lax.stop_gradient(own["progress"]) - own["progress"]
        total, measures = jax.tree.map(
            lambda x: collectives.psum(x, axes.batch), (jnp.sum(each * judged) + still, measures)
        )
        return total, 0.0, measures

    def scored(self, params: Params, batch: Batch, axes: Axes = WHOLE) -> Measures:
        """loss: the cross-entropy of tokens in nats, k tokens ahead; and `agreed`."""
        _, _, measures = self.objective(params, batch, axes)
        return {"loss": measures["loss_tokens"], "agreed": measures["agreed"]}

    def embedded(self, target: Params, tokens: Array, axes: Axes = WHOLE) -> Float[Array, "B T D"]:
        """The model's embedding of tokens, float32, whole."""
        x = self.target.looked_up(self.target.own(target, axes), tokens, axes)
        return collectives.all_gather(x, axes.residual, dim=1).astype(jnp.float32)

    def tell(
        self, own: Params, embedded: Float[Array, "B T D"], before: Float[Array, "B T D"]
    ) -> Float[Array, "B T D"]:
        """For each slot i the feature f_{i+k-1}, in blocks that begin with the first slot.

        Args:
          own: the drafter's parameters.
          embedded: of token i.
          before: f_{i-1}, zeros before the first.
        """
        blocks = np.arange(embedded.shape[1]) // self.ahead
        apart = blocks[:, None] - blocks[None]
        sees = (apart >= 0) & (apart < self.window // self.ahead)
        x = self._joined(own, embedded, before)
        return self._blocks(own, x, x, jnp.asarray(sees), 0)

    def tell_next(
        self,
        own: Params,
        embedded: Float[Array, "B N D"],
        before: Float[Array, "B N D"],
        there: Bool[Array, "B N"],
    ) -> Float[Array, "B k D"]:
        """As `tell`, what the last k of the last N = `window` slots tell, which see all of them.

        Args:
          own: the drafter's parameters.
          embedded: see `tell`.
          before: likewise.
          there: which of the slots there are.
        """
        x = self._joined(own, embedded, before)
        asks = x[:, -self.ahead :]
        return self._blocks(own, asks, x, there[:, None], x.shape[1] - self.ahead)

    def _joined(self, own: Params, embedded: Array, before: Array) -> Array:
        return jnp.concatenate([embedded, before], axis=-1) @ own["join"]

    def _blocks(
        self, own: Params, asks: Array, x: Array, sees: Bool[Array, "... Q N"], first: int
    ) -> Array:
        """Attention of some slots to all, then each by itself."""

        def heads(x: Array, weight: Array) -> Array:
            return (x @ weight).reshape(*x.shape[:2], self.heads, -1)

        normed_asks, normed = (self._norm(own["mixer_norm"], one)[0] for one in (asks, x))
        places = jnp.arange(x.shape[1])
        q = rotary(
            heads(normed_asks, own["query"]), places[first:][: asks.shape[1]], 1e4, Positions()
        )
        k = rotary(heads(normed, own["key"]), places, 1e4, Positions())
        scores = jnp.einsum("bqhd,bnhd->bhqn", q, k) / np.sqrt(q.shape[-1])
        sees = sees[None] if sees.ndim == 2 else sees
        mixed = jax.nn.softmax(jnp.where(sees[:, None], scores, -1e30), axis=-1)
        mixed = jnp.einsum("bhqn,bnhd->bqhd", mixed, heads(normed, own["value"]))
        y = asks + mixed.reshape(asks.shape) @ own["out"]
        return y + self._ffn(own["ffn"], self._norm(own["ffn_norm"], y)[0])[0]

    def _shown(self, count: Float[Array, B], slots: int, key: Array) -> Bool[Array, "B T"]:
        """About `count` slots of each row, in runs of half a block, one at most in each block."""
        run = max(self.ahead // 2, 1)
        blocks = -(-slots // self.ahead)
        order_key, place_key = jax.random.split(key)
        order = jax.random.uniform(order_key, (len(count), blocks))
        rank = jnp.argsort(jnp.argsort(order, axis=1), axis=1)
        chosen = rank < jnp.round(count / run)[:, None]
        begins = jax.random.randint(place_key, rank.shape, 0, self.ahead - run + 1)
        place = jnp.arange(self.ahead)
        inside = (place >= begins[..., None]) & (place < begins[..., None] + run)
        return (chosen[..., None] & inside).reshape(len(count), -1)[:, :slots]


def _one(leaf: Any) -> bool:
    return isinstance(leaf, Param)


def _whole(param: Param) -> Param:
    """The same, whole on every device."""
    return dataclasses.replace(param, axes=(None,) * len(param.axes))


def _of_device(key: Array, axes: Axes) -> Array:
    """Another key for each part of the rows."""
    return jax.random.fold_in(key, collectives.axis_index(axes.rows)) if axes.rows else key


def _later(x: Float[Array, "B T D"], by: int) -> Float[Array, "B T D"]:
    """What stands so many places later; zeros beyond the end."""
    return jnp.pad(x[:, by:], ((0, 0), (0, by), (0, 0)))


def _smooth(x: Float[Array, ...]) -> Float[Array, ...]:
    """Smooth L1: x^2 / 2 up to 1, then |x| - 1/2."""
    size = jnp.abs(x)
    return jnp.where(size < 1, 0.5 * x**2, size - 0.5)


def guess(
    model: SemiDrafter,
    own: Params,
    target: Params,
    tokens: Int[Array, "B N"],
    before: Float[Array, "B N D"],
    there: Bool[Array, "B N"],
    passes: int,
    draw: Any,
    start: Any,
    axes: Axes = WHOLE,
) -> Int[Array, "B P k"]:
    """Guesses what follows texts, k tokens a pass; each pass reads what those before have told.

    Args:
      model: the drafter.
      own: its parameters.
      target: those of the model, for embedding and head.
      tokens: the last N = `window` of each text.
      before: the feature that the model had before each, f_{i-1}; zeros where it is not known.
      there: which of them there are.
      passes: P.
      draw: (what is kept, logits [B, V], place) -> (what is kept, tokens [B]); places count from 0.
      start: what is kept at first.
      axes: mesh axes.
    """
    k = model.ahead

    def one(state: Any, number: Array) -> tuple[Any, Array]:
        kept, tokens, before, there = state
        found = model.tell_next(own, model.embedded(target, tokens, axes), before, there)
        logits = model.target.logits(target, found.astype(model.target.dtype), axes)

        def each(kept: Any, x: tuple[Array, Array]) -> tuple[Any, Array]:
            return draw(kept, x[0], number * k + x[1])

        kept, drawn = lax.scan(each, kept, (jnp.swapaxes(logits, 0, 1), jnp.arange(k)))
        drawn = drawn.T.astype(tokens.dtype)
        after = (
            jnp.concatenate([tokens[:, k:], drawn], axis=1),
            jnp.concatenate([before[:, k:], found.astype(before.dtype)], axis=1),
            jnp.concatenate([there[:, k:], jnp.ones_like(there[:, :k])], axis=1),
        )
        return (kept, *after), drawn

    _, drawn = lax.scan(one, (start, tokens, before, there), jnp.arange(passes))
    return jnp.swapaxes(drawn, 0, 1)
