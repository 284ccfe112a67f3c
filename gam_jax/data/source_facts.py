"""One fact in each of several lists of unlike lengths, among others that mislead."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from gam_jax.data.drawn import Drawn
from sharding.bounds import Few, Size
from sharding.errors import UserError


@dataclasses.dataclass(frozen=True)
class SourceFacts(Drawn):
    """Lists of (name, value); a row asks for one name, and wants its value from every list.

    The name that is asked for stands once in each list, at any place; all other tokens have other
    names. Every value, the wanted ones too, is drawn evenly from all.

    Attributes:
      name: `source_facts`.
      lengths: tokens of each list.
      names: how many names there are.
      values: likewise.
      scored: validation rows.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("source_facts",)

    name: str = "source_facts"
    lengths: tuple[Size, ...] = (1, 4, 64, 256)
    names: Size = 16
    values: Size = 8
    scored: Few = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lengths or not all(1 <= length <= 1 << 16 for length in self.lengths):
            raise UserError(f"data.lengths={self.lengths}: give whole numbers from 1 to 65536")
        if min(self.names, self.values) < 2:
            raise UserError(
                f"data.names={self.names}, data.values={self.values}: give at least 2 of each"
            )

    def sizes(self) -> dict[str, int]:
        """names, values, and how many lists."""
        return {"names": self.names, "values": self.values, "sources": len(self.lengths)}

    def row(self, seed: int, index: int) -> dict[str, np.ndarray]:
        """asked int32 [], source_0 ... int32 [length, 2], facts int32 [sources]."""
        draw = np.random.default_rng((seed, index))
        asked, found = draw.integers(self.names), {}
        facts = draw.integers(0, self.values, len(self.lengths))
        for number, length in enumerate(self.lengths):
            others = (asked + draw.integers(1, self.names, length)) % self.names
            tokens = np.stack([others, draw.integers(0, self.values, length)], 1)
            tokens[draw.integers(length)] = asked, facts[number]
            found[f"source_{number}"] = tokens.astype(np.int32)
        return {
            "asked": np.asarray(asked, np.int32),
            **found,
            "facts": facts.astype(np.int32),
            "weights": np.ones((), np.float32),
        }
