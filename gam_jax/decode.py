"""Writing text: prefill in chunks, then a token at a time, on any mesh."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from gam_jax.ids import check_ids
from gam_jax.layers.block import Apart
from gam_jax.models.language import LanguageModel, ModelCarry
from gam_jax.ops.cache import known_most
from gam_jax.params import Params, carry_specs, rule_specs
from sharding import collectives
from sharding.axes import Axes
from sharding.bounds import Count, NotNegative, Share, check_number
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import make_mesh

PREFILL_CHUNK = 256
READ_CHUNKS = (PREFILL_CHUNK, 16, 1)
"""Tokens of a prompt that are read at once: each number is a program to compile."""
WRITE_CHUNK = 8
"""Tokens that are written by one call of the one program; what is too many is cut off."""


def row_keys(key: Array, rows: int) -> Array:
    """A key for each row: `key` if it is that already, [B], else one by the row's number."""
    return key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))


def choose(
    logits: Float[Array, "B V"], keys: Array, temperature: float | Array, top_p: float | Array
) -> Int[Array, B]:
    """Draws a token from softmax(logits / temperature), cut to its nucleus, by a key for each row.

    The nucleus is the smallest set of likeliest tokens whose probability reaches `top_p`
    (Holtzman et al. 2020, arXiv 1904.09751); the likeliest is always in it. Temperature 0 takes
    the likeliest.
    """
    scaled = logits / jnp.maximum(temperature, 1e-6)
    ordered = jnp.sort(scaled, axis=-1, descending=True)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    inside = (before < top_p).at[:, 0].set(True)
    least = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)
    drawn = jax.vmap(jax.random.categorical)(keys, jnp.where(scaled >= least, scaled, -jnp.inf))
    return jnp.where(temperature == 0, jnp.argmax(logits, axis=-1), drawn).astype(jnp.int32)


def drawable(logits: Float[Array, "B V"]) -> Bool[Array, B]:
    """Whether logits say a distribution: no NaN, no +inf, and not all of them -inf.

    Single logits of -inf are tokens of probability 0.
    """
    return jnp.isfinite(jnp.max(logits, axis=-1))


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
    def chunk(self) -> int:
        """Tokens of a prompt that are read at once."""
        return PREFILL_CHUNK * self.layout.mesh.shape["seq"]

    def axes(self, batch: int, tokens: int) -> Axes:
        """The mesh axes of a program over [batch, tokens]."""
        axes = self.layout.axes
        rows: dict[str, str | None] = {"data": None, "expert": None}
        for axis in axes.rows:
            if batch % self.layout.mesh.shape[axis] == 0:
                rows[axis], batch = axis, batch // self.layout.mesh.shape[axis]
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

    def writing_specs(self, batch: int, axes: Axes) -> ModelCarry:
        """How what `_to_write` returns lies."""
        specs, model = self.carry_specs(batch, axes), self.model
        if model.streams > 1:
            return specs
        block = carry_specs(model.block.carry_table(batch), self.layout, axes.rows)
        return dataclasses.replace(specs, layers=Apart((block,) * model.depth))

    def on_mesh(self, program: Any, carry: ModelCarry, axes: Axes, tokens: PartitionSpec) -> Any:
        """`program(params, carry, tokens or logits, *rest)` -> (carry, *whole) over the mesh."""
        params = rule_specs(self.model.table(), self.layout)

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
    decoder: Decoder, params: Params, tokens: Array, carry: ModelCarry
) -> tuple[Array, ModelCarry]:
    def read(params: Params, carry: ModelCarry, tokens: Array, axes: Axes) -> Any:
        logits, carry = decoder.next_logits(params, tokens, carry, axes)
        return carry, logits

    axes = decoder.axes(*tokens.shape)
    spec = PartitionSpec(axes.rows or None, axes.seq)
    program = decoder.on_mesh(read, decoder.carry_specs(tokens.shape[0], axes), axes, spec)
    carry, logits = program(params, carry, tokens)
    return logits, carry


@functools.partial(jax.jit, static_argnums=0)
def _to_write(model: LanguageModel, carry: ModelCarry) -> ModelCarry:
    """A copy to be written to in place, that of each block by itself where there is one stream."""
    if model.streams == 1:
        carry = dataclasses.replace(carry, layers=model.stack.apart(carry.layers))
    return jax.tree.map(jnp.copy, carry)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _write(
    decoder: Decoder,
    params: Params,
    logits: Array,
    carry: ModelCarry,
    keys: Array,
    settings: tuple[Array, Array],
) -> tuple[Array, Array, Array, ModelCarry]:
    """New tokens [B, N], whether each was drawn from numbers, the last logits, the carry."""

    def write(
        params: Params,
        carry: ModelCarry,
        logits: Array,
        keys: Array,
        settings: tuple[Array, Array],
        axes: Axes,
    ) -> Any:
        places = collectives.all_gather(carry.position, axes.rows, dim=0)

        def step(state: Any, i: Array) -> tuple[Any, tuple[Array, Array]]:
            logits, carry = state
            drawn_by = jax.vmap(jax.random.fold_in)(keys, places + i)
            token = choose(logits, drawn_by, *settings)
            own = collectives.own_shard(token[:, None], axes.rows, dim=0)
            return decoder.next_logits(params, own, carry, axes), (token, drawable(logits))

        (logits, carry), (tokens, sound) = lax.scan(step, (logits, carry), jnp.arange(WRITE_CHUNK))
        return carry, (tokens.T, sound.T, logits)

    axes = decoder.axes(logits.shape[0], 1)
    program = decoder.on_mesh(
        write, decoder.writing_specs(logits.shape[0], axes), axes, PartitionSpec()
    )
    carry, (tokens, sound, logits) = program(params, carry, logits, keys, settings)
    return tokens, sound, logits, carry


