"""Which token is written next: a draw from the logits, by settings of each row's own.

Of the logits l of a row, in this order (that of transformers' `generate`):

1. Repetition penalty p (Keskar et al. 2019, arXiv 1909.05858, section 4.1, with negative logits
   multiplied): l_i / p where l_i >= 0, l_i p where l_i < 0, for each token i that the row has seen.
2. Presence and frequency penalties (OpenAI's API reference): l_i - presence [c_i > 0] - frequency
   c_i, where c_i is how often the row has written token i.
3. Bias: l_i + b_i; and -inf for tokens that may not be drawn now.
4. Temperature T: s = l / T; for T = 0 the likeliest token is taken, and what follows is left out.
5. Top-k (Fan et al. 2018, arXiv 1805.04833, section 5): those with s_i >= the k-th largest s.
6. Nucleus (Holtzman et al. 2020, arXiv 1904.09751, section 3.1): of softmax over what is left, the
   smallest set of likeliest tokens whose probability reaches `top_p`.
7. Min-p (Nguyen et al. 2024, arXiv 2407.01082, section 3): those whose probability is at least
   `min_p` times that of the likeliest, s_i >= max(s) + log(min_p).

A token as likely as the last one of a set is in it too; the likeliest always is. The token is drawn
from softmax over what is left. Every setting is an array, so that none compiles anything new.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from sharding.bounds import Bound, NotNegative, Share, check_bounds
from sharding.errors import UserError

TopK = Annotated[int, Bound(0, 2**31 - 1)]
Penalty = Annotated[float, Bound(0.001, 1000)]
Taken = Annotated[float, Bound(-1000, 1000)]
PART = 1024
"""The likeliest tokens of a row, which are sorted first, see `_least_sorted`."""


@flax.struct.dataclass
class Sampling:
    """Settings of a batch of rows, traced: see `Settings` for what each is.

    Attributes:
      temperature: float32 [B].
      top_p: float32 [B].
      top_k: int32 [B].
      min_p: float32 [B].
      repetition_penalty: float32 [B].
      presence_penalty: float32 [B].
      frequency_penalty: float32 [B].
      biased: int32 [B, N], the tokens whose logits have a bias; V for none.
      bias: float32 [B, N], theirs.
    """

    temperature: Float[Array, B]
    top_p: Float[Array, B]
    top_k: Int[Array, B]
    min_p: Float[Array, B]
    repetition_penalty: Float[Array, B]
    presence_penalty: Float[Array, B]
    frequency_penalty: Float[Array, B]
    biased: Int[Array, "B N"]
    bias: Float[Array, "B N"]


@flax.struct.dataclass
class Past:
    """What rows have read and written, for penalties.

    Attributes:
      read: bool [B, V], tokens of the prompt.
      written: int32 [B, V], how often each token was written.
    """

    read: Bool[Array, "B V"]
    written: Int[Array, "B V"]

    @classmethod
    def of(cls, read: Bool[Array | np.ndarray, "B V"]) -> Past:
        """Prompts, and nothing written."""
        return cls(jnp.asarray(read), jnp.zeros(read.shape, jnp.int32))

    @property
    def seen(self) -> Bool[Array, "B V"]:
        """Tokens that were read or written."""
        return self.read | (self.written > 0)

    def add(self, tokens: Int[Array, "B ..."], times: Int[Array, "B ..."] | int = 1) -> Past:
        """With tokens of each row written once more, or so many times."""
        rows = jnp.arange(len(tokens)).reshape(-1, *(1,) * (tokens.ndim - 1))
        return dataclasses.replace(self, written=self.written.at[rows, tokens].add(times))


@dataclasses.dataclass(frozen=True)
class Settings:
    """How tokens are drawn: of each field one number for all rows, or several, one for each row.

    Attributes:
      temperature: what logits are divided by; 0 takes the likeliest token.
      top_p: draw from the likeliest tokens of this probability; 1 for all.
      top_k: draw from that many likeliest tokens; 0 for all.
      min_p: draw from tokens at least this part as likely as the likeliest; 0 for all.
      repetition_penalty: above 1, tokens that were read or written become less likely; 1 for none.
      presence_penalty: taken from the logit of each token that was written; 0 for none.
      frequency_penalty: taken from it as often as it was written; 0 for none.

    Raises:
      UserError: a number outside its bounds.
    """

    temperature: NotNegative | tuple[float, ...] = 1.0
    top_p: Share | tuple[float, ...] = 1.0
    top_k: TopK | tuple[int, ...] = 0
    min_p: Share | tuple[float, ...] = 0.0
    repetition_penalty: Penalty | tuple[float, ...] = 1.0
    presence_penalty: Taken | tuple[float, ...] = 0.0
    frequency_penalty: Taken | tuple[float, ...] = 0.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value: Any = getattr(self, field.name)
            if isinstance(value, Sequence | np.ndarray | Array) and not isinstance(value, str):
                numbers = np.asarray(value)
                if numbers.ndim > 1:
                    raise UserError(f"{field.name}: give one number, or one for each row")
                value = tuple(numbers.tolist()) if numbers.ndim else numbers.item()
                object.__setattr__(self, field.name, value)
        check_bounds(self)

    def of_rows(self, rows: int) -> Sampling:
        """The settings as arrays for so many rows.

        Raises:
          UserError: as many numbers as there are no rows.
        """
        found: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple) and len(value) != rows:
                raise UserError(f"{field.name}: {len(value)} numbers for {rows} rows")
            dtype = jnp.int32 if field.name == "top_k" else jnp.float32
            found[field.name] = jnp.broadcast_to(jnp.asarray(value, dtype), rows)
        none = jnp.zeros((rows, 0), jnp.int32)
        return Sampling(**found, biased=none, bias=none.astype(jnp.float32))


def choose(
    logits: Float[Array, "B V"],
    keys: Array,
    sampling: Sampling,
    past: Past,
    allowed: Bool[Array, "B V"] | None = None,
) -> Int[Array, B]:
    """A token for each row, drawn from softmax of what `filtered` leaves, by the row's own key.

    What a row gets depends on its own logits, key, settings and past alone. Where no row draws,
    no noise is made.
    """
    logits = penalised(logits, sampling, past, allowed)

    def drawn() -> Array:
        return jax.vmap(categorical)(keys, _left(logits, sampling))

    return lax.cond(jnp.all(sampling.temperature == 0), lambda: likeliest(logits), drawn)


def categorical(key: Array, logits: Float[Array, "*N V"]) -> Int[Array, "*N"]:
    """The token that `jax.random.categorical` draws: the likeliest of logits with Gumbel noise."""
    return likeliest(logits + jax.random.gumbel(key, logits.shape, logits.dtype))


def likeliest(logits: Float[Array, "*N V"]) -> Int[Array, "*N"]:
    """The first token whose logit is the largest; the last of all where a logit is NaN.

    XLA's argmax on CPU takes one number after the other, and makes what it is of once for each
    comparison: with noise that takes four times as long as this.
    """
    size = logits.shape[-1]
    largest = logits == jnp.max(logits, axis=-1, keepdims=True)
    return jnp.min(jnp.where(largest, jnp.arange(size, dtype=jnp.int32), size - 1), axis=-1)


def filtered(
    logits: Float[Array, "B V"],
    sampling: Sampling,
    past: Past,
    allowed: Bool[Array, "B V"] | None = None,
) -> Float[Array, "B V"]:
    """The logits of the distribution that is drawn from, by the equations above.

    Tokens are sorted only where some row asks for top-k or a nucleus, and as few as will do.

    Args:
      logits: float32; -inf for what is never drawn.
      sampling: the rows' settings.
      past: what was read and written.
      allowed: tokens that may be drawn now; None for all.

    Returns:
      Float32 logits, the largest of a row 0, and -inf for what is left out.
    """
    return _left(penalised(logits, sampling, past, allowed), sampling)


def _left(logits: Array, sampling: Sampling) -> Array:
    """`filtered` of logits that are `penalised` already."""
    greedy = sampling.temperature == 0
    scaled = logits - jnp.max(logits, axis=-1, keepdims=True)
    scaled = scaled / jnp.maximum(sampling.temperature, 1e-6)[:, None]
    sorts = jnp.any(~greedy & ((sampling.top_k > 0) | (sampling.top_p < 1)))
    least = lax.cond(sorts, _least_sorted, _least_of_all, scaled, sampling)
    least = jnp.maximum(least, jnp.log(sampling.min_p))
    first = likeliest(logits)[:, None] == jnp.arange(logits.shape[1])
    kept = jnp.where(greedy[:, None], first, scaled >= least[:, None])
    return jnp.where(kept, scaled, -jnp.inf)


def penalised(
    logits: Float[Array, "B V"],
    sampling: Sampling,
    past: Past,
    allowed: Bool[Array, "B V"] | None = None,
) -> Float[Array, "B V"]:
    """Logits before temperature: with penalties and bias, -inf for what may not be drawn."""
    repetition = sampling.repetition_penalty[:, None]
    presence, frequency = sampling.presence_penalty[:, None], sampling.frequency_penalty[:, None]

    def less(logits: Array) -> Array:
        scaled = jnp.where(logits < 0, logits * repetition, logits / repetition)
        logits = jnp.where(past.seen, scaled, logits)
        return logits - presence * (past.written > 0) - frequency * past.written

    some = jnp.any((repetition != 1) | (presence != 0) | (frequency != 0))
    logits = lax.cond(some, less, lambda logits: logits, logits)
    if sampling.bias.shape[1]:

        def biased(logits: Array) -> Array:
            rows = jnp.arange(logits.shape[0])[:, None]
            return logits.at[rows, sampling.biased].add(sampling.bias, mode="drop")

        logits = lax.cond(jnp.any(sampling.bias != 0), biased, lambda logits: logits, logits)
    return logits if allowed is None else jnp.where(allowed, logits, -jnp.inf)


def _least_of_all(scaled: Array, sampling: Sampling) -> Array:
    return jnp.full_like(scaled[:, 0], -jnp.inf)


def _least_sorted(scaled: Array, sampling: Sampling, part: int = PART) -> Array:
    """The least of `scaled` that top-k and the nucleus leave in each row; -inf where both do.

    The `part` likeliest tokens are sorted, and all of them only where a row needs more: a sort of
    a large vocabulary takes longer than the model. Both give the same.
    """
    part = min(part, scaled.shape[1])
    least, known = _least_in(lax.top_k(scaled, part)[0], scaled, sampling, part)
    if part == scaled.shape[1]:
        return least

    def of_all(_: Array) -> Array:
        return _least_in(jnp.sort(scaled, axis=-1, descending=True), scaled, sampling, part)[0]

    return lax.cond(jnp.all(known), lambda least: least, of_all, least)


def _least_in(ordered: Array, scaled: Array, sampling: Sampling, part: int) -> tuple[Array, Array]:
    """`_least_sorted` by the likeliest tokens in order, and for which rows these are enough."""
    size, top_k, top_p = ordered.shape[1], sampling.top_k, sampling.top_p
    last = jnp.clip(top_k[:, None], 1, size) - 1
    kth = jnp.where(top_k > 0, jnp.take_along_axis(ordered, last, axis=-1)[:, 0], -jnp.inf)
    left = scaled >= kth[:, None]
    wanted = top_p * jnp.sum(jnp.where(left, jnp.exp(scaled), 0), axis=-1)
    exps = jnp.where(ordered >= kth[:, None], jnp.exp(ordered), 0)
    sums = _running_sums(exps, part)
    inside = (sums - exps < wanted[:, None]).at[:, 0].set(True)
    nucleus = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1)
    ends = (top_p == 1) | (sums[:, -1] >= wanted) | (jnp.sum(left, axis=-1) <= size)
    least = jnp.maximum(kth, jnp.where(top_p < 1, nucleus, -jnp.inf))
    return least, (top_k <= size) & ends


def _running_sums(exps: Array, part: int) -> Array:
    """Those of the first `part` columns are the same bits, however many columns follow."""
    first = jnp.cumsum(exps[:, :part], axis=-1)
    if exps.shape[1] == part:
        return first
    return jnp.concatenate([first, first[:, -1:] + jnp.cumsum(exps[:, part:], axis=-1)], axis=-1)


def drawable(logits: Float[Array, "B V"]) -> Bool[Array, B]:
    """Whether logits say a distribution: no NaN, no +inf, and not all of them -inf.

    Single logits of -inf are tokens of probability 0.
    """
    return jnp.isfinite(jnp.max(logits, axis=-1))


def row_keys(key: Array, rows: int) -> Array:
    """A key for each row: `key` if it is that already, [B], else one by the row's number."""
    return key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))


def seen_in(ids: Sequence[np.ndarray], vocab: int) -> Bool[np.ndarray, "B V"]:
    """Which tokens stand in each row's ids."""
    seen = np.zeros((len(ids), vocab), bool)
    for row, own in enumerate(ids):
        seen[row, own] = True
    return seen


def log_probs_of(
    logits: Float[Array, "*N V"], ids: Int[Array, "*N"], most: int
) -> tuple[Float[Array, "*N"], Int[Array, "*N M"], Float[Array, "*N M"]]:
    """Log probabilities before any setting: of `ids`, and of the `most` likeliest, with their ids.

    Where there are fewer tokens than `most`, ids are filled up with 0 of log probability -inf.
    """
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    own = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0] - total[..., 0]
    count = min(most, logits.shape[-1])
    values, top = lax.top_k(logits, count)
    more = [(0, 0)] * (logits.ndim - 1) + [(0, most - count)]
    values = jnp.pad(values - total, more, constant_values=-jnp.inf)
    return own, jnp.pad(top.astype(jnp.int32), more), values
