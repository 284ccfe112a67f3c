"""Several texts in one training stream, each as often as its weight says."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from gam_jax.data.text import Text
from sharding.errors import UserError

if TYPE_CHECKING:
    from gam_jax.data.mixed_text import MixedTextDataset

LEAST = 1e-9
"""Of the rows, for a text: a run reads fewer than 10^9."""
_BETWEEN = re.compile(r",(?=[\d.eE+-]+\*)")
"""A comma before a weight; others belong to the name before them."""


@dataclasses.dataclass(frozen=True)
class TextMixture(Text):
    """Texts by weight: `mix:0.7*text:a,0.3*python_stdlib`.

    A row of the training stream is of a text with a probability in proportion to its weight; the
    stream is the same for any number of processes. Each text is validated by itself. All share
    one tokenizer; a BPE is trained on all of them. Other fields are those of each text.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("mix",)

    name: str = "mix:"

    @property
    def weights(self) -> dict[str, float]:
        """Name of each text -> its share of the rows.

        Raises:
          UserError: the name is no list of weights and names.
        """
        found: dict[str, float] = {}
        for entry in _BETWEEN.split(self.name.removeprefix("mix:")):
            weight, times, name = entry.partition("*")
            try:
                value = float(weight)
            except ValueError:
                value = math.nan
            if not times or not name or not 0 < value < math.inf:
                raise UserError(
                    f"data.name={self.name}: '{entry}' is no weight above 0, a star and a name of "
                    f"a text: write mix:0.7*text:a,0.3*python_stdlib"
                )
            if name in found:
                raise UserError(f"data.name={self.name}: '{name}' stands there twice: keep one")
            if name.partition(":")[0] in self.NAMES:
                raise UserError(f"data.name={self.name}: a mixture holds texts, not mixtures")
            found[name] = value
        total = sum(found.values())
        shares = {name: value / total for name, value in found.items()}
        if total == math.inf or min(shares.values()) < LEAST:
            raise UserError(
                f"data.name={self.name}: a text gets less than {LEAST:g} of the rows, which is "
                f"none: give weights that are nearer to each other"
            )
        return shares

    def open(self, files: Mapping[str, str] | None = None) -> MixedTextDataset:
        """Opens each text with the tokenizer of all."""
        from gam_jax.data.mixed_text import open_mixture

        return open_mixture(self, files or {})
