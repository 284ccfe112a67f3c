"""Models whose training steps are traced, and how their messages are counted."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp

from gam_jax.layers import (
    GAM,
    GRU,
    LSTM,
    MLP,
    TCN,
    TCNCA,
    Adapted,
    Attention,
    Block,
    Elman,
    FalconH1,
    FusedDelta,
    InTurn,
    LatentAttention,
    Linear,
    LinearMemory,
    Mamba,
    Mamba2,
    MinimalRNN,
    MoFME,
    NoOp,
    ProductMemory,
    Residual,
    RMSNorm,
    Series,
    Shallow,
    SoftMixture,
    WrittenGAM,
)
from gam_jax.layers.linear_memory import RECIPES
from gam_jax.models.base import on_stages
from gam_jax.models.language import LanguageModel
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.traffic.step import step_traffic
from gam_jax.training.state import abstract_state
from gam_jax.training.step import make_train_step
from sharding.messages import messages_of, totals
from tests.meshes import (
    layout_of,
)

MODEL = LanguageModel(Block(GAM(slots=16)), width=16, depth=3, vocab=32, context=32, dropout=0.1)


def abstract_step(model, layout, rows, tokens, accumulate=1):
    optimizer = make_optimizer(OptimizerConfig(warmup=1), 10, model.table())
    shape = (accumulate, rows // accumulate, tokens)[0 if accumulate > 1 else 1 :]
    ids = jax.ShapeDtypeStruct(shape, jnp.int32)
    batch = {"inputs": ids, "targets": ids, "weights": jax.ShapeDtypeStruct(shape, jnp.float32)}
    if model.packed:
        batch["starts"] = jax.ShapeDtypeStruct(shape, jnp.bool)
    step = make_train_step(model, optimizer, layout, accumulate)
    return step, abstract_state(on_stages(model, layout)[0], optimizer), batch


def counted(*args):
    return totals(messages_of(*abstract_step(*args)))


def assert_formula(model, shape, preset):
    layout = layout_of(shape, preset)
    assert counted(model, layout, 8, 32) == totals(step_traffic(model, layout, 8, 32))


def in_turn(names, ways):
    """(name, way): each name once, the ways one after another."""
    return tuple(zip(names, itertools.cycle(ways), strict=False))


PRESETS = ("fully_sharded+sequence+tensor_tokens", "zero1+sequence+tensor")
VARIANTS = {
    "remat": {"remat": True},
    "bfloat16": {"dtype": "bfloat16"},
    "stored in bfloat16": {"param_dtype": "bfloat16"},
    "remat in bfloat16": {"remat": True, "dtype": "bfloat16"},
    "unrolled": {"unroll": 3},
    "no positions": {"context": 0},
    "untied": {"tied": False},
    "padded vocabulary": {"vocab": 33},
    "padded vocabulary, untied": {"vocab": 33, "tied": False, "dtype": "bfloat16"},
    "gated, RMS norms": {
        "block": Block(
            GAM(slots=16), MLP(activation="swiglu", hidden=48, bias=False), norm=RMSNorm()
        ),
        "norm": RMSNorm(),
    },
    "kernel 1": {"block": Block(GAM(slots=16, kernel=1))},
    "dilated past a shard": {"block": Block(GAM(slots=16, kernel=4, dilation=7))},
    "sparse": {"block": Block(GAM(slots=16, top=3))},
    "sum": {"block": Block(GAM(slots=16, variant="sum"))},
    "local": {"block": Block(GAM(variant="local"))},
    "global": {"block": Block(GAM(slots=16, variant="global", slot_bias=True))},
}

PLAIN = Attention(heads=4, context=64)
LLAMA = Block(PLAIN, MLP(activation="swiglu", bias=False), RMSNorm())
VARIANTS |= {
    "attention": {"block": LLAMA},
    "attention, grouped with biases": {
        "block": dataclasses.replace(
            LLAMA,
            mixer=Attention(
                heads=8, kv_heads=4, head_size=4, context=64, bias=True, out_bias=True, sinks=True
            ),
        )
    },
    "attention, normed heads": {
        "block": Block(dataclasses.replace(PLAIN, qk_norm=True, bias=True))
    },
    "attention, remat in bfloat16": {"block": LLAMA, "remat": True, "dtype": "bfloat16"},
    "window": {"block": Block(Attention(heads=4, window=5))},
    "window wider than a shard": {"block": Block(Attention(heads=4, window=30)), "remat": True},
    "parallel": {"block": dataclasses.replace(LLAMA, form="parallel"), "remat": True},
    "sandwich": {"block": dataclasses.replace(LLAMA, norms="sandwich"), "remat": True},
    "post norm": {"block": Block(GAM(slots=16), norms="post"), "remat": True},
}
VARIANTS |= {
    "ladder": {"ladder": 3},
    "ladder, run again": {"ladder": 3, "remat": True, "block": VARIANTS["attention"]["block"]},
    "half a ladder": {"ladder": 1},
    "half a ladder, run again": {"ladder": 2, "remat": True},
    "ladder of a sandwich": {**VARIANTS["sandwich"], "ladder": 2},
}


LINEAR = {name: LinearMemory(heads=4, variant=name, key_width=4, value_width=6) for name in RECIPES}
MEMORIES = LINEAR | {
    "shared keys": LinearMemory(heads=8, key_heads=4, key_width=4, value_width=3),
    "fused delta": FusedDelta(heads=4, short=2, long=7),
    "Mamba-2": Mamba2(head=2, state=4),
    "Mamba-2 in groups": Mamba2(head=2, state=4, groups=2, norm="norm_first"),
    "Mamba-2 without norm": Mamba2(head=2, state=4, norm="none"),
    "Mamba-2 biased": Mamba2(head=2, state=4, conv_bias=False, in_bias=True, out_bias=True),
    "Mamba": Mamba(state=4),
    "Mamba normed": Mamba(state=4, conv_bias=False, in_bias=True, out_bias=True, normed=True),
    "minimal GRU": MinimalRNN(expansion=2),
    "minimal LSTM": MinimalRNN(variant="lstm"),
    "written GAM": WrittenGAM(LINEAR["gated_deltanet"], kernel=4),
    "written GAM with a bank": WrittenGAM(LINEAR["retnet"], slots=16, kernel=4),
    "written GAM of Mamba-2": WrittenGAM(Mamba2(head=2, state=4), kernel=1),
    "Elman": Elman(),
    "LSTM": LSTM(),
    "GRU": GRU(),
    "GRU that resets first": GRU(reset_first=True),
}
LATENT = LatentAttention(heads=4, latent=12, head_size=4, rotary_size=2, value_size=3, context=8192)
BIASED = Attention(heads=4, context=64, bias=True, out_bias=True)
MIXERS = MEMORIES | {
    "gated attention": dataclasses.replace(PLAIN, gated=True, bias=True),
    "written GAM of attention": WrittenGAM(PLAIN, slots=16),
    "latent attention": LATENT,
    "latent queries": dataclasses.replace(LATENT, query_latent=10, bias=True),
    "TCN": TCN(levels=3, factor=3, convs=2),
    "TCNCA, whole chunks": TCNCA(tcn=TCN(levels=2), chunk=4, keys=6),
    "TCNCA, chunks over shards": TCNCA(tcn=TCN(levels=2), chunk=12, keys=6, variant="simple"),
    "product memory": ProductMemory(side=8, keys=4, heads=2, top=4),
    "Falcon-H1": FalconH1(PLAIN, Mamba2(head=2, state=4, norm="none"), attention_in=0.5),
    "soft mixture": SoftMixture(LINEAR["retnet"], 3),
    "soft mixture of shared keys": SoftMixture(dataclasses.replace(BIASED, qk_norm=True), 3, True),
}
BLOCKS = {name: Block(mixer) for name, mixer in MIXERS.items()} | {
    "product memory, last": Block(GAM(slots=16), ProductMemory(side=8, keys=4, heads=2, top=4)),
    "modulated experts": Block(GAM(slots=16), MoFME()),
    "modulated experts, asked once": Block(GAM(slots=16), MoFME(samples=0, adaptor=MLP())),
    "soft feed-forwards": Block(GAM(variant="local"), SoftMixture(MLP(), 2)),
    "one matrix": Block(GAM(slots=16), Linear()),
    "no feed-forward": Block(GAM(slots=16), NoOp()),
    "residual": Residual(LINEAR["gated_deltanet"]),
    "residual sum": Residual(GAM(slots=16, variant="sum")),
    "residual feed-forward": Residual(MLP()),
    "residual biases": Residual(BIASED),
    "residual biases of a state space": Residual(MEMORIES["Mamba-2 biased"], norm=RMSNorm()),
    "scaled": Block(MEMORIES["Mamba normed"], MLP(activation="relu2"), residual_scale=0.5),
    "post norm of a memory": Block(LINEAR["gla"], norm=RMSNorm(), norms="post"),
    "shallow": Shallow(Block(LINEAR["retnet"]), 2),
    "adapted": Adapted(Block(GAM(slots=16), norm=RMSNorm()), rank=2),
    "adapted attention": Adapted(
        Block(BIASED, MLP(activation="swiglu")), 3, on="mixer/*,ffn/w_out"
    ),
    "adapted states": Adapted(Block(LINEAR["gla"], SoftMixture(MLP(), 2)), 3),
    "adapted latents": Adapted(Block(LATENT, Mamba2(head=2, state=4)), 3),
    "in turn": Series(Block(LINEAR["linear"]), Residual(GRU())),
    "one after another": InTurn((Block(LINEAR["gla"]), Residual(BIASED))),
    "norms of outputs, and over all heads": Block(
        dataclasses.replace(BIASED, qk_norm=True, qk_norm_over="all"), norm=RMSNorm(), norms="out"
    ),
}
