"""Cross-entropy of a head, and how often it is right, in blocks of tokens.

No array has all tokens and the whole vocabulary: what is held is the logits of one block, of
`block_size` tokens, however many tokens there are. Blocks go by one after another, and in a sum
of losses each leaves its gradients behind, so that no logits are computed twice.

An id outside the vocabulary gives NaN, see `ops.vocabulary`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from gam_jax.ops.vocabulary import known_ids, own_rows, signed
from sharding import collectives
from sharding.products import recomputed

BLOCKS = {"cpu": 512}
BLOCK = 1024
"""Tokens of a block. A processor's caches like fewer; on an accelerator the head and its gradient,
which each block reads, cost as much time as the products with fewer tokens."""


class Head(NamedTuple):
    """How logits come of the rows of a head.

    Attributes:
      axis: mesh axis that splits the vocabulary. Its parts meet in a maximum and two sums; no
        device ever holds whole logits (Megatron-LM, arXiv 2104.04473).
      size: V where rows are padded; None where they are not.
      cap: of the logits, see `capped`.
      block: tokens that are taken at once, at most.
    """

    axis: str | None = None
    size: int | None = None
    cap: float = 0.0
    block: int = BLOCK


class _Targets(NamedTuple):
    """Of each token: its target's row on this device, whether it has it, whether none has.

    Zeros stand in the empty places of a block, and harm none.
    """

    row: Array
    here: Array
    bad: Array


def block_size(backend: str | None) -> int:
    """Tokens of a block on "cpu", "gpu" or "tpu"; None for JAX's default."""
    return BLOCKS.get(backend or jax.default_backend(), BLOCK)


