"""Multi-query associative recall (MQAR): sequences drawn from a seed, with nothing stored.

Source: Zoology (Arora et al. 2023, arXiv 2312.04927), section 4 and appendix on its generator.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from gam_jax.data.arrays import ArraysDataset
from gam_jax.data.base import Data, Sums
from gam_jax.data.storage import digest_of
from sharding.bounds import Share, Size, check_bounds
from sharding.errors import UserError

TO_SCORE = (1 << 32) - 1
"""The seed of the validation sequences."""


@dataclasses.dataclass(frozen=True)
class Recall(Data):
    """n (key, value) pairs are written, then each key is asked for once.

    A sequence is k_1 v_1 ... k_n v_n, then slots of two tokens. A slot that asks holds a key and
    the filler 0, and the target at the key is its value; a slot that does not is 0 0. Keys are n
    different ones of 1 .. V/2 - 1, values n different ones of V/2 .. V - 1. Slot i asks with a
    probability in proportion to power * (i + 1)^(power - 1), without replacement. Only answers
    have a weight.

    Attributes:
      name: `recall`.
      window: T, tokens of a sequence, even.
      pairs: numbers of pairs; rows of a batch have them in turn, and each is scored by itself.
      vocab: V, even.
      power: 1 spreads the questions evenly; the source's 0.01 puts most of them early.
      scored: validation sequences of each number of pairs.

    Raises:
      UserError: a length, count or vocabulary that leaves no room.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("recall",)

    name: str = "recall"
    window: Size = 128
    pairs: tuple[Size, ...] = (4, 8, 16)
    vocab: Size = 128
    power: Share = 0.01
    scored: Size = 510

    def __post_init__(self) -> None:
        check_bounds(self, "data")
        if self.window % 2 or self.vocab % 2 or not 0 < self.power <= 1 or self.scored < 1:
            raise UserError(
                f"recall: {self.window} tokens of {self.vocab}, power {self.power}, {self.scored} "
                f"scored: give even numbers, a power in (0, 1] and at least one sequence"
            )
        if not isinstance(self.pairs, tuple | list) or not all(map(_is_whole, self.pairs)):
            raise UserError(f"data.pairs={self.pairs!r}: give whole numbers in a tuple, as (4, 8)")
        if not self.pairs or len(set(self.pairs)) < len(self.pairs):
            raise UserError(f"recall: pairs={self.pairs}: give different numbers, as (4, 8)")
        for pairs in self.pairs:
            if not 1 <= pairs <= self.window // 4:
                raise UserError(
                    f"recall: {pairs} pairs do not fit {self.window} tokens: four tokens for "
                    f"each, so give 1 to {self.window // 4}"
                )
            if pairs > self.vocab // 2 - 1:
                raise UserError(
                    f"recall: {pairs} pairs need as many keys, and a vocabulary of {self.vocab} "
                    f"has {self.vocab // 2 - 1}: give a larger one"
                )

    def open(self, files: Mapping[str, str] | None = None) -> RecallDataset:
        """Draws the validation sequences."""
        held = {part_name(pairs): self.many(pairs, self.scored) for pairs in self.pairs}
        return RecallDataset(
            config=self,
            source=self.row,
            held_out=held,
            sizes=self.sizes(),
            fingerprints={"sequences": digest_of(dataclasses.asdict(self))},
            unit="tokens",
            units_per_row=self.window,
            known={"chance": self.chance()},
        )

    def chance(self) -> dict[str, float]:
        """The scores of a guess among the values written: of n pairs 1 in n, and a loss of ln n."""
        asked = sum(self.pairs)
        return {
            "loss": sum(pairs * math.log(pairs) for pairs in self.pairs) / asked,
            "accuracy": len(self.pairs) / asked,
            **{part_name(pairs): 1 / pairs for pairs in self.pairs},
        }

    def sizes(self) -> dict[str, int]:
        """vocab and window."""
        return {"vocab": self.vocab, "window": self.window}

    def batch(self, rows: int) -> dict[str, Any]:
        """inputs and targets int32 [rows, window]; weights float32 likewise."""
        import jax
        import jax.numpy as jnp

        ids = jax.ShapeDtypeStruct((rows, self.window), jnp.int32)
        weights = jax.ShapeDtypeStruct((rows, self.window), jnp.float32)
        return {"inputs": ids, "targets": ids, "weights": weights}

    def row(self, seed: int, index: int) -> dict[str, np.ndarray]:
        """Row number `index` of the training stream of a seed: rows have the pairs in turn."""
        return self.sequence(self.pairs[index % len(self.pairs)], seed, index)

    def many(self, pairs: int, rows: int) -> dict[str, np.ndarray]:
        """Validation sequences of so many pairs, stacked."""
        found = [self.sequence(pairs, TO_SCORE, i) for i in range(rows)]
        return {name: np.stack([row[name] for row in found]) for name in found[0]}

    def sequence(self, pairs: int, seed: int, index: int) -> dict[str, np.ndarray]:
        """One sequence: inputs, targets int32 [T]; weights float32 [T], 1 at each question."""
        draw = np.random.default_rng((seed, pairs, index))
        half, written = self.vocab // 2, 2 * pairs
        keys = 1 + draw.permutation(half - 1)[:pairs]
        values = half + draw.permutation(half)[:pairs]
        asked = written + 2 * self._slots(pairs, draw)
        inputs = np.zeros(self.window, np.int32)
        inputs[:written] = np.stack([keys, values], axis=1).reshape(-1)
        inputs[asked] = keys
        targets, weights = np.zeros_like(inputs), np.zeros(self.window, np.float32)
        targets[asked], weights[asked] = values, 1
        return {"inputs": inputs, "targets": targets, "weights": weights}

    def _slots(self, pairs: int, draw: np.random.Generator) -> np.ndarray:
        """The slot at which each key is asked for.

        The n largest of the logits plus Gumbel noise are n draws without replacement, in order.
        """
        count = self.window // 2 - pairs
        logits = (self.power - 1) * np.log1p(np.arange(count))
        return np.argsort(-(logits + draw.gumbel(size=count)))[:pairs]


@dataclasses.dataclass(frozen=True, eq=False)
class RecallDataset(ArraysDataset):
    """Recall's sequences, with the right answers counted by the number of pairs."""

    def scores(self, sums: Mapping[str, Sums]) -> dict[str, float]:
        """loss, the accuracy of all, and that of each number of pairs as accuracy_N."""
        each = {
            name: part["accuracy"][0] / part["accuracy"][1]
            for name, part in sums.items()
            if "accuracy" in part
        }
        return {**super().scores(sums), **each}


def _is_whole(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def part_name(pairs: int) -> str:
    """What the validation sequences of so many pairs are called."""
    return f"accuracy_{pairs}"