def prefill(
    model: LanguageModel,
    params: Params,
    tokens: Int[Array | np.ndarray, "B T"],
    carry: ModelCarry | None = None,
    layout: Layout | None = None,
) -> tuple[Float[Array, "B V"], ModelCarry]:
    """Reads a prompt of any length in chunks of few sizes, so that few programs are compiled.

    Args:
      model: the model.
      params: its parameters, on the layout's mesh.
      tokens: the prompt, ids of the vocabulary.
      carry: from what was read before; None starts a sequence.
      layout: the mesh; None for one device.

    Returns:
      The logits after the last token and the carry.

    Raises:
      ValueError: no token, an id outside the vocabulary, or more than the model's `limit`.
    """
    tokens = _checked(model, tokens)
    decoder = Decoder(model, (layout or Layout(make_mesh())).whole)
    after = model.carry(tokens.shape[0]) if carry is None else carry
    model.check_length(known_most(after.position) + tokens.shape[1])
    logits, start = jnp.zeros(()), 0
    while start < tokens.shape[1]:
        left = tokens.shape[1] - start
        size = next(size for size in (decoder.chunk, *READ_CHUNKS) if size <= left)
        logits, after = _read(decoder, params, jnp.asarray(tokens[:, start : start + size]), after)
        start += size
    return logits, after


def generate(
    model: LanguageModel,
    params: Params,
    prompt: Int[Array | np.ndarray, "B T"],
    tokens: int,
    key: Array,
    temperature: float = 1.0,
    top_p: float = 1.0,
    layout: Layout | None = None,
) -> Iterator[Int[np.ndarray, "B N"]]:
    """Continues the prompt by `tokens` tokens, given out a few at a time.

    A row's token at position i is drawn with fold_in(its key, i), so the text does not depend on
    how it is cut into chunks, nor on the mesh, nor, given a key for each row, on the other rows.

    Args:
      model: the model.
      params: its parameters, on the layout's mesh.
      prompt: what is continued.
      tokens: how many to write.
      key: one for all, from which each row's is made by its number, or one for each row, [B].
      temperature: 0 takes the likeliest token.
      top_p: the share of probability that is drawn from, see `choose`.
      layout: the mesh; None for one device.

    Raises:
      ValueError: prompt and tokens together exceed the model's `limit`; a prompt without tokens
        or with an id outside the vocabulary; a number of tokens, a temperature or a share that
        makes no sense. While it is read: logits that are no numbers, by position and row; what
        was drawn before them is given out.
    """
    _check_settings(tokens, temperature, top_p)
    prompt = _checked(model, prompt)
    model.check_length(prompt.shape[1] + tokens)
    logits, carry = prefill(model, params, prompt, layout=layout)
    return write(model, params, logits, carry, tokens, key, temperature, top_p, layout)


def _checked(model: LanguageModel, prompt: Array | np.ndarray) -> np.ndarray:
    """A prompt on the host, looked at before anything is computed."""
    ids = np.asarray(prompt)
    if ids.ndim != 2 or not ids.size:
        raise UserError(f"a prompt needs at least one row of one token [B, T], not {ids.shape}")
    check_ids("prompt", ids, model.ids()["inputs"], ("row", "position"))
    return ids.astype(np.int32, copy=False)


def _check_settings(tokens: int, temperature: float, top_p: float) -> None:
    check_number("tokens", tokens, Count)
    check_number("temperature", temperature, NotNegative)
    check_number("top_p", top_p, Share)


def write(
    model: LanguageModel,
    params: Params,
    logits: Float[Array, "B V"],
    carry: ModelCarry,
    tokens: int,
    key: Array,
    temperature: float = 1.0,
    top_p: float = 1.0,
    layout: Layout | None = None,
) -> Iterator[Int[np.ndarray, "B N"]]:
    """As `generate`, from what `prefill` returned."""
    _check_settings(tokens, temperature, top_p)
    model.check_length(known_most(carry.position) + tokens)
    return _pieces(model, params, logits, carry, tokens, key, (temperature, top_p), layout)


def _pieces(
    model: LanguageModel,
    params: Params,
    logits: Array,
    carry: ModelCarry,
    tokens: int,
    key: Array,
    drawn: tuple[float, float],
    layout: Layout | None,
) -> Iterator[np.ndarray]:
    decoder = Decoder(model, (layout or Layout(make_mesh())).whole)
    settings = jnp.float32(drawn[0]), jnp.float32(drawn[1])
    begun, keys = carry, row_keys(key, logits.shape[0])
    carry = _to_write(model, carry)
    for start in range(0, tokens, WRITE_CHUNK):
        new, sound, logits, carry = _write(decoder, params, logits, carry, keys, settings)
        new, good = (np.asarray(x)[:, : tokens - start] for x in (new, sound))
        if good.all():
            yield new
            continue
        place, row = np.argwhere(~good.T)[0]
        if place:
            yield new[:, :place]
        raise UserError(
            f"the logits for position {int(begun.position[row]) + start + place} of row {row} are "
            f"no numbers, so no token can be drawn: the parameters are not sound"
        )


def carry_bytes(carry: ModelCarry) -> int:
    """Size of a carry in bytes."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(carry))
