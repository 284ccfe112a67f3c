"""Falcon-H1: attention and a state space side by side."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Bool, Float

from gam_jax.layers.attention import Attention
from gam_jax.layers.base import WHOLE, Carry, Layer, inherit, told
from gam_jax.layers.mamba2 import Mamba2
from gam_jax.params import Params, Table
from sharding.axes import Axes
from sharding.bounds import Rate, Size, check_bounds


@dataclasses.dataclass(frozen=True)
class FalconH1(Layer):
    """ssm_out * ssm(x) + attention_out * attention(attention_in * x): two mixers, one input.

    The mixer of Falcon-H1 (Zuo et al. 2025, arXiv 2507.22448). Both read the same normed stream;
    their outputs are summed. Channels of each are chosen freely: few for attention, which
    recalls, more for the state space, whose carry does not grow.

    The report's constants ("muP multipliers") let one set of learning rates serve many widths.
    Where the others are: on the state space's input and projection, `Mamba2.scales`; on keys,
    the `scale` of attention (times 1 / sqrt of a head's size); in the feed-forward layer,
    `MLP.gate_scale` and `out_scale`; `LanguageModel.embedding_scale` and `logit_scale`.

    Attributes:
      attention: any causal mixer; as published, `Attention` with grouped queries and rotary
        positions of base 1e11.
      ssm: any causal mixer; as published, `Mamba2`.
      attention_in, attention_out, ssm_out: constants.
    """

    attention: Layer = Attention(rotary=1e11)
    ssm: Layer = Mamba2(norm="none")
    width: Size | None = None
    dropout: Rate | None = None
    attention_in: float = 1.0
    attention_out: float = 1.0
    ssm_out: float = 1.0

    def __post_init__(self) -> None:
        check_bounds(self)
        for name in ("attention", "ssm"):
            inner = inherit(getattr(self, name), width=self.width, dropout=self.dropout)
            object.__setattr__(self, name, inner)

    def table(self) -> Table:
        """Those of the two."""
        return {"attention": self.attention.table(), "ssm": self.ssm.table()}

    def carry_table(self, batch: int) -> Any:
        """Those of the two."""
        tables = self.attention.carry_table(batch), self.ssm.carry_table(batch)
        return dict(zip(("attention", "ssm"), tables, strict=True))

    def __call__(
        self,
        params: Params,
        x: Float[Array, "B T D"],
        carry: Carry | None = None,
        axes: Axes = WHOLE,
        *,
        key: Array | None = None,
        starts: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Carry]:
        """The weighted sum of the two."""
        before: Carry = {"attention": None, "ssm": None} if carry is None else carry
        keys = (None, None) if key is None else jax.random.split(key)
        after: dict[str, Carry] = {}
        recalled, after["attention"] = self.attention(
            params["attention"],
            self.attention_in * x,
            before["attention"],
            axes,
            key=keys[0],
            **told(starts),
        )
        mixed, after["ssm"] = self.ssm(
            params["ssm"], x, before["ssm"], axes, key=keys[1], **told(starts)
        )
        return self.ssm_out * mixed + self.attention_out * recalled, after
