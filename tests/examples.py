"""One small example of every layer. A layer that registers is tested by all the laws at once."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import pytest

from gam_jax.layers import (
    GAM,
    GRU,
    LSTM,
    MHS,
    MLP,
    TCN,
    TCNCA,
    Adapted,
    Attention,
    Bidirectional,
    Block,
    Carry,
    Chunked,
    Elman,
    FalconH1,
    FusedDelta,
    InTurn,
    LatentAttention,
    Layer,
    LayerNorm,
    Linear,
    LinearMemory,
    Mamba,
    Mamba2,
    MinimalRNN,
    Mixed,
    MoE,
    MoFME,
    Nested,
    NoOp,
    ParScale,
    Pattern,
    ProductMemory,
    Residual,
    RMSNorm,
    Series,
    Shallow,
    SoftMixture,
    Stack,
    WrittenGAM,
)
from gam_jax.layers.mamba2 import Scales
from gam_jax.ops.rotary import Positions
from gam_jax.ops.routing import Capacity, Router
from gam_jax.params import Params, Table, abstract_params
from tests.arrays import put

WIDTH = 8
HEADS: Any = {"width": WIDTH, "heads": 8, "key_width": 4, "value_width": 3}

EXAMPLES: dict[str, Layer] = {
    "GAM": GAM(width=WIDTH, slots=16, kernel=3),
    "GAM kernel 5": GAM(width=WIDTH, slots=16, kernel=5, slot_bias=True),
    "GAM kernel 1": GAM(width=WIDTH, slots=16, kernel=1),
    "GAM dilated": GAM(width=WIDTH, slots=16, kernel=3, dilation=3),
    "GAM sparse": GAM(width=WIDTH, slots=16, top=5),
    "GAM sum": GAM(width=WIDTH, slots=16, variant="sum"),
    "GAM global": GAM(width=WIDTH, slots=16, variant="global"),
    "GAM local": GAM(width=WIDTH, variant="local"),
    "GAM offset": GAM(width=WIDTH, slots=16, kernel=3, offset=True),
    "LayerNorm": LayerNorm(width=WIDTH),
    "MLP": MLP(width=WIDTH),
    "Linear": Linear(width=WIDTH),
    "NoOp": NoOp(),
    "Mamba": Mamba(width=WIDTH, state=4),
    "Mamba kernel 1": Mamba(width=WIDTH, state=4, kernel=1, rank=2),
    "Mamba normed": Mamba(
        width=WIDTH, state=4, conv_bias=False, in_bias=True, out_bias=True, normed=True
    ),
    "Mamba2": Mamba2(width=WIDTH, inner=32, head=4, state=4, groups=2, chunk=4),
    "Mamba2 scaled": Mamba2(
        width=WIDTH,
        head=2,
        state=4,
        kernel=2,
        norm="none",
        dt_max=0.5,
        scales=Scales(0.9, 0.8, 1.2, 1.1, 0.7, 1.3),
    ),
    "Mamba2 norm first": Mamba2(width=WIDTH, head=1, state=2, kernel=1, norm="norm_first"),
    "Mamba2 biased": Mamba2(
        width=WIDTH, head=2, state=2, conv_bias=False, in_bias=True, out_bias=True, dt_min=0.1
    ),
    "FalconH1": FalconH1(
        Attention(heads=8, head_size=2, rotary=1e11, context=32, scale=0.5),
        Mamba2(head=2, state=4, norm="none"),
        width=WIDTH,
        attention_in=0.9,
        attention_out=0.8,
        ssm_out=1.2,
    ),
    "MLP scaled": MLP(width=WIDTH, activation="swiglu", gate_scale=0.7, out_scale=1.3),
    "RMSNorm": RMSNorm(width=WIDTH),
    "MLP swiglu": MLP(width=WIDTH, activation="swiglu", hidden=24, bias=False),
    "MLP relu2": MLP(width=WIDTH, activation="relu2"),
    "MLP geglu": MLP(width=WIDTH, activation="geglu"),
    "MLP clamped": MLP(width=WIDTH, activation="clamped_swiglu", clamp=0.5),
    "MoE": MoE(width=WIDTH),
    "MoE of all kinds": MoE(
        width=WIDTH,
        experts=16,
        ffn=MLP(expansion=1, activation="clamped_swiglu", clamp=0.5),
        shared=2,
        router=Router("sigmoid", scale=2.5, groups=4, chosen_groups=2, bias=True, bias_step=0.1),
        capacity=Capacity(1.0, tokens=5),
    ),
    "MoE of a gated shared one": MoE(
        width=WIDTH,
        ffn=MLP(expansion=1, activation="swiglu"),
        shared=1,
        shared_hidden=24,
        shared_gate=True,
    ),
    "MoE first choices first": MoE(
        width=WIDTH, ffn=MLP(expansion=1), capacity=Capacity(0.5, tokens=8, first="choices")
    ),
    "MoE chosen by experts": MoE(width=WIDTH, ffn=MLP(expansion=1), router=Router(by="expert")),
    "Stack of MoE": Stack(
        Block(
            GAM(slots=16),
            MoE(chosen=1, router=Router(renormalise=False), strategy="exchange"),
            width=WIDTH,
        ),
        depth=2,
    ),
    "ProductMemory": ProductMemory(width=WIDTH, side=4, keys=3, heads=2, top=3),
    "MHS": MHS(width=WIDTH, rows=2, patterns="CX", head=8, state=2),
    "MHS of one head": MHS(width=WIDTH, rows=4, patterns="S", state=2, threshold=0.1),
    "Elman": Elman(width=WIDTH),
    "LSTM": LSTM(width=WIDTH),
    "LSTM unrolled": LSTM(width=WIDTH, unroll=3),
    "GRU": GRU(width=WIDTH),
    "GRU reset first": GRU(width=WIDTH, reset_first=True),
    "Bidirectional": Bidirectional(GRU(), width=WIDTH),
    "Bidirectional stack": Bidirectional(Block(GAM(slots=16)), width=WIDTH),
    "TCN": TCN(width=WIDTH, kernel=3, levels=2, factor=3),
    "TCN of two convolutions": TCN(width=WIDTH, kernel=2, levels=2, factor=2, convs=2),
    "TCNCA": TCNCA(width=WIDTH, tcn=TCN(kernel=2, levels=2, factor=2), chunk=4, keys=4),
    "TCNCA of odd chunks": TCNCA(width=WIDTH, tcn=TCN(levels=1), chunk=3, keys=4),
    "TCNCA simple": TCNCA(
        width=WIDTH, tcn=TCN(kernel=2, levels=3, factor=2), chunk=5, keys=4, variant="simple"
    ),
    "Attention": Attention(width=WIDTH, heads=8, head_size=2, context=32, rotary=0.0),
    "Attention grouped": Attention(
        width=WIDTH,
        heads=16,
        kv_heads=8,
        head_size=4,
        positions=Positions(kind="linear", factor=2.0, turned=2, neighbours=True),
        context=40,
        bias=True,
        out_bias=True,
        qk_norm=True,
        qk_norm_over="all",
        qk_norm_centred=True,
    ),
    "Attention gated": Attention(
        width=WIDTH, heads=8, head_size=2, context=32, bias=True, gated=True
    ),
    "Attention window": Attention(width=WIDTH, heads=8, head_size=2, window=3),
    "Attention wide window": Attention(
        width=WIDTH, heads=8, head_size=2, window=14, sinks=True, qk_norm=True
    ),
    "Attention prefix": Attention(width=WIDTH, heads=8, head_size=2, context=32, prefix=3),
    "Attention capped": Attention(width=WIDTH, heads=8, head_size=2, context=32, soft_cap=2.0),
    "Attention sinks": Attention(width=WIDTH, heads=8, head_size=2, context=32, sinks=True),
    "LatentAttention": LatentAttention(
        width=WIDTH,
        heads=8,
        latent=5,
        query_latent=6,
        head_size=2,
        rotary_size=4,
        positions=Positions(kind="yarn", factor=2.0, original=8, scale=1.2, neighbours=True),
        context=32,
        bias=True,
    ),
    "LatentAttention of plain queries": LatentAttention(
        width=WIDTH, heads=8, latent=4, head_size=2, rotary_size=2, value_size=3, context=40
    ),
    "LatentAttention unturned": LatentAttention(
        width=WIDTH, heads=8, latent=4, head_size=2, rotary_size=3, rotary=0.0, context=32
    ),
    "MoFME": MoFME(width=WIDTH, experts=8, chosen=2),
    "MoFME of one": MoFME(width=WIDTH, experts=1, chosen=1, adaptor=MLP(activation="swiglu")),
    "WrittenGAM": WrittenGAM(LinearMemory(gated=False, **HEADS), width=WIDTH, kernel=3),
    "WrittenGAM bank": WrittenGAM(GAM(slots=16, kernel=2), width=WIDTH, slots=16, kernel=1),
    "LinearMemory linear": LinearMemory(variant="linear", **HEADS),
    "LinearMemory retnet": LinearMemory(variant="retnet", **HEADS),
    "LinearMemory gla": LinearMemory(variant="gla", kernel=3, **HEADS),
    "LinearMemory gated deltanet": LinearMemory(negative=True, chunk=4, **HEADS),
    "LinearMemory of shared keys": LinearMemory(
        width=WIDTH, heads=16, key_heads=8, key_width=4, value_width=2, chunk=4, eps=1e-3
    ),
    "LinearMemory kimi delta": LinearMemory(variant="kimi_delta", chunk=4, **HEADS),
    "LinearMemory kimi delta of shared keys": LinearMemory(
        width=WIDTH,
        heads=16,
        key_heads=8,
        variant="kimi_delta",
        key_width=4,
        value_width=2,
        gate_bias=False,
    ),
    "FusedDelta": FusedDelta(long=5, **HEADS),
    "MinimalRNN gru": MinimalRNN(width=WIDTH),
    "MinimalRNN lstm": MinimalRNN(width=WIDTH, variant="lstm", expansion=2),
    "Block": Block(GAM(slots=16), width=WIDTH),
    "Residual": Residual(Mamba(state=4), norm=RMSNorm(), width=WIDTH),
    "Block parallel": Block(
        Attention(heads=8, head_size=2, context=32),
        MLP(activation="swiglu", bias=False),
        RMSNorm(),
        width=WIDTH,
        form="parallel",
    ),
    "Block post norm": Block(GAM(slots=16), width=WIDTH, norms="post"),
    "Block scaled": Block(GAM(slots=16), norm=RMSNorm(), width=WIDTH, residual_scale=0.7),
    "Block sandwich": Block(GAM(slots=16), width=WIDTH, norms="sandwich"),
    "Block parallel out norm": Block(
        GAM(slots=16), norm=RMSNorm(centred=True), width=WIDTH, form="parallel", norms="out"
    ),
    "Series": Series(Stack(Block(GAM(slots=16)), 2), Residual(GRU()), width=WIDTH),
    "InTurn": InTurn((Block(GAM(slots=16)), Residual(GRU())), width=WIDTH),
    "Pattern": Pattern(
        (
            Block(Attention(heads=8, head_size=2, window=5, rotary=0.0), norm=RMSNorm()),
            Residual(LinearMemory(**HEADS)),
        ),
        (0, 0, 1, 0, 0, 1, 0),
        width=WIDTH,
    ),
    "SoftMixture": SoftMixture(GAM(slots=16), 3, width=WIDTH),
    "SoftMixture of shared keys": SoftMixture(
        Attention(heads=8, head_size=2, context=32, qk_norm=True), 3, True, width=WIDTH
    ),
    "Shallow": Shallow(Block(GAM(slots=16)), depth=3, width=WIDTH),
    "Shallow attention": Shallow(
        Block(Attention(heads=8, head_size=2, context=32)), depth=2, width=WIDTH
    ),
    "Stack of attention": Stack(
        Block(Attention(heads=8, head_size=2, window=5), width=WIDTH), depth=2, remat=True
    ),
    "Adapted": Adapted(Block(GAM(slots=16)), rank=2, alpha=1.0, width=WIDTH),
    "Adapted attention": Adapted(
        Attention(heads=8, head_size=2, context=32), 2, 1.0, on="query,value,out", width=WIDTH
    ),
    "Adapted mixtures": Adapted(
        Block(SoftMixture(GAM(slots=16), 2), MoE(ffn=MLP(expansion=1))),
        rank=2,
        alpha=0.5,
        rooted=True,
        width=WIDTH,
    ),
    "Stack of adapted blocks": Stack(
        Adapted(Residual(Mamba2(inner=32, head=4, state=4)), 2, 0.5, width=WIDTH), depth=2
    ),
    "ParScale": ParScale(Block(GAM(slots=16)), width=WIDTH),
    "ParScale of attention": ParScale(
        Block(Attention(heads=8, head_size=2, context=32)), streams=4, prefix=3, width=WIDTH
    ),
    "ParScale of a stack": ParScale(
        Stack(
            Block(
                WrittenGAM(LinearMemory(**HEADS), kernel=3),
                Attention(heads=8, head_size=2, window=3, sinks=True, soft_cap=2.0),
                width=WIDTH,
            ),
            depth=2,
            remat=True,
        ),
        streams=4,
        prefix=2,
        width=WIDTH,
    ),
    "ParScale of chunks": ParScale(
        Chunked(TCNCA(tcn=TCN(levels=1), chunk=4, keys=4), size=3), width=WIDTH
    ),
    "Chunked": Chunked(GAM(slots=16), size=3, width=WIDTH),
    "Chunked whose carry is whole": Chunked(
        TCNCA(tcn=TCN(levels=1), chunk=4, keys=4, variant="simple"), size=3, width=WIDTH
    ),
    "Stack": Stack(Block(GAM(slots=16), width=WIDTH), depth=3),
    "Stack of recurrences": Stack(Block(LSTM(), width=WIDTH), depth=2),
    "Stack with a ladder": Stack(Block(GAM(slots=16), width=WIDTH), depth=3, ladder=2),
    "Stack remat": Stack(Block(GAM(slots=16), width=WIDTH), depth=2, remat=True),
    "Stack unrolled": Stack(Block(GAM(slots=16), width=WIDTH), depth=3, unroll=2),
    "ParScale of state spaces": ParScale(
        InTurn((Residual(Mamba(state=4)), Residual(Mamba2(inner=32, head=4, state=4)))),
        width=WIDTH,
    ),
    "ParScale of recurrences": ParScale(
        InTurn((Residual(Elman()), Residual(LSTM()), Residual(GRU()), Residual(MinimalRNN()))),
        width=WIDTH,
    ),
    "ParScale of memories": ParScale(
        InTurn(
            (
                Residual(LinearMemory(variant="kimi_delta", chunk=4, **HEADS)),
                Residual(LinearMemory(variant="gla", **HEADS)),
                Residual(FusedDelta(long=5, **HEADS)),
            )
        ),
        width=WIDTH,
    ),
    "ParScale of mixtures": ParScale(
        Pattern((SoftMixture(GAM(slots=16), 2), Shallow(Residual(TCN(levels=2)), 2)), (0, 1, 0)),
        width=WIDTH,
    ),
    "Nested": Nested(MLP(hidden=32, activation="swiglu"), "hidden", (8, 16, 32), width=WIDTH),
    "Mixed": Mixed(
        (GAM(slots=16), MLP(), Attention(heads=8, head_size=2, context=32)), width=WIDTH
    ),
    "Mixed, one of shares": Mixed(
        (GAM(slots=16), LinearMemory(heads=8, key_width=4, value_width=3)),
        how="one",
        share=2,
        width=WIDTH,
    ),
}

TOKENS = 8
"""In the inputs of the laws."""

SHORT_AND_LONG = ((2, 5), (3, 4), (2, 7), (3, 6))
LENGTHS: dict[str, tuple[int, int, int]] = {
    name: (1, *SHORT_AND_LONG[place % len(SHORT_AND_LONG)])
    for place, name in enumerate(name for name, layer in EXAMPLES.items() if layer.causal)
}
"""Of the chunks that a layer is given: a covering choice, since each length is a program."""


@functools.partial(jax.jit, static_argnames="layer")
def apply(layer: Layer, params: Params, x: jax.Array, carry: Carry | None = None):
    """The layer, compiled once for each shape: tests would else compile every operation."""
    return layer(params, x, carry)


@functools.cache
def params_of(layer: Layer, seed: int = 0) -> Params:
    """Random parameters, away from neutral starts (norms of 1 and 0 would hide mistakes)."""
    return random_like(layer.table(), seed)


def random_like(table: Table, seed: int = 0) -> Params:
    """Values from NumPy in the shapes of a table: nothing compiles."""
    random = np.random.default_rng(seed)

    def draw(want: jax.ShapeDtypeStruct) -> jax.Array:
        return put(random.normal(0.1, 0.4, want.shape), want.dtype)

    return jax.tree.map(draw, abstract_params(table))


def inputs(batch: int, tokens: int, seed: int = 0) -> np.ndarray:
    """Normal inputs [B, T, WIDTH], on the host: to cut them compiles nothing."""
    normal = np.random.default_rng(seed).normal(size=(batch, tokens, WIDTH))
    return normal.astype("float32")


VARIANTS = frozenset(
    {
        "Stack with a ladder",
        "GAM kernel 1",
        "GAM dilated",
        "GAM sum",
        "GAM local",
        "Mamba kernel 1",
        "Mamba2 scaled",
        "Mamba2 norm first",
        "Mamba2 biased",
        "MLP relu2",
        "Block scaled",
        "MLP scaled",
        "MLP geglu",
        "MLP clamped",
        "MoE first choices first",
        "MoE chosen by experts",
        "MHS of one head",
        "LSTM unrolled",
        "Bidirectional stack",
        "TCN of two convolutions",
        "TCNCA of odd chunks",
        "TCNCA simple",
        "Attention wide window",
        "Attention capped",
        "LatentAttention of plain queries",
        "MoFME of one",
        "WrittenGAM bank",
        "LinearMemory linear",
        "LinearMemory kimi delta of shared keys",
        "MoE of a gated shared one",
        "LatentAttention unturned",
        "LinearMemory retnet",
        "MinimalRNN lstm",
        "Block post norm",
        "Block sandwich",
        "SoftMixture of shared keys",
        "Shallow attention",
        "Adapted attention",
        "Stack of adapted blocks",
        "ParScale of chunks",
        "ParScale of state spaces",
        "ParScale of recurrences",
        "ParScale of memories",
        "ParScale of mixtures",
        "Chunked whose carry is whole",
        "Stack remat",
        "Stack unrolled",
        "Stack of recurrences",
        "Mixed, one of shares",
    }
)
"""Examples whose class has another: their laws are `slow`."""


def law_of(chosen: Mapping[str, Layer]) -> pytest.MarkDecorator:
    """A parameter `layer` for each of them."""
    cases = [
        pytest.param(layer, id=name, marks=[pytest.mark.slow] if name in VARIANTS else [])
        for name, layer in chosen.items()
    ]
    return pytest.mark.parametrize("layer", cases)
