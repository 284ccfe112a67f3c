"""Prompts of unlike lengths side by side, and the chunks in which they are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Int

from gam_jax.ids import check_ids
from gam_jax.models.language import LanguageModel
from gam_jax.models.suits import check_reach
from sharding.errors import UserError

PromptLike = Array | np.ndarray | Sequence[Any]
"""Ids [B, T], or for each row a sequence of ids of any length but 0."""


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Rows of ids on the host, each with a length of its own.

    Attributes:
      ids: int32 [B, T]; zeros behind the end of a row.
      lengths: [B], each at least 1; the largest is T.
    """

    ids: Int[np.ndarray, "B T"]
    lengths: Int[np.ndarray, B]

    @property
    def alike(self) -> bool:
        """Whether all rows have one length."""
        return bool(np.all(self.lengths == self.ids.shape[1]))

    @property
    def rows(self) -> list[np.ndarray]:
        """The ids of each row."""
        return [own[:length] for own, length in zip(self.ids, self.lengths, strict=True)]

    def chunks(
        self, sizes: Sequence[int]
    ) -> Iterator[tuple[Int[np.ndarray, "B N"], Bool[np.ndarray, B]]]:
        """Pieces of the rows, and which rows each is of; the others have some ids in their place.

        Each row is read in the pieces in which it is read alone: as many of the first size as it
        has, then of the next.

        Args:
          sizes: of the pieces, falling to 1.
        """
        read = np.zeros_like(self.lengths)
        for size in sizes:
            while (takes := self.lengths - read >= size).any():
                places = np.minimum(read[:, None] + np.arange(size), self.ids.shape[1] - 1)
                yield np.take_along_axis(self.ids, places, axis=1), takes
                read += size * takes


def prompts_of(model: LanguageModel, prompt: PromptLike) -> Prompts:
    """Prompts as a person gives them, looked at before anything is computed.

    Raises:
      UserError: no row, a row without ids, or an id outside the vocabulary.
    """
    if isinstance(prompt, Array | np.ndarray):
        ids = np.asarray(prompt)
        if ids.ndim != 2 or not ids.size:
            raise UserError(f"a prompt needs at least one row of one token [B, T], not {ids.shape}")
        lengths = np.full(ids.shape[0], ids.shape[1])
    else:
        ids, lengths = _joined([np.asarray(row) for row in prompt])
    check_ids("prompt", ids, model.ids()["inputs"], ("row", "position"))
    return Prompts(ids.astype(np.int32, copy=False), lengths)


def _joined(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    if not rows:
        raise UserError("a prompt needs at least one row of one token, and there is none")
    for number, row in enumerate(rows):
        if row.ndim != 1 or not row.size:
            raise UserError(f"row {number} of the prompt must be ids [T], at least one of them")
    lengths = np.array([len(row) for row in rows])
    ids = np.zeros((len(rows), lengths.max()), np.result_type(*rows))
    for row, own in zip(ids, rows, strict=True):
        row[: len(own)] = own
    return ids, lengths


def check_room(
    model: LanguageModel,
    lengths: Int[np.ndarray, B],
    before: Int[np.ndarray, B] | int = 0,
    in_parts: bool = True,
) -> None:
    """Refuses a batch with a row that is longer than the model's limit.

    Args:
      model: the model.
      lengths: tokens of each row that are still to come.
      before: those that came already.
      in_parts: whether the model is to read them in parts as it is, see `suits.check_reach`.

    Raises:
      UserError: it names the longest row, its tokens and the limit.
    """
    lengths = lengths + np.asarray(before)
    row = int(np.argmax(lengths))
    try:
        model.check_length(int(lengths[row]))
        if in_parts:
            check_reach(model, int(lengths[row]))
    except ValueError as error:
        raise UserError(f"row {row}: {error}") from error
