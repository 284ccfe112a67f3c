"""The programs of rows: a step of all, blocks of some, and what moves states about.

Each is the program of one device of the mesh. All change one `State`, which is given away and
written in place.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, UInt

from gam_jax.models.carry import ModelCarry
from gam_jax.models.language import LanguageModel
from gam_jax.models.semi import SemiDrafter
from gam_jax.models.trunk import Trunk
from gam_jax.models.units import LexicalUnits
from gam_jax.params import Params, rule_specs
from gam_jax.sampling import Past, Sampling, choose, drawable, log_probs_of
from gam_jax.serve.executor import (
    LAST_DRAWN,
    MOST_BIASED,
    MOST_TOP,
    UNSURE,
    Blocks,
    Sizes,
    Work,
)
from gam_jax.serve.features import Features, guesses
from gam_jax.serve.rows import Rows
from sharding import collectives
from sharding.errors import UserError

WHOLE = PartitionSpec()
SCORES = "scores"
"""The scope of what a block of a prompt costs only where it is scored."""


@flax.struct.dataclass
class Seats:
    """How each row draws, alike on all devices.

    Attributes:
      last: int32 [S], the token that a row drew last.
      seed: uint32 [S].
      top: int32 [S], see `executor.Draws`.
      sampling: the settings.
      past: what was read and written.
    """

    last: Int[Array, S]
    seed: UInt[Array, S]
    top: Int[Array, S]
    sampling: Sampling
    past: Past


@flax.struct.dataclass
class State:
    """All that rows have on the device: their carry with its pools, and how they draw.

    Attributes:
      carry: of the model.
      seats: how they draw.
      features: what a drafter reads; None where there is none.
    """

    carry: ModelCarry
    seats: Seats
    features: Features | None = None


@flax.struct.dataclass
class Told:
    """What a step tells, see `executor.Drawn`.

    Attributes:
      numbers: tokens, then right and sound: one array, for one transfer.
      log_probs, top_ids, top_log_probs: as there.
    """

    numbers: Int[Array, "S W+2"]
    log_probs: Float[Array, "S W"]
    top_ids: Int[Array, "S W N"]
    top_log_probs: Float[Array, "S W N"]


def marks(params: Params) -> UInt[Array, N]:
    """A number for each array of parameters, by which others are told; no checksum of order."""

    def mark(x: Array) -> Array:
        bits = lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
        bits = bits.astype(jnp.uint32)
        return jnp.sum((bits ^ (bits >> 15)) * (bits | 1), dtype=jnp.uint32)

    return jnp.stack([mark(x) for x in jax.tree.leaves(params)])


def packed(work: Work) -> Int[np.ndarray, "S W+2+N"]:
    """A step's numbers in one array, for one transfer: tokens, known, guesses, pages."""
    counts = work.known[:, None], work.guesses[:, None]
    return np.concatenate([work.tokens, *counts, work.pages], axis=1, dtype=np.int32)


def packed_blocks(blocks: Blocks, sizes: Sizes) -> Int[np.ndarray, "R 1+2W+N"]:
    """Blocks of prompts likewise: rows, tokens, what follows, pages; empty places are of row S.

    Raises:
      UserError: more blocks than are read at once, a row twice, or one that there is not.
    """
    width, rows = blocks.tokens.shape[1], blocks.rows.tolist()
    if len(rows) > sizes.together(width) or len(set(rows)) < len(rows):
        raise UserError(
            f"blocks of {width} tokens of rows {rows}: give at most {sizes.together(width)}, each "
            f"of another row"
        )
    if not set(rows) <= set(range(sizes.rows)):
        raise UserError(f"blocks of rows {rows}: there are rows 0 to {sizes.rows - 1}")
    follows = blocks.tokens if blocks.follows is None else blocks.follows
    parts = blocks.rows[:, None], blocks.tokens, follows, blocks.pages
    packed = np.zeros((sizes.together(width), 1 + 2 * width + sizes.row_pages), np.int32)
    packed[:, 0] = sizes.rows
    packed[: len(blocks.rows)] = np.concatenate(parts, axis=1)
    return packed


