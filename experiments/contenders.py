"""The architectures that are compared: one line each, in one registry.

`CONTENDERS` is what the studies `compare` and `recall` and their tests go through. A new
architecture takes part by being registered here.
"""

from __future__ import annotations

import dataclasses

from gam_jax.config import unknown
from gam_jax.layers import (
    GAM,
    LSTM,
    MLP,
    TCN,
    TCNCA,
    Attention,
    Block,
    FalconH1,
    Layer,
    LinearMemory,
    Mamba,
    Mamba2,
    MoE,
    RMSNorm,
    WrittenGAM,
)
from gam_jax.params import count_params
from sharding.errors import UserError

CHOSEN = 2
"""Experts of a token."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """An architecture: a mixer of tokens, in the block that all contenders have.

    Attributes:
      title: as tables show it.
      mixer: the layer; its width is None, it takes the model's.
      experts: of the feed-forward, of which a token takes two; 0 for one that all take.
      streams: parallel ones of the whole model, see `gam_jax.layers.ParScale`.
      ladder: whether half blocks read the stream one half block earlier, see `layers.ladder`.
    """

    title: str
    mixer: Layer
    experts: int = 0
    streams: int = 1
    ladder: bool = False

    def block(self, width: int, hidden: int) -> Layer:
        """The mixer and a SwiGLU of that many hidden units, each after an RMS norm.

        Of experts, so many are those of the two that a token takes together.
        """
        ffn: Layer = MLP(hidden=hidden, activation="swiglu", bias=False)
        if self.experts:
            ffn = MoE(self.experts, CHOSEN, dataclasses.replace(ffn, hidden=hidden // CHOSEN))
        return Block(self.mixer, ffn, RMSNorm(), width=width)

    def active(self, width: int, hidden: int) -> int:
        """Parameters of a block that a token meets: of the experts, two."""
        return count_params(self.block(width, hidden).table(), CHOSEN)

    def sized(self, width: int, budget: int, multiple: int = 4) -> Layer:
        """The block whose active parameters come nearest to `budget` from below.

        Raises:
          UserError: the mixer alone has more.
        """
        one, two = (self.active(width, n * multiple) for n in (1, 2))
        count = (budget - one) // (two - one) + 1
        if count < 1:
            raise UserError(
                f"{self.title} has more than {budget:,} parameters in a block of width {width} "
                f"before any feed-forward: give more parameters"
            )
        return self.block(width, count * multiple)


CONTENDERS: dict[str, Contender] = {
    "gam": Contender("GAM", GAM(slots=128, kernel=8)),
    "written_gam": Contender(
        "GAM, written memory",
        WrittenGAM(LinearMemory(key_width=16, value_width=32, gated=False), kernel=4),
    ),
    "transformer": Contender("Transformer", Attention(context=512)),
    "mamba": Contender("Mamba", Mamba()),
    "mamba2": Contender("Mamba-2", Mamba2(head=32, state=64)),
    "gated_deltanet": Contender("Gated DeltaNet", LinearMemory()),
    "falcon_h1": Contender(
        "Falcon-H1",
        FalconH1(
            Attention(kv_heads=2, context=512), Mamba2(inner=128, head=32, state=64, norm="none")
        ),
    ),
    "tcnca": Contender("TCNCA", TCNCA(tcn=TCN(kernel=4, levels=2, factor=4), chunk=64)),
    "lstm": Contender("LSTM", LSTM()),
}
"""By the name that --mixers takes; all of them where it names none. Caches of attention hold 512
tokens, which is as long as any sequence here; what the others keep does not grow."""


FURTHER: dict[str, Contender] = {
    "wide_written_gam": Contender(
        "GAM, wide written memory",
        WrittenGAM(LinearMemory(heads=2, variant="deltanet"), kernel=4),
    ),
    "attention_gam": Contender(
        "GAM, attention", WrittenGAM(Attention(context=512, rotary=0.0), kernel=4)
    ),
    **{
        f"parscale_{name}": dataclasses.replace(
            CONTENDERS[name], title=f"{CONTENDERS[name].title}, 2 streams", streams=2
        )
        for name in ("gam", "written_gam")
    },
    "moe_gam": dataclasses.replace(CONTENDERS["gam"], title="GAM, 8 experts", experts=8),
    "moe_written_gam": dataclasses.replace(
        CONTENDERS["written_gam"], title="GAM, written memory, 8 experts", experts=8
    ),
    "ladder": dataclasses.replace(
        CONTENDERS["transformer"], title="Transformer, ladder", ladder=True
    ),
    "parscale_moe_gam": dataclasses.replace(
        CONTENDERS["gam"], title="GAM, 8 experts, 2 streams", experts=8, streams=2
    ),
}
"""Those that take part where --mixers names them. A token meets as many parameters as in the
others, but experts have more in all, and streams do the work of a block several times. The wide
memory has room for 64 pairs at width 128; its keys grow with the width."""

EVERY = {**CONTENDERS, **FURTHER}


def chosen(names: str) -> dict[str, Contender]:
    """The contenders of a list such as "gam,moe_gam"; all of `CONTENDERS` if it is empty.

    Raises:
      UserError: an unknown name, with the nearest.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()] or list(CONTENDERS)
    for name in wanted:
        if name not in EVERY:
            raise UserError(f"--mixers: {unknown(name, EVERY, 'mixer')}")
    return {name: EVERY[name] for name in wanted}
