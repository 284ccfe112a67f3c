"""Constants of Granite models ("multipliers"), as config.json tells them and back."""

from __future__ import annotations

import dataclasses
from typing import Any

from gam_jax.convert.fields import Fields
from gam_jax.layers import Attention
from gam_jax.models.language import LanguageModel


@dataclasses.dataclass(frozen=True)
class Multipliers:
    """Where each constant stands here.

    Attributes:
      attention: `Attention.scale`.
      residual: `Block.residual_scale`.
      embedding: `LanguageModel.embedding_scale`.
      logits: `LanguageModel.logit_scale`.
    """

    attention: float = 0.0
    residual: float = 1.0
    embedding: float = 1.0
    logits: float = 1.0

    @classmethod
    def of(cls, config: Fields) -> Multipliers:
        """Those of a config.json; a UserError for one that is not above 0."""
        return cls(
            config.number("attention_multiplier", 1.0, above=0),
            config.number("residual_multiplier", 1.0),
            config.number("embedding_multiplier", 1.0),
            1 / config.number("logits_scaling", 1.0, above=0),
        )


def written_multipliers(
    model: LanguageModel, attention: Attention | None, residual: float
) -> dict[str, Any]:
    """The inverse of `Multipliers.of`.

    Args:
      model: what is written.
      attention: that of its blocks; None where none has any.
      residual: `Block.residual_scale` of its blocks.
    """
    return {
        "attention_multiplier": attention.scale or attention.size**-0.5 if attention else 1.0,
        "residual_multiplier": residual,
        "embedding_multiplier": model.embedding_scale,
        "logits_scaling": _inverse(model.logit_scale),
    }


def _inverse(x: float) -> float:
    """1 / x, in the fewest digits of which x is the inverse again."""
    if x <= 0:
        return 0.0  # which is refused
    short = rounded(1 / x)
    return short if 1 / short == x else 1 / x


def rounded(x: float) -> float:
    """Without what multiplying by a root and back leaves in the last digits."""
    return float(f"{x:.12g}")