def empty_seats(rows: int, vocab: int) -> Seats:
    """Rows that take the likeliest token and have seen nothing."""
    number, share = jnp.zeros(rows, jnp.int32), jnp.ones(rows, jnp.float32)
    biased = jnp.full((rows, MOST_BIASED), vocab, jnp.int32)
    zero = jnp.zeros_like(share)
    sampling = Sampling(
        zero, share, number, zero, share, zero, zero, biased, biased.astype(jnp.float32) * 0
    )
    past = Past.of(jnp.zeros((rows, vocab), bool))
    return Seats(number, number.astype(jnp.uint32), number - 1, sampling, past)


@dataclasses.dataclass(frozen=True)
class Programs:
    """The programs, before they are compiled.

    Attributes:
      rows: whose they are.
      drafter: who guesses from the model's features; None for nobody.
      passes: of the drafter in a program.
    """

    rows: Rows
    drafter: SemiDrafter | None = None
    passes: int = 0

    @property
    def model(self) -> LanguageModel:
        """What the rows are of."""
        return self.rows.model

    def ready(self, params: Params) -> Params:
        """Parameters as every program reads them, see `Trunk.ready`."""
        return self._trunk.ready(params, self.model.dtype, self.rows.layout)

    @property
    def param_specs(self) -> Params:
        """How what `ready` returns lies."""
        specs = rule_specs(self.model.table(), self.rows.layout)
        return self._trunk.ready_specs(specs, self.rows.layout)

    @property
    def _trunk(self) -> Trunk:
        return Trunk(self.model.stack, self.model.norm)

    @property
    def state_specs(self) -> State:
        """How the state lies."""
        rest = jax.eval_shape(lambda: (empty_seats(1, 1), self.no_features()))
        return State(self.carry_specs, *jax.tree.map(lambda _: WHOLE, rest))  # type: ignore

    def no_features(self) -> Features | None:
        """What a drafter knows of rows at first."""
        if self.drafter is None:
            return None
        return Features.none(self.rows.rows, 2 * self.drafter.window, self.model.width)

    @property
    def carry_specs(self) -> ModelCarry:
        """How its carry lies."""
        return self.rows.specs(self.rows.axes.rows)

    def on_mesh(self, program: Any, takes: tuple[Any, ...], gives: Any) -> Any:
        """A program of one device over the mesh."""
        mesh = self.rows.layout.mesh
        return jax.shard_map(program, mesh=mesh, in_specs=takes, out_specs=gives)

    def step(
        self,
        state: State,
        params: Params,
        work: Int[Array, "S W+2+N"],
        allowed: UInt[Array, "S Q"],
        constrained: Bool[Array, ""],
    ) -> tuple[State, Told]:
        """Feeds a block of each row and draws, see `executor.Work`, which comes `packed`."""
        table = work.shape[1] - self.rows.row_pages
        tokens, known, guesses = work[:, : table - 2], work[:, table - 2], work[:, table - 1]
        axes, seats, carry = self.rows.axes, state.seats, state.carry
        busy = known > 0
        tokens = jnp.where(tokens == LAST_DRAWN, seats.last[:, None], tokens)
        tokens = jnp.where(busy[:, None], tokens, 0)
        pages = jnp.where(busy[:, None], work[:, table:], 0)
        places = collectives.all_gather(carry.position, axes.rows, dim=0)
        own = collectives.own_shard(tokens, axes.rows, dim=0)
        hidden, after = self.model.hidden(params, own, self.rows.with_tables(carry, pages), axes)
        hidden = collectives.all_gather(hidden, axes.residual, dim=1)
        logits = self.model.logits(params, hidden, axes)
        logits = collectives.all_gather(logits, axes.rows, dim=0)
        seats, told = _draw(logits, places, tokens, known, guesses, seats, allowed, constrained)
        if isinstance(self.model, LexicalUnits):
            told = _where_sure(told, logits, tokens, self.model)
        keeps = collectives.own_shard(
            busy & (told.numbers[:, -2] == tokens.shape[1]), axes.rows, dim=0
        )
        carry = self.rows.where(keeps, self.rows.without_tables(after), carry)
        features = state.features
        if features is not None:
            right = jnp.where(busy, told.numbers[:, -2], 0)
            hidden = collectives.all_gather(hidden, axes.rows, dim=0)
            features = features.fed(hidden, places, right)
        return State(carry, seats, features), told

    def read(
        self,
        state: State,
        params: Params,
        work: Int[Array, "R 1+2W+N"],
        asked: Bool[Array, ""],
    ) -> tuple[State, tuple[Array, Array, Array]]:
        """Feeds a block of some rows, see `executor.Blocks`, which comes as `packed_blocks`.

        Returns:
          The state, and scores of what follows each token, zeros if none are asked.
        """
        axes, split = self.rows.row_axes, self.rows.axes.rows
        table = work.shape[1] - self.rows.row_pages
        rows, (tokens, follows) = work[:, 0], jnp.split(work[:, 1:table], 2, axis=1)
        carry = self.rows.take(state.carry, rows, split)
        hidden, after = self.model.hidden(
            params, tokens, self.rows.with_tables(carry, work[:, table:]), axes
        )

        def scores() -> Any:
            with jax.named_scope(SCORES):
                logits = self.model.logits(params, hidden, axes)
            return log_probs_of(logits, follows, MOST_TOP)

        def none() -> Any:
            top = jnp.zeros((*tokens.shape, MOST_TOP), jnp.float32)
            return top[..., 0], top.astype(jnp.int32), top

        scored = lax.cond(asked, scores, none)
        after = self.rows.without_tables(after)
        features = state.features
        if features is not None:
            whole = collectives.all_gather(hidden, axes.residual, dim=1)
            width = jnp.full(len(rows), whole.shape[1], jnp.int32)
            some = features.of_rows(rows).fed(whole, carry.position, width)
            features = features.with_rows(rows, some)
        return dataclasses.replace(
            state, carry=self.rows.put(state.carry, rows, after, split), features=features
        ), scored

    def guess(
        self, state: State, params: Params, own: Params, work: Int[Array, "S N+1"]
    ) -> Int[Array, "S G"]:
        """What follows each row by the drafter, see `features.guesses`."""
        assert self.drafter is not None
        assert state.features is not None
        given = params, state.features, state.seats, work, self.passes, self.rows.row_axes
        return guesses(self.drafter, own, *given)

    def seat(self, state: State, row: Array, seats: Seats) -> State:
        """Gives a row what `seats`, of one row, says."""

        def put(x: Array, new: Array) -> Array:
            return lax.dynamic_update_slice_in_dim(x, new, row, axis=0)

        return dataclasses.replace(state, seats=jax.tree.map(put, state.seats, seats))

    def load(self, state: State, row: Array, own: list[Array]) -> State:
        """Puts what a row has of its own in its place."""
        pools = self.rows.parted(state.carry)[1]
        one = self.rows.joined(own, pools)
        carry = self.rows.put(state.carry, row[None], one, self.rows.axes.rows)
        features = None if state.features is None else state.features.forget(row)
        return dataclasses.replace(state, carry=carry, features=features)

    def save(self, state: State, row: Array) -> list[Array]:
        """A copy of what a row has of its own."""
        return self.rows.parted(self.rows.take(state.carry, row[None], self.rows.axes.rows))[0]

    def copy_page(self, state: State, source: Array, target: Array) -> State:
        """Copies a page in all pools."""

        def copy(pool: Array, axis: int) -> Array:
            page = lax.dynamic_slice_in_dim(pool, source, 1, axis)
            return lax.dynamic_update_slice_in_dim(pool, page, target, axis)

        return dataclasses.replace(state, carry=self.rows.pools(copy, state.carry))

    def page(self, state: State, number: Array) -> list[Array]:
        """What a page of all pools holds."""

        def take(pool: Array, axis: int) -> Array:
            return lax.dynamic_slice_in_dim(pool, number, 1, axis)

        return self.rows.parted(self.rows.pools(take, state.carry))[1]

    def put_page(self, state: State, number: Array, pages: list[Array]) -> State:
        """The inverse."""
        pages = list(pages)

        def put(pool: Array, axis: int) -> Array:
            return lax.dynamic_update_slice_in_dim(pool, pages.pop(0), number, axis)

        return dataclasses.replace(state, carry=self.rows.pools(put, state.carry))


