"""Writing text: prefill in chunks, then a token at a time, many rows at once, on any mesh."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from gam_jax.decoder import PREFILL_CHUNK, Decoder, check_ready, made_ready
from gam_jax.decoder import ready as ready
from gam_jax.ids import check_ids
from gam_jax.models.carry import ModelCarry
from gam_jax.models.language import LanguageModel
from gam_jax.models.trunk import is_ready
from gam_jax.params import Params, rows_where
from gam_jax.prompts import PromptLike, check_room, prompts_of
from gam_jax.sampling import Past, Sampling, Settings, choose, drawable, row_keys, seen_in
from sharding import collectives
from sharding.axes import Axes
from sharding.bounds import Count, check_number
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import make_mesh

READ_CHUNKS = (PREFILL_CHUNK, 16, 1)
"""Tokens of a prompt that are read at once: each number is a program to compile."""
WRITE_CHUNK = 8
"""Tokens that are written by one call of the one program; what is too many is cut off."""
ENDED = -1
"""Stands in the place of tokens that a row no longer writes: no id."""


@functools.partial(jax.jit, static_argnums=0)
def _read(
    decoder: Decoder,
    params: Params,
    tokens: Array,
    carry: ModelCarry,
    takes: Array | None = None,
    logits: Array | None = None,
) -> tuple[Array, ModelCarry]:
    """Logits and carry after the tokens; in rows that take none of them, those from before."""

    def read(params: Params, carry: ModelCarry, tokens: Array, *whole: Array, axes: Axes) -> Any:
        found, after = decoder.next_logits(params, tokens, carry, axes)
        if whole:
            takes, logits = whole
            found = jnp.where(takes[:, None], found, logits)
            own = collectives.own_shard(takes, axes.rows, dim=0)
            table = decoder.model.trunk.carry_table(tokens.shape[0])
            layers = rows_where(table, own, after.layers, carry.layers)
            position = jnp.where(own, after.position, carry.position)
            after = ModelCarry(position, layers)  # type: ignore[call-arg]
        return after, found

    axes = decoder.axes(*tokens.shape)
    spec = PartitionSpec(axes.rows or None, axes.seq)
    specs = decoder.carry_specs(tokens.shape[0], axes)
    lie = decoder.ready_specs if is_ready(params) else None
    program = decoder.on_mesh(read, specs, axes, spec, lie)
    whole = () if takes is None else (takes, logits)
    carry, found = program(params, carry, tokens, *whole)
    return found, carry


@functools.partial(jax.jit, static_argnums=0)
def _to_write(decoder: Decoder, carry: ModelCarry) -> ModelCarry:
    """A copy to be written to in place, that of each block by itself where they are `apart`."""
    if decoder.apart:
        layers = decoder.model.trunk.apart(carry.layers, lambda x, i: x[i])
        carry = dataclasses.replace(carry, layers=layers)
    return jax.tree.map(jnp.copy, carry)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _write(
    decoder: Decoder,
    params: Params,
    logits: Array,
    carry: ModelCarry,
    keys: Array,
    sampling: Sampling,
    past: Past,
) -> tuple[Array, Array, Array, ModelCarry, Past]:
    """New tokens [B, N], whether each was drawn from numbers, the last logits, carry, past."""

    def write(
        params: Params,
        carry: ModelCarry,
        logits: Array,
        keys: Array,
        sampling: Sampling,
        past: Past,
        axes: Axes,
    ) -> Any:
        places = collectives.all_gather(carry.position, axes.rows, dim=0)

        def step(state: Any, i: Array) -> tuple[Any, tuple[Array, Array]]:
            (logits, carry), past = state
            drawn_by = jax.vmap(jax.random.fold_in)(keys, places + i)
            token = choose(logits, drawn_by, sampling, past)
            own = collectives.own_shard(token[:, None], axes.rows, dim=0)
            after = decoder.next_logits(params, own, carry, axes)
            return (after, past.add(token)), (token, drawable(logits))

        state = ((logits, carry), past)
        ((logits, carry), past), (tokens, sound) = lax.scan(step, state, jnp.arange(WRITE_CHUNK))
        return carry, (tokens.T, sound.T, logits, past)

    axes = decoder.axes(logits.shape[0], 1)
    specs = decoder.writing_specs(logits.shape[0], axes)
    program = decoder.on_mesh(write, specs, axes, PartitionSpec(), decoder.ready_specs)
    carry, found = program(params, carry, logits, keys, sampling, past)
    tokens, sound, logits, past = found
    return tokens, sound, logits, carry, past


def prefill(
    model: LanguageModel,
    params: Params,
    tokens: PromptLike,
    carry: ModelCarry | None = None,
    layout: Layout | None = None,
) -> tuple[Float[Array, "B V"], ModelCarry]:
    """Reads prompts of any length in chunks of few sizes, so that few programs are compiled.

    Each row is read in the chunks in which it is read alone. A chunk is computed for all rows; one
    that has no such chunk (any more) keeps its logits and its carry.

    Args:
      model: the model.
      params: its parameters, on the layout's mesh, or `ready` ones.
      tokens: the prompt, ids of the vocabulary: [B, T], or a sequence of ids for each row.
      carry: from what was read before; None starts a sequence.
      layout: the mesh; None for one device.

    Returns:
      The logits after each row's last token and the carry.

    Raises:
      ValueError: no token, an id outside the vocabulary, more than the model's `limit`, or
        parameters that are ready for another model or mesh.
    """
    prompts = prompts_of(model, tokens)
    rows = len(prompts.lengths)
    decoder = Decoder(model, (layout or Layout(make_mesh())).whole)
    check_ready(decoder, params)
    after = model.carry(rows) if carry is None else carry
    check_room(model, prompts.lengths, np.asarray(after.position))
    sizes = dict.fromkeys((decoder.chunk, *READ_CHUNKS))
    after, logits = decoder.placed(after, jnp.zeros((rows, model.ids()["inputs"])))
    for piece, takes in prompts.chunks(tuple(sizes)):
        some = () if prompts.alike else (jnp.asarray(takes), logits)
        logits, after = _read(decoder, params, jnp.asarray(piece), after, *some)
    return logits, after


def generate(
    model: LanguageModel,
    params: Params,
    prompt: PromptLike,
    tokens: int,
    key: Array,
    *,
    stop: Sequence[Any] = (),
    layout: Layout | None = None,
    **settings: Any,
) -> Iterator[Int[np.ndarray, "B N"]]:
    """Continues each row of the prompt by up to `tokens` tokens, given out a few at a time.

    A row's token at position i is drawn with fold_in(its key, i), so the text does not depend on
    how it is cut into chunks, nor on the mesh, nor, given a key for each row, on the other rows.
    A row ends with the first stop id that it writes; what is given out after that is `ENDED`, and
    nothing more is written when all have ended. `written` joins what is given out. Positions that
    turn by the length of a sequence (`Positions.length`) do so by the longest row and `tokens`.

    Args:
      model: the model.
      params: its parameters, on the layout's mesh, or `ready` ones.
      prompt: what is continued: [B, T], or a sequence of ids for each row.
      tokens: how many to write at most.
      key: one for all, from which each row's is made by its number, or one for each row, [B].
      stop: ids that end a row, for all rows; or a sequence of such ids for each row.
      layout: the mesh; None for one device.
      **settings: how tokens are drawn, fields of `sampling.Settings`: temperature, top_p, top_k,
        min_p and the penalties, each a number or one for each row.

    Raises:
      ValueError: prompt and tokens of a row together exceed the model's `limit`; a prompt without
        tokens; an id outside the vocabulary; a number of tokens or a setting that makes no sense.
        While it is read: logits that are no numbers, by position and row; what was drawn before
        them is given out.
    """
    drawn = _settings(tokens, settings)
    prompts = prompts_of(model, prompt)
    ends = _stops(model, stop, len(prompts.lengths))
    check_room(model, prompts.lengths + tokens, in_parts=False)
    model = model.for_length(int(np.max(prompts.lengths)) + tokens)
    sampling = drawn.of_rows(len(prompts.lengths))
    logits, carry = prefill(model, params, prompts.rows, layout=layout)
    seen = seen_in(prompts.rows, logits.shape[1])
    return _pieces(model, params, logits, carry, tokens, key, sampling, ends, seen, layout)


def write(
    model: LanguageModel,
    params: Params,
    logits: Float[Array, "B V"],
    carry: ModelCarry,
    tokens: int,
    key: Array,
    *,
    stop: Sequence[Any] = (),
    seen: Bool[Array | np.ndarray, "B V"] | None = None,
    layout: Layout | None = None,
    **settings: Any,
) -> Iterator[Int[np.ndarray, "B N"]]:
    """As `generate`, from what `prefill` returned.

    `seen` says which tokens were read, for the repetition penalty, see `sampling.seen_in`; None
    for none of them: the penalty is then on what is written alone.
    """
    drawn = _settings(tokens, settings)
    rows = logits.shape[0]
    check_room(model, np.full(rows, tokens), np.asarray(carry.position))
    ends, sampling = _stops(model, stop, rows), drawn.of_rows(rows)
    seen = np.zeros(logits.shape, bool) if seen is None else seen
    return _pieces(model, params, logits, carry, tokens, key, sampling, ends, seen, layout)


def written(pieces: Iterable[np.ndarray]) -> list[np.ndarray]:
    """What each row has written, of all pieces of `generate` or `write`; a stop id included."""
    return [row[row != ENDED] for row in np.concatenate(list(pieces), axis=1)]


def _settings(tokens: int, settings: dict[str, Any]) -> Settings:
    check_number("tokens", tokens, Count)
    return Settings(**settings)


def _stops(model: LanguageModel, stop: Sequence[Any], rows: int) -> list[np.ndarray]:
    """The ids that end each row."""
    shared = all(np.ndim(ids) == 0 for ids in stop)
    each = [np.asarray(ids) for ids in ([stop] * rows if shared else stop)]
    if len(each) != rows:
        raise UserError(f"stop: ids for {len(each)} rows, and there are {rows}")
    for row, ids in enumerate(each):
        if ids.size:
            check_ids(f"stop ids of row {row}", ids, model.ids()["inputs"], ("place",))
    return each


def _pieces(
    model: LanguageModel,
    params: Params,
    logits: Array,
    carry: ModelCarry,
    tokens: int,
    key: Array,
    sampling: Sampling,
    ends: list[np.ndarray],
    seen: Array | np.ndarray,
    layout: Layout | None,
) -> Iterator[np.ndarray]:
    decoder = Decoder(model, (layout or Layout(make_mesh())).whole)
    check_ready(decoder, params)
    begun, keys = np.asarray(carry.position), row_keys(key, logits.shape[0])
    # It lies as `_write` gives it back, else that would be compiled twice.
    past = jax.device_put(Past.of(seen), NamedSharding(decoder.layout.mesh, PartitionSpec()))
    carry, params = _to_write(decoder, carry), made_ready(decoder, params)
    ended = np.zeros(len(ends), bool)
    for start in range(0, tokens, WRITE_CHUNK):
        new, sound, logits, carry, past = _write(
            decoder, params, logits, carry, keys, sampling, past
        )
        new, good = (np.asarray(x)[:, : tokens - start] for x in (new, sound))
        hit = np.stack([np.isin(row, ids) for row, ids in zip(new, ends, strict=True)])
        after = ended[:, None] | (np.cumsum(hit, axis=1) - hit > 0)
        new, good = np.where(after, ENDED, new), good | after
        size = int(np.max(np.sum(~after, axis=1)))
        if not good.all():
            size, row = (int(place) for place in np.argwhere(~good.T)[0])
        if size:
            yield new[:, :size]
        if not good.all():
            raise UserError(
                f"the logits for position {int(begun[row]) + start + size} of row {row} are "
                f"no numbers, so no token can be drawn: the parameters are not sound"
            )
        ended |= hit.any(axis=1)
        if ended.all():
            return


def carry_bytes(carry: ModelCarry) -> int:
    """Size of a carry in bytes."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(carry))
