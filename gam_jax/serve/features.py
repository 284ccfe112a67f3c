"""What a drafter reads of the model that it guesses for: the features before each row's end."""

from __future__ import annotations

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gam_jax.models.semi import SemiDrafter, guess
from gam_jax.params import Params
from gam_jax.sampling import choose
from sharding.axes import Axes


@flax.struct.dataclass
class Features:
    """Of each row, the features of its last N tokens that the model was fed, on every device.

    A token's feature is what the model's head is given after it. Rows keep those of guesses that
    stood in a block that failed too: what is known and unread has features.

    Attributes:
      values: float32 [S, N, D], the newest last.
      end: int32 [S], the place after the newest.
      count: int32 [S], how many of the last ones there are.
    """

    values: Float[Array, "S N D"]
    end: Int[Array, S]
    count: Int[Array, S]

    @classmethod
    def none(cls, rows: int, size: int, width: int) -> Features:
        """Of rows of which nothing is known."""
        number = jnp.zeros(rows, jnp.int32)
        return cls(jnp.zeros((rows, size, width), jnp.float32), number, number)

    def fed(
        self,
        block: Float[Array, "S W D"],
        places: Int[Array, S],
        right: Int[Array, S],
    ) -> Features:
        """With those of a block of each row.

        Args:
          block: features of its tokens.
          places: of its first token.
          right: how many of its tokens stand; 0 for a row that does nothing.
        """
        size, width = self.values.shape[1], block.shape[1]
        end = jnp.where(right > 0, places + right, self.end)
        place = end[:, None] - size + jnp.arange(size)  # of what is kept
        before = jnp.clip(place - (self.end[:, None] - size), 0, size - 1)
        inside = jnp.clip(place - places[:, None], 0, width - 1)
        new = (place >= places[:, None]) & (right > 0)[:, None]
        take = functools.partial(jnp.take_along_axis, axis=1)
        values = jnp.where(
            new[..., None],
            take(block.astype(jnp.float32), inside[..., None]),
            take(self.values, before[..., None]),
        )
        older = jnp.clip(self.count - (self.end - places), 0, size)  # of those before the block
        older = jnp.where(self.end >= places, older, 0)
        count = jnp.where(right > 0, jnp.minimum(older + right, size), self.count)
        return Features(values, end, count)  # type: ignore[call-arg]

    def forget(self, row: Int[Array, ""]) -> Features:
        """Without those of a row."""
        return self.replace(count=self.count.at[row].set(0))  # type: ignore[attr-defined]

    def of_rows(self, rows: Int[Array, " R"]) -> Features:
        """Those of some rows; of a row S, which there is not, those of any."""
        return jax.tree.map(lambda x: jnp.take(x, rows, axis=0, mode="clip"), self)

    def with_rows(self, rows: Int[Array, " R"], some: Features) -> Features:
        """With those of some rows in their places; none for a row S."""
        return jax.tree.map(lambda x, new: x.at[rows].set(new, mode="drop"), self, some)

    def before(self, length: Int[Array, S], size: int) -> tuple[Array, Array]:
        """Of the last `size` of so many tokens of each row the feature before it, if there is one.

        Args:
          length: tokens of each row.
          size: of the window.

        Returns:
          [S, size, D], zeros where there is none; and where there is one, or the token is a row's
          last.
        """
        held = self.values.shape[1]
        place = length[:, None] - size - 1 + jnp.arange(size)  # of the feature
        at = place - (self.end[:, None] - held)
        there = (place < self.end[:, None]) & (at >= held - self.count[:, None])
        found = jnp.take_along_axis(self.values, jnp.clip(at, 0, held - 1)[..., None], axis=1)
        last = jnp.arange(size) == size - 1
        return jnp.where(there[..., None], found, 0), there | last


def guesses(
    drafter: SemiDrafter,
    own: Params,
    target: Params,
    features: Features,
    seats: Any,
    work: Int[Array, "S N+1"],
    passes: int,
    axes: Axes,
) -> Int[Array, "S G"]:
    """What follows each row's text, drawn as the model draws, with the same noise.

    Args:
      drafter: who guesses.
      own: its parameters.
      target: those of the model.
      features: of the rows.
      seats: how they draw, `programs.Seats`.
      work: the last N tokens of each row, N its window, and how many there are in all.
      passes: of k guesses each.
      axes: mesh axes that split the model.
    """
    tokens, length = work[:, :-1], work[:, -1]
    before, there = features.before(length, tokens.shape[1])
    keys = jax.vmap(jax.random.key)(seats.seed)

    def draw(past: Any, logits: Array, place: Array) -> tuple[Any, Array]:
        drawn = choose(
            logits, jax.vmap(jax.random.fold_in)(keys, length + place), seats.sampling, past
        )
        return past.add(drawn), drawn

    given = tokens, before, there, passes, draw, seats.past, axes
    return guess(drafter, own, target, *given).reshape(len(tokens), -1)