def _draw(
    logits: Float[Array, "S W V"],
    places: Int[Array, S],
    tokens: Int[Array, "S W"],
    known: Int[Array, S],
    guesses: Int[Array, S],
    seats: Seats,
    words: UInt[Array, "S Q"],
    constrained: Bool[Array, ""],
) -> tuple[Seats, Told]:
    """The draw after each token, place by place, as if each guess before it stood."""
    (rows, width, vocab), sampling = logits.shape, seats.sampling
    keys = jax.vmap(jax.random.key)(seats.seed)
    allowed = lax.cond(
        constrained, lambda: _unpacked(words, vocab), lambda: jnp.ones((rows, vocab), bool)
    )

    def draw(past: Past, x: tuple[Array, Array, Array]) -> tuple[Past, Array]:
        own, i, token = x
        if width > 1:
            guessed = (i >= known) & (i < known + guesses)
            past = past.add(token, guessed.astype(jnp.int32))
        drawn_by = jax.vmap(jax.random.fold_in)(keys, places + i + 1)
        may = allowed | (i != known - 1)[:, None]
        return past, choose(own, drawn_by, sampling, past, may)

    xs = jnp.moveaxis(logits, 1, 0), jnp.arange(width), tokens.T
    if width == 1:
        past, drawn = draw(seats.past, jax.tree.map(lambda x: x[0], xs))
        drawn = drawn[:, None]
    else:
        past, drawn = lax.scan(draw, seats.past, xs)
        drawn = drawn.T
    place = jnp.arange(width)
    stands = (place[1:] < known[:, None] + guesses[:, None]) & (tokens[:, 1:] == drawn[:, :-1])
    stands = jnp.concatenate([known[:, None] > 0, stands | (place[1:] < known[:, None])], axis=1)
    right = jnp.sum(jnp.cumprod(stands, axis=1), axis=1, dtype=jnp.int32)
    past = past if width == 1 else _without(past, tokens, known, guesses, right)
    last = jnp.take_along_axis(drawn, jnp.maximum(right - 1, 0)[:, None], axis=1)[:, 0]
    busy = known > 0
    past = past.add(last, busy.astype(jnp.int32))
    seats = dataclasses.replace(seats, past=past, last=jnp.where(busy, last, seats.last))
    new = (place >= known[:, None] - 1) & (place < right[:, None])
    sound = jnp.all(drawable(logits) | ~new, axis=1)
    numbers = jnp.concatenate([drawn, right[:, None], sound[:, None].astype(jnp.int32)], axis=1)
    return seats, Told(numbers, *_told(logits, drawn, seats.top))  # type: ignore[call-arg]


