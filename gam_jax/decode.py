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

from gam_jax.ids import check_ids
from gam_jax.models.carry import ModelCarry
from gam_jax.models.language import LanguageModel
from gam_jax.models.trunk import Trunk, is_ready
from gam_jax.params import Params, rows_where, rule_specs, shardings
from gam_jax.prompts import PromptLike, check_room, prompts_of
from gam_jax.sampling import Past, Sampling, Settings, choose, drawable, row_keys, seen_in
from sharding import collectives
from sharding.axes import Axes
from sharding.bounds import Count, check_number
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import make_mesh

PREFILL_CHUNK = 256
READ_CHUNKS = (PREFILL_CHUNK, 16, 1)
"""Tokens of a prompt that are read at once: each number is a program to compile."""
WRITE_CHUNK = 8
"""Tokens that are written by one call of the one program; what is too many is cut off."""
ENDED = -1
"""Stands in the place of tokens that a row no longer writes: no id."""


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A model that streams on a mesh.

    Rows are split over `data` and `expert` if they divide them; else those compute them alike, as
    those of `seq` do single tokens. Whole chunks of a prompt are split over `seq`. Logits and new
    tokens are whole on every device, so that the draw is that of one device.

    Attributes:
      model: the model.
      layout: the mesh and its rules, see `Layout.whole`.
    """

    model: LanguageModel
    layout: Layout

    @property
    def apart(self) -> bool:
        """Whether each block's carry and parameters lie by themselves while it writes."""
        return self.layout.stages == 1

    @property
    def chunk(self) -> int:
        """Tokens of a prompt that are read at once."""
        return PREFILL_CHUNK * self.layout.mesh.shape["seq"]

    def axes(self, batch: int, tokens: int) -> Axes:
        """The mesh axes of a program over [batch, tokens]."""
        axes, rows = self.layout.axes, self.layout.rows_over(batch)
        return dataclasses.replace(axes, **rows, seq=axes.seq if tokens == self.chunk else None)

    def next_logits(
        self, params: Params, tokens: Array, carry: ModelCarry, axes: Axes
    ) -> tuple[Array, ModelCarry]:
        """The program of one device: whole logits [B, V] after its tokens, and the carry."""
        logits, carry = self.model.last_logits(params, tokens, carry, axes)
        return collectives.all_gather(logits, axes.rows, dim=0), carry

    def carry_specs(self, batch: int, axes: Axes) -> ModelCarry:
        """How a carry lies."""
        return self.model.carry_specs(batch, self.layout, axes.rows)

    def placed(self, carry: ModelCarry, logits: Array) -> tuple[ModelCarry, Array]:
        """Both as `_read` gives them back, else that would be compiled twice."""
        batch = logits.shape[0]
        specs = self.carry_specs(batch, self.axes(batch, 1)), PartitionSpec()
        return jax.device_put((carry, logits), shardings(specs, self.layout))

    def writing_specs(self, batch: int, axes: Axes) -> ModelCarry:
        """How what `_to_write` returns lies."""
        specs, trunk = self.carry_specs(batch, axes), self.model.trunk
        if not self.apart:
            return specs
        layers = trunk.apart(specs.layers, lambda spec, _: PartitionSpec(*spec[1:]))
        return dataclasses.replace(specs, layers=layers)

    @property
    def param_specs(self) -> Params:
        """How parameters lie."""
        return rule_specs(self.model.table(), self.layout)

    @property
    def ready_specs(self) -> Params:
        """How what `_ready` returns lies."""
        if not self.apart:
            return self.param_specs
        return _trunk(self.model).ready_specs(self.param_specs, self.layout)

    def on_mesh(
        self,
        program: Any,
        carry: ModelCarry,
        axes: Axes,
        tokens: PartitionSpec,
        params: Params | None = None,
    ) -> Any:
        """`program(params, carry, tokens or logits, *rest)` -> (carry, *whole) over the mesh."""
        params = self.param_specs if params is None else params

        def call(*args: Any) -> Any:
            whole = (PartitionSpec(),) * (len(args) - 3)
            return jax.shard_map(
                lambda *own: program(*own, axes=axes),
                mesh=self.layout.mesh,
                in_specs=(params, carry, tokens, *whole),
                out_specs=(carry, PartitionSpec()),
            )(*args)

        return call


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


def ready(model: LanguageModel, params: Params, layout: Layout | None = None) -> Params:
    """Parameters as texts are read and written fastest: each block's by themselves, and cast.

    Others are read out of the stacked ones, block by block, and made such for writing, at each
    call. The programs that read are then written out layer by layer too, so that they take longer
    to compile the more layers there are. They are a copy: let the others go if memory is scarce.

    Args:
      model: the model.
      params: its parameters, on the layout's mesh.
      layout: the mesh; None for one device.
    """
    return _ready(Decoder(model, (layout or Layout(make_mesh())).whole), params)


@functools.partial(jax.jit, static_argnums=0)
def _ready(decoder: Decoder, params: Params) -> Params:
    """Parameters of blocks as `_write` reads them at each token, see `Trunk.ready`."""
    model = decoder.model
    if is_ready(params) or not decoder.apart:
        return params
    return _trunk(model).ready(params, model.dtype, decoder.layout)


def _trunk(model: LanguageModel) -> Trunk:
    return Trunk(model.stack, model.norm)


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
      ValueError: no token, an id outside the vocabulary, or more than the model's `limit`.
    """
    prompts = prompts_of(model, tokens)
    rows = len(prompts.lengths)
    decoder = Decoder(model, (layout or Layout(make_mesh())).whole)
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
    begun, keys = np.asarray(carry.position), row_keys(key, logits.shape[0])
    # It lies as `_write` gives it back, else that would be compiled twice.
    past = jax.device_put(Past.of(seen), NamedSharding(decoder.layout.mesh, PartitionSpec()))
    carry, params = _to_write(decoder, carry), _ready(decoder, params)
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