def blocks(tokens: int, most: int) -> tuple[int, int]:
    """How many blocks of at most `most` tokens there are, and the tokens of each; at least one.

    They are alike, so the last may have a few empty places.
    """
    count = max(1, -(-tokens // most))
    return count, -(-tokens // count)


def loss_sum(
    hidden: Float[Array, "N D"],
    head: Float[Array, "V D"],
    targets: Int[Array, N],
    weights: Float[Array, N],
    how: Head = Head(),
) -> Float[Array, ""]:
    """The sum of weights * -log softmax(hidden head^T)[target] in nats, float32.

    Where it is differentiated, the gradients are found with the losses, block by block: the
    gradient by a token's logits is (softmax - onehot) * weight, times a scalar that comes later.

    Args:
      hidden: the last layer's outputs.
      head: this device's rows of the head.
      targets: global token ids. One outside the vocabulary makes the sum NaN, whatever its weight.
      weights: of the tokens.
      how: see `Head`.
    """
    hidden, head, _, _ = collectives.vary_alike(hidden, head, targets, weights)
    alike = collectives.varying(hidden) - {how.axis}  # losses are the same along that axis
    weights = collectives.as_varying(weights, sorted(name for name in alike if name))
    return _loss_sum(hidden, head, _targets(targets, head, how), weights, how)


def token_losses(
    hidden: Float[Array, "N D"],
    head: Float[Array, "V D"],
    targets: Int[Array, N],
    how: Head = Head(),
) -> Float[Array, N]:
    """-log softmax(hidden head^T)[target] in nats, float32.

    Arguments are those of `loss_sum`; a target outside the vocabulary has a loss and a gradient of
    NaN. The backward pass computes the logits again; that of `loss_sum` does not.
    """
    hidden, head, _ = collectives.vary_alike(hidden, head, targets)
    return _losses(hidden, head, _targets(targets, head, how), how)


def token_scores(
    hidden: Float[Array, "N D"],
    head: Float[Array, "V D"],
    targets: Int[Array, N],
    how: Head = Head(),
) -> tuple[Float[Array, N], Float[Array, N]]:
    """`token_losses`; and 1 where the target is the likeliest token, else 0, float32.

    Of equally likely tokens the first is the likeliest. Not differentiated. Both are NaN for a
    target outside the vocabulary. Arguments are those of `loss_sum`.
    """

    def find(hidden: Array, at: tuple[_Targets, Array]) -> tuple[Array, Array]:
        logits = _logits(hidden, head, how)
        return _loss(logits, at[0], how)[0], _hits(logits, *at, how)

    return _each(find, hidden, (_targets(targets, head, how), signed(targets)), how)


def token_likeliest(
    hidden: Float[Array, "N D"],
    head: Float[Array, "V D"],
    targets: Int[Array, N],
    how: Head = Head(),
) -> tuple[Int[Array, N], Float[Array, N]]:
    """The likeliest token, the first of equally likely ones; and its log probability, float32.

    Not differentiated, and whatever the targets. Arguments are those of `loss_sum`.
    """

    def find(hidden: Array, at: Array) -> tuple[Array, Array]:
        logits = _logits(hidden, head, how)
        top = collectives.pmax(jnp.max(logits, axis=-1), how.axis)
        total = collectives.psum(jnp.sum(jnp.exp(logits - top[:, None]), axis=-1), how.axis)
        return _likeliest(logits, how), -jnp.log(total)

    return _each(find, hidden, targets, how)


def capped(logits: Float[Array, "*sizes"], cap: float) -> Float[Array, "*sizes"]:
    """cap * tanh(logits / cap) (Gemma 2, arXiv 2408.00118, section 2); 0 for none."""
    return cap * jnp.tanh(logits / cap) if cap else logits


def _targets(ids: Array, head: Array, how: Head) -> _Targets:
    ids = signed(ids)
    return _Targets(*own_rows(ids, head, how.axis), ~known_ids(ids, head, how.axis, how.size))


def _logits(hidden: Array, head: Array, how: Head) -> Array:
    """Float32 logits of this device's rows; padded ones have -inf."""
    logits = capped(jnp.dot(hidden, head.T, preferred_element_type=jnp.float32), how.cap)
    if how.size is None:
        return logits
    rows = head.shape[0]
    place = collectives.axis_index(how.axis) * rows + jnp.arange(rows)
    return jnp.where(place < how.size, logits, -jnp.inf)


def _loss(logits: Array, at: _Targets, how: Head) -> tuple[Array, Array, Array]:
    """The loss of each token; exp(logits - top); and their sum over the vocabulary."""
    top = collectives.pmax(jnp.max(logits, axis=-1), how.axis)
    picked = jnp.take_along_axis(logits, at.row[:, None], axis=1)[:, 0]
    exps = jnp.exp(logits - top[:, None])
    total = collectives.psum(jnp.sum(exps, axis=-1), how.axis)
    total = jnp.where(at.bad, jnp.nan, total)
    target_logit = collectives.psum(jnp.where(at.here, picked, 0), how.axis)
    return jnp.log(total) + top - target_logit, exps, total


def _hits(logits: Array, at: _Targets, targets: Array, how: Head) -> Array:
    hits = (_likeliest(logits, how) == targets).astype(jnp.float32)
    return jnp.where(at.bad, jnp.nan, hits)


def _likeliest(logits: Array, how: Head) -> Array:
    """The id of each token's largest logit, over all devices."""
    rows = logits.shape[-1]
    own = jnp.max(logits, axis=-1)
    first = jnp.argmax(logits, axis=-1) + collectives.axis_index(how.axis) * rows
    # The least id of those that reach the maximum, as a maximum of negated ids.
    reaches = own >= collectives.pmax(own, how.axis)
    beyond = rows * collectives.axis_size(how.axis)
    return -collectives.pmax(-jnp.where(reaches, first, beyond), how.axis)


def _each(find: Callable[..., Any], hidden: Array, at: Any, how: Head) -> Any:
    """What `find` finds for the tokens of each block."""
    return _scan(lambda _, own: (None, find(*own)), None, (hidden, at), how.block)[1]


def _scan(turn: Callable[..., Any], start: Any, arrays: Any, most: int) -> tuple[Any, Any]:
    """As `lax.scan`, over blocks of tokens; what it finds for each token is [N, ...]."""
    tokens = jax.tree.leaves(arrays)[0].shape[0]
    count, size = blocks(tokens, most)
    if count == 1:
        return turn(start, arrays)

    def split(x: Array) -> Array:
        x = jnp.pad(x, ((0, count * size - tokens), *((0, 0),) * (x.ndim - 1)))
        return x.reshape(count, size, *x.shape[1:])

    after, found = lax.scan(turn, start, jax.tree.map(split, arrays))
    return after, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:tokens], found)


class _Gradients(NamedTuple):
    """Of a sum of weighted losses: by `hidden` in its dtype, by `head` in float32."""

    hidden: Array
    head: Array


def _losses_and_gradients(
    hidden: Array, head: Array, at: _Targets, weights: Array, how: Head, again: bool = False
) -> tuple[Array, _Gradients]:
    """The losses, and the gradients of their weighted sum.

    The gradient of the logits is (exps - total * onehot) * weight / total. The factor of the
    row goes to the small operands, so that the large array is passed over as seldom as can be.
    A cap's slope is 1 - (logit / cap)^2.
    """

    def turn(summed: Array, own: tuple[Array, _Targets, Array]) -> tuple[Array, Any]:
        hidden, at, weights = own
        with recomputed() if again else contextlib.nullcontext():
            logits = _logits(hidden, head, how)
        losses, exps, total = _loss(logits, at, how)
        onehot = (jnp.arange(head.shape[0]) == at.row[:, None]) & at.here[:, None]
        exps = jnp.where(onehot, exps - total[:, None], exps)
        if how.cap:  # padded rows have -inf, and exps of 0
            exps = exps * (1 - (jnp.maximum(logits, -how.cap) / how.cap) ** 2)
        factor = (weights / total)[:, None]
        to_hidden = (jnp.dot(exps, head) * factor).astype(hidden.dtype)
        return summed + jnp.dot(exps.T, hidden * factor), (losses, to_hidden)

    start = collectives.typed_as(jnp.zeros(head.shape, jnp.float32), head)
    summed, (losses, to_hidden) = _scan(turn, start, (hidden, at, weights), how.block)
    return losses, _Gradients(to_hidden, summed)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _loss_sum(hidden: Array, head: Array, at: _Targets, weights: Array, how: Head) -> Array:
    losses: Array = _losses(hidden, head, at, how)
    return jnp.sum(losses * weights)


def _loss_sum_forward(
    hidden: Array, head: Array, at: _Targets, weights: Array, how: Head
) -> tuple[Array, Any]:
    losses, gradients = _losses_and_gradients(hidden, head, at, weights, how)
    like = jnp.zeros(0, head.dtype)
    return jnp.sum(losses * weights), (gradients, losses, like)


def _loss_sum_backward(how: Head, saved: Any, g: Array) -> tuple[Array, Array, None, Array]:
    gradients, losses, like = saved
    to_hidden = (gradients.hidden * g).astype(gradients.hidden.dtype)
    return to_hidden, (gradients.head * g).astype(like.dtype), None, losses * g


_loss_sum.defvjp(_loss_sum_forward, _loss_sum_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _losses(hidden: Array, head: Array, at: _Targets, how: Head) -> Array:
    def find(hidden: Array, at: _Targets) -> Array:
        return _loss(_logits(hidden, head, how), at, how)[0]

    return _each(find, hidden, at, how)


def _losses_forward(hidden: Array, head: Array, at: _Targets, how: Head) -> tuple[Array, Any]:
    return _losses(hidden, head, at, how), (hidden, head, at)


def _losses_backward(how: Head, saved: Any, g: Array) -> tuple[Array, Array, None]:
    hidden, head, at = saved
    _, gradients = _losses_and_gradients(hidden, head, at, g, how, again=True)
    return gradients.hidden, gradients.head.astype(head.dtype), None


_losses.defvjp(_losses_forward, _losses_backward)