def _where_sure(told: Told, logits: Array, tokens: Array, model: LexicalUnits) -> Told:
    """With `UNSURE` at placeholders where no token is as likely as a guess must be."""
    likeliest = jnp.exp(jnp.max(logits, axis=-1) - jax.nn.logsumexp(logits, axis=-1))
    unsure = (tokens == model.placeholder) & ~(likeliest >= model.accept)
    width = tokens.shape[1]
    drawn = jnp.where(unsure, UNSURE, told.numbers[:, :width])
    return dataclasses.replace(told, numbers=told.numbers.at[:, :width].set(drawn))


def _without(past: Past, tokens: Array, known: Array, guesses: Array, right: Array) -> Past:
    """Without the guesses that do not stand, which were written on trial."""
    place = jnp.arange(tokens.shape[1])
    wrong = (place >= jnp.maximum(known, right)[:, None]) & (place < (known + guesses)[:, None])
    return past.add(tokens, -wrong.astype(jnp.int32))


def _told(logits: Array, drawn: Array, top: Array) -> tuple[Array, Array, Array]:
    """Log probabilities for the rows that ask for any."""

    def found() -> tuple[Array, Array, Array]:
        own, ids, values = log_probs_of(logits, drawn, MOST_TOP)
        asks = (top >= 0)[:, None]
        wants = asks[..., None]
        return jnp.where(asks, own, 0), jnp.where(wants, ids, 0), jnp.where(wants, values, 0)

    def none() -> tuple[Array, Array, Array]:
        zeros = jnp.zeros((*drawn.shape, MOST_TOP), jnp.float32)
        return zeros[..., 0], zeros.astype(jnp.int32), zeros

    return lax.cond(jnp.any(top >= 0), found, none)


def _unpacked(words: UInt[Array, "S Q"], vocab: int) -> Bool[Array, "S V"]:
    """A bit for each token, the lowest first."""
    bits = (words[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    return bits.reshape(len(words), -1)[:, :vocab].astype(bool)
