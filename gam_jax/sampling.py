"""Which token is written next: a draw from the logits, by settings of each row's own.

Of the logits l of a row, in this order (that of transformers' `generate`):

1. Repetition penalty p (Keskar et al. 2019, arXiv 1909.05858, section 4.1, with negative logits
   multiplied): l_i / p where l_i >= 0, l_i p where l_i < 0, for each token i that the row has seen.
2. Temperature T: s = l / T; for T = 0 the likeliest token is taken, and what follows is left out.
3. Top-k (Fan et al. 2018, arXiv 1805.04833, section 5): those with s_i >= the k-th largest s.
4. Nucleus (Holtzman et al. 2020, arXiv 1904.09751, section 3.1): of softmax over what is left, the
   smallest set of likeliest tokens whose probability reaches `top_p`.
5. Min-p (Nguyen et al. 2024, arXiv 2407.01082, section 3): those whose probability is at least
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
    """

    temperature: Float[Array, B]
    top_p: Float[Array, B]
    top_k: Int[Array, B]
    min_p: Float[Array, B]
    repetition_penalty: Float[Array, B]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How tokens are drawn: of each field one number for all rows, or several, one for each row.

    Attributes:
      temperature: what logits are divided by; 0 takes the likeliest token.
      top_p: draw from the likeliest tokens of this probability; 1 for all.
      top_k: draw from that many likeliest tokens; 0 for all.
      min_p: draw from tokens at least this part as likely as the likeliest; 0 for all.
      repetition_penalty: above 1, tokens that were read or written become less likely; 1 for none.

    Raises:
      UserError: a number outside its bounds.
    """

    temperature: NotNegative | tuple[float, ...] = 1.0
    top_p: Share | tuple[float, ...] = 1.0
    top_k: TopK | tuple[int, ...] = 0
    min_p: Share | tuple[float, ...] = 0.0
    repetition_penalty: Penalty | tuple[float, ...] = 1.0

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
        found = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple) and len(value) != rows:
                raise UserError(f"{field.name}: {len(value)} numbers for {rows} rows")
            dtype = jnp.int32 if field.name == "top_k" else jnp.float32
            found[field.name] = jnp.broadcast_to(jnp.asarray(value, dtype), rows)
        return Sampling(**found)


def choose(
    logits: Float[Array, "B V"], keys: Array, sampling: Sampling, seen: Bool[Array, "B V"]
) -> Int[Array, B]:
    """A token for each row, drawn from softmax of what `filtered` leaves, by the row's own key.

    What a row gets depends on its own logits, key, settings and past alone. Where no row draws,
    no noise is made.
    """

    def drawn() -> Array:
        left = filtered(logits, sampling, seen)
        return jax.vmap(jax.random.categorical)(keys, left).astype(jnp.int32)

    def likeliest() -> Array:
        found = penalised(logits, seen, sampling.repetition_penalty)
        return jnp.argmax(found, axis=-1).astype(jnp.int32)

    return lax.cond(jnp.all(sampling.temperature == 0), likeliest, drawn)


def filtered(
    logits: Float[Array, "B V"], sampling: Sampling, seen: Bool[Array, "B V"]
) -> Float[Array, "B V"]:
    """The logits of the distribution that is drawn from, by the equations above.

    Tokens are sorted only where some row asks for top-k or a nucleus, and as few as will do.

    Args:
      logits: float32; -inf for what is never drawn.
      sampling: the rows' settings.
      seen: the tokens that were read or written, for the repetition penalty.

    Returns:
      Float32 logits, the largest of a row 0, and -inf for what is left out.
    """
    logits = penalised(logits, seen, sampling.repetition_penalty)
    greedy = sampling.temperature == 0
    scaled = logits - jnp.max(logits, axis=-1, keepdims=True)
    scaled = scaled / jnp.maximum(sampling.temperature, 1e-6)[:, None]
    sorts = jnp.any(~greedy & ((sampling.top_k > 0) | (sampling.top_p < 1)))
    least = lax.cond(sorts, _least_sorted, _least_of_all, scaled, sampling)
    least = jnp.maximum(least, jnp.log(sampling.min_p))
    likeliest = jnp.argmax(logits, axis=-1)[:, None] == jnp.arange(logits.shape[1])
    kept = jnp.where(greedy[:, None], likeliest, scaled >= least[:, None])
    return jnp.where(kept, scaled, -jnp.inf)


def penalised(
    logits: Float[Array, "B V"], seen: Bool[Array, "B V"], penalty: Float[Array, B]
) -> Float[Array, "B V"]:
    """Logits with those of seen tokens divided, where negative multiplied, by the penalty."""
    penalty = penalty[:, None]
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


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
