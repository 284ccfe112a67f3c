"""How likely a model finds continuations of contexts, in batches of unlike lengths."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from gam_jax.decode import Decoder
from gam_jax.ids import check_ids
from gam_jax.models.language import LanguageModel
from gam_jax.ops.cross_entropy import token_scores
from gam_jax.params import Params, rule_specs
from sharding import collectives
from sharding.axes import Axes
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import make_mesh

LEAST = 16
"""Tokens of the shortest rows that are computed; shorter ones are filled up."""


class Likelihood(NamedTuple):
    """Of a continuation after its context.

    Attributes:
      log: the natural logarithm of its probability, a sum over its tokens.
      greedy: whether each of its tokens is the likeliest after those before it.
    """

    log: float
    greedy: bool


class Pair(NamedTuple):
    """Ids of a context, at least one, and of what is asked to follow it, at least one."""

    context: np.ndarray
    continuation: np.ndarray


def likelihoods(
    model: LanguageModel,
    params: Params,
    pairs: Sequence[Pair],
    rows: int = 16,
    layout: Layout | None = None,
) -> list[Likelihood]:
    """The likelihood of each continuation, in the order in which the pairs are given.

    Pairs of like lengths stand side by side, the shorter ones filled up behind their end, where
    nothing sees it: a row is what it is alone. Rows have few lengths, so that few programs are
    compiled.

    Args:
      model: the model.
      params: its parameters, on the layout's mesh.
      pairs: what is asked.
      rows: pairs side by side.
      layout: the mesh; None for one device.

    Raises:
      UserError: a pair without context or continuation, an id outside the vocabulary, or more
        tokens than the model's `limit` and one: it names the pair. While they are computed: a
        likelihood that is no number.
    """
    _check(model, pairs)
    decoder = Decoder(model, (layout or Layout(make_mesh())).whole)
    lengths = np.array([len(context) + len(asked) - 1 for context, asked in pairs], int)
    order = np.argsort(-lengths, kind="stable")
    found: list[Likelihood | None] = [None] * len(pairs)
    for start in range(0, len(pairs), rows):
        own = order[start : start + rows]
        size = filled(int(lengths[own].max()), model.limit)
        ids = np.zeros((min(rows, len(pairs)), size + 1), np.int32)
        for row, number in zip(ids, own, strict=False):
            row[: lengths[number] + 1] = np.concatenate(pairs[number])
        losses, hits = map(np.asarray, _score(decoder, params, ids[:, :-1], ids[:, 1:]))
        for row, number in enumerate(own):
            asked = slice(lengths[number] - len(pairs[number].continuation), lengths[number])
            total = -float(np.sum(losses[row, asked], dtype=np.float64))
            if np.isnan(total):
                raise UserError(
                    f"the likelihood of continuation {number} is no number: the parameters are "
                    f"not sound"
                )
            found[number] = Likelihood(total, bool(np.all(hits[row, asked] > 0)))
    return [one for one in found if one is not None]


def filled(tokens: int, limit: int) -> int:
    """The length of a row that so many tokens are filled up to.

    A power of 2 or one and a half times one, but no more than the limit where there is one.
    """
    size = LEAST
    while size < tokens:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return min(size, limit) if limit else size


def cut(pair: Pair, longest: int) -> Pair:
    """A pair without the beginning of its context, as far as it must go.

    Args:
      pair: to cut.
      longest: tokens that a model is given at most; the last one asked for is not among them.

    Raises:
      UserError: the continuation alone is longer.
    """
    context, asked = pair
    if len(asked) > longest:
        raise UserError(
            f"a continuation of {len(asked)} tokens is longer than the {longest} that are taken"
        )
    return Pair(context[max(0, len(context) + len(asked) - 1 - longest) :], asked)


def rolling(ids: np.ndarray, prefix: int, longest: int) -> Iterator[Pair]:
    """A text in windows, in which each of its tokens is asked for once.

    The first window begins with `prefix` in the place of a context. The last one reaches back so
    far that it is whole.

    Args:
      ids: of the text.
      prefix: the id that stands before a text.
      longest: tokens of a window.
    """
    whole = np.concatenate([[prefix], ids]).astype(np.int32)
    for start in range(0, len(ids), longest):
        end = min(start + longest, len(ids))
        first = max(0, end - longest)
        yield Pair(whole[first : start + 1], whole[start + 1 : end + 1])


def _check(model: LanguageModel, pairs: Sequence[Pair]) -> None:
    for number, (context, asked) in enumerate(pairs):
        if not (len(context) and len(asked)):
            raise UserError(f"pair {number} needs a context and a continuation of a token each")
        ids = np.concatenate([context, asked])
        check_ids(f"pair {number}", ids, model.ids()["inputs"], ("position",))
        try:
            model.check_length(len(ids) - 1)
        except ValueError as error:
            raise UserError(f"pair {number}: {error}") from error


@functools.partial(jax.jit, static_argnums=0)
def _score(
    decoder: Decoder, params: Params, inputs: Array, targets: Array
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """The cross-entropy of each target in nats, and 1 where it is the likeliest token."""
    model = decoder.model
    axes: Axes = decoder.axes(inputs.shape[0], 0)  # devices of `seq` compute alike

    def program(params: Params, inputs: Array, targets: Array) -> tuple[Array, Array]:
        batch = {"inputs": inputs, "targets": targets, "weights": jnp.ones(inputs.shape)}
        losses, hits = model.of_tokens(params, batch, axes, token_scores)
        gather = functools.partial(collectives.all_gather, axis=axes.rows, dim=0)
        return gather(losses), gather(hits)

    rows = PartitionSpec(axes.rows or None)
    return jax.shard_map(
        program,
        mesh=decoder.layout.mesh,
        in_specs=(rule_specs(model.table(), decoder.layout), rows, rows),
        out_specs=PartitionSpec(),
    )(params, inputs, targets)
