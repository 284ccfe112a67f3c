"""A training step sends what the formulas say: the same collectives, as often, the same bytes."""

from __future__ import annotations

import collections
import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from gam_jax.layers import (
    GAM,
    GRU,
    LSTM,
    MLP,
    TCN,
    TCNCA,
    Attention,
    Block,
    Elman,
    FalconH1,
    FusedDelta,
    LatentAttention,
    Layer,
    LinearMemory,
    Mamba,
    Mamba2,
    MinimalRNN,
    MoE,
    MoFME,
    ProductMemory,
    Residual,
    RMSNorm,
    Series,
    Shallow,
    SoftMixture,
    Stack,
    WrittenGAM,
)
from gam_jax.layers.linear_memory import RECIPES
from gam_jax.models.language import LanguageModel
from gam_jax.ops.attention import Rule
from gam_jax.ops.ring_attention import ring_attention
from gam_jax.ops.routing import Capacity, Router
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.traffic.layers import layer_traffic
from gam_jax.traffic.step import step_traffic
from gam_jax.training.step import abstract_state, make_eval_step, make_train_step, state_shardings
from sharding import cost
from sharding.layout import Layout, Parallel, bytes_held
from sharding.mesh import make_mesh
from sharding.messages import Total, compiled_messages, messages_of, totals
from tests.meshes import layout_of

MODEL = LanguageModel(Block(GAM(slots=16)), width=16, depth=3, vocab=32, context=32, dropout=0.1)


def abstract_step(model, layout, rows, tokens, accumulate=1):
    optimizer = make_optimizer(OptimizerConfig(warmup=1), 10, model.table())
    shape = (accumulate, rows // accumulate, tokens)[0 if accumulate > 1 else 1 :]
    ids = jax.ShapeDtypeStruct(shape, jnp.int32)
    batch = {"inputs": ids, "targets": ids, "weights": jax.ShapeDtypeStruct(shape, jnp.float32)}
    step = make_train_step(model, optimizer, layout, accumulate)
    return step, abstract_state(model, optimizer), batch


def counted(*args):
    return totals(messages_of(*abstract_step(*args)))


@pytest.mark.parametrize("tensor", ["tensor", "tensor_tokens"])
@pytest.mark.parametrize("data", ["data", "zero1", "fully_sharded"])
@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (4, 1, 2)], ids=str)
def test_on_every_mesh(shape, data, tensor):
    layout = Layout(make_mesh(*shape), Parallel(f"{data}+sequence+{tensor}"))
    assert counted(MODEL, layout, 8, 32) == totals(step_traffic(MODEL, layout, 8, 32))


PRESETS = ("fully_sharded+sequence+tensor_tokens", "zero1+sequence+tensor")
VARIANTS = {
    "remat": {"remat": True},
    "bfloat16": {"dtype": "bfloat16"},
    "remat in bfloat16": {"remat": True, "dtype": "bfloat16"},
    "unrolled": {"unroll": 3},
    "no positions": {"context": 0},
    "untied": {"tied": False},
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
    "global": {"block": Block(GAM(slots=16, variant="global"))},
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


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_of_every_variant(changes, preset):
    model = dataclasses.replace(MODEL, **changes)
    layout = Layout(make_mesh(2, 2, 2), Parallel(preset))
    assert counted(model, layout, 8, 32) == totals(step_traffic(model, layout, 8, 32))


LINEAR = {name: LinearMemory(heads=4, variant=name, key_width=4, value_width=6) for name in RECIPES}
STATES = LINEAR | {
    "fused delta": FusedDelta(heads=4, short=2, long=7),
    "Mamba-2": Mamba2(head=2, state=4),
    "Mamba-2 in groups": Mamba2(head=2, state=4, groups=2, norm="norm_first"),
    "Mamba-2 without norm": Mamba2(head=2, state=4, norm="none"),
    "Mamba": Mamba(state=4),
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
MIXERS = STATES | {
    "written GAM of attention": WrittenGAM(PLAIN, slots=16),
    "latent attention": LATENT,
    "latent queries": dataclasses.replace(LATENT, query_latent=10),
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
    "residual": Residual(LINEAR["gated_deltanet"]),
    "residual sum": Residual(GAM(slots=16, variant="sum")),
    "residual feed-forward": Residual(MLP()),
    "residual biases": Residual(BIASED),
    "post norm of a memory": Block(LINEAR["gla"], norm=RMSNorm(), norms="post"),
    "shallow": Shallow(Block(LINEAR["retnet"]), 2),
    "in turn": Series(Block(LINEAR["linear"]), Residual(GRU())),
}
RERUN = {"remat": True}
WAYS = [
    pytest.param("data+sequence+tensor", {}, id="whole"),
    pytest.param("fully_sharded+sequence+tensor_tokens", {}, id="sharded"),
    pytest.param("zero1+sequence+tensor_tokens", RERUN, id="run again", marks=pytest.mark.slow),
    pytest.param(
        "fully_sharded+sequence+tensor",
        {**RERUN, "dtype": "bfloat16"},
        id="sharded in bfloat16, run again",
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("preset", "changes"), WAYS)
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_of_every_layer(block, preset, changes):
    model = dataclasses.replace(MODEL, block=block, **changes)
    layout = Layout(make_mesh(2, 2, 2), Parallel(preset))
    assert counted(model, layout, 8, 32) == totals(step_traffic(model, layout, 8, 32))


@pytest.mark.parametrize("shape", [(1, 4, 2), (8, 1, 1), (1, 2, 4)], ids=str)
@pytest.mark.parametrize("name", ["gla", "gated_deltanet", "Mamba-2 in groups", "LSTM"])
def test_of_states_on_other_meshes(name, shape):
    model = dataclasses.replace(MODEL, block=Block(STATES[name]), remat=True)
    layout = Layout(make_mesh(*shape), Parallel("fully_sharded+sequence+tensor_tokens"))
    assert counted(model, layout, 8, 32) == totals(step_traffic(model, layout, 8, 32))


@pytest.mark.parametrize("mixer", STATES.values(), ids=STATES)
def test_what_a_state_sends_over_split_tokens_does_not_grow_with_them(mixer):
    model = dataclasses.replace(MODEL, block=Block(mixer), context=0)
    layout = Layout(make_mesh(seq=8), Parallel("sequence"))
    assert counted(model, layout, 1, 64) == counted(model, layout, 1, 4096)


def test_latents_grow_with_the_tokens():
    model = dataclasses.replace(MODEL, block=Block(LATENT), context=0)
    layout = Layout(make_mesh(seq=8), Parallel("sequence"))
    short, long = (
        sum(m.sent for m in step_traffic(model, layout, 1, tokens) if m.collective == "all_gather")
        for tokens in (64, 4096)
    )
    assert long == 64 * short


DEEP = Series(
    Stack(Block(LINEAR["gla"]), 2), Stack(Block(LATENT, MoE(router=Router(bias_step=0.1))), 3, True)
)


@pytest.mark.parametrize("preset", [*PRESETS, "fully_sharded+sequence+tensor"])
@pytest.mark.parametrize("shape", [(2, 2, 2), (2, 1, 2, 1, 2), (8, 1, 1)], ids=str)
def test_of_stacks_in_turn(shape, preset):
    """Parameters are gathered as often as those of one stack."""
    model = dataclasses.replace(MODEL, block=DEEP, depth=1)
    layout = layout_of(shape, preset)
    assert counted(model, layout, 8, 32) == totals(step_traffic(model, layout, 8, 32))


def test_stacks_in_one_that_is_run_again_have_no_formula():
    model = dataclasses.replace(MODEL, block=DEEP, depth=1, remat=True)
    with pytest.raises(NotImplementedError, match="a stack in one"):
        step_traffic(model, layout_of((8, 1, 1)), 8, 32)


STREAMS = {
    "of GAM": Block(GAM(slots=16)),
    "of Mamba-2 and deltas": Block(STATES["Mamba-2"], LINEAR["deltanet"]),
    "of GAM and attention": Block(GAM(slots=16), Attention(heads=4, context=64), RMSNorm()),
}


@pytest.mark.parametrize("preset", [*PRESETS, "data+sequence+tensor"])
@pytest.mark.parametrize(
    "sizes",
    [{"stream": 4}, {"stream": 2, "seq": 2, "tensor": 2}, {"data": 2, "stream": 2, "tensor": 2}],
    ids=str,
)
@pytest.mark.parametrize("block", STREAMS.values(), ids=STREAMS)
def test_of_parallel_streams(block, sizes, preset):
    """Forward they send two sums of [B, T, D], however deep the model."""
    model = dataclasses.replace(MODEL, block=block, streams=4, prefix=3)
    layout = Layout(make_mesh(**sizes), Parallel(preset))
    assert counted(model, layout, 8, 32) == totals(step_traffic(model, layout, 8, 32))


@pytest.mark.parametrize("depth", [1, 4])
def test_streams_meet_at_the_end_alone(depth):
    model = dataclasses.replace(MODEL, depth=depth, streams=4)
    layout = Layout(make_mesh(stream=4))
    _, state, batch = abstract_step(model, layout, 8, 32)
    found = totals(messages_of(make_eval_step(model, layout), state.params, batch))
    both = 2 * 8 * 32 * MODEL.width * 4
    assert found == {("all_reduce", ("stream",)): Total(2, both * 2 * (4 - 1) // 4)}


EXPERTS = MoE(
    ffn=MLP(expansion=1), shared=1, router=Router(bias=True), capacity=Capacity(1.0, tokens=16)
)
GATED = MoE(router=Router(bias_step=0.1))
MIXTURES = {
    "gathered": (GATED, {}, (2, 1, 1, 1, 4), "fully_sharded+sequence+tensor"),
    "in bfloat16": (GATED, {"dtype": "bfloat16"}, (2, 1, 1, 1, 4), "fully_sharded+sequence"),
    "remat": (GATED, {"remat": True}, (1, 2, 2, 1, 2), "data+sequence+tensor_tokens"),
    "modulated": (MoFME(), {"remat": True}, (1, 2, 2, 1, 2), "data+sequence+tensor_tokens"),
    "modulated, gathered": (MoFME(), {}, (2, 1, 2, 1, 2), "fully_sharded+sequence+tensor"),
    "weighed": (SoftMixture(MLP(), 2), {}, (1, 2, 2, 1, 2), "data+sequence+tensor_tokens"),
    "one device each": (GATED, {}, (2, 2, 2), "fully_sharded+sequence+tensor_tokens"),
    "exchanged": (EXPERTS, {}, (1, 2, 2, 1, 2), "data+sequence+tensor"),
    "exchanged, all axes": (EXPERTS, {}, (2, 1, 2, 1, 2), "fully_sharded+sequence+tensor_tokens"),
    "exchanged, remat": (EXPERTS, {"remat": True}, (1, 2, 2, 1, 2), "data+sequence+tensor_tokens"),
    "dropless exchange": (
        dataclasses.replace(GATED, strategy="exchange"),
        {},
        (1, 1, 1, 1, 8),
        "data+sequence+tensor",
    ),
}


@pytest.mark.parametrize(("layer", "changes", "shape", "preset"), MIXTURES.values(), ids=MIXTURES)
def test_of_mixtures_of_experts(layer, changes, shape, preset):
    model = dataclasses.replace(MODEL, block=Block(GAM(slots=16), layer), **changes)
    layout = layout_of(shape, preset)
    assert counted(model, layout, 8, 32) == totals(step_traffic(model, layout, 8, 32))


@pytest.mark.parametrize("capacity", [0.0, 1.0, 2.0, 4.0])
def test_experts_are_met_in_the_way_that_sends_less(capacity):
    """An exchange where K times the capacity is below the devices, else all tokens are gathered."""

    def sent(strategy):
        layer = MoE(ffn=MLP(expansion=1), strategy=strategy, capacity=Capacity(capacity, tokens=32))
        model = dataclasses.replace(MODEL, block=Block(GAM(slots=16), layer))
        return step_traffic(model, layout_of((1, 1, 1, 1, 4)), 8, 32)

    over = {
        name: sum(m.sent for m in sent(name) if m.axes == ("expert",) and m.size > 4096)
        for name in ("exchange", "gather", "auto")
    }
    assert over["auto"] == min(over["exchange"], over["gather"])
    exchanges = any(m.collective == "all_to_all" for m in sent("auto"))
    assert exchanges == (0 < 2 * capacity < 4)


@pytest.mark.parametrize("preset", ["data", "fully_sharded"])
def test_in_parts(preset):
    layout = Layout(make_mesh(2), Parallel(preset))
    assert counted(MODEL, layout, 8, 32, 4) == totals(step_traffic(MODEL, layout, 8, 32, 4))


def test_over_split_tokens_it_does_not_grow_with_the_sequence():
    model = dataclasses.replace(MODEL, context=0)
    layout = Layout(make_mesh(seq=8), Parallel("sequence"))
    assert counted(model, layout, 1, 64) == counted(model, layout, 1, 4096)


@pytest.mark.parametrize("shards", [2, 4, 8])
def test_a_ring_sends_what_ring_attention_is_known_to_send_and_two_exchanges(shards):
    rows, tokens, heads, groups, size = 2, 64, 4, 2, 8
    spec = P(None, "seq")
    ring = jax.shard_map(
        lambda q, k, v: ring_attention(Rule(1.0), q, k, v, "seq"),
        mesh=make_mesh(seq=shards),
        in_specs=(spec, spec, spec),
        out_specs=spec,
    )
    q, k = (jax.ShapeDtypeStruct((rows, tokens, h, size), jnp.float32) for h in (heads, groups))
    loss = jax.value_and_grad(lambda *arrays: ring(*arrays).sum(), argnums=(0, 1, 2))
    (found,) = totals(messages_of(loss, q, k, k)).values()
    known = cost.ring_attention(rows, tokens, groups * size, shards)
    in_and_out = 2 * (2 * heads + 2 * groups) * rows * tokens // shards * size * 4
    assert found.sent == known + in_and_out


def by_group(messages):
    """Bytes sent by collective and devices; a compiled permutation does not say of how many."""
    sent = collections.Counter()
    for message in messages:
        devices = None if message.collective == "permute" else message.devices
        sent[message.collective, devices] += message.sent
    return +sent


@pytest.mark.parametrize(
    ("shape", "preset"),
    [
        ((2, 2, 2), "data+sequence+tensor"),
        ((2, 1, 4), "zero1+tensor_tokens"),
        ((4, 2, 1), "fully_sharded+sequence"),
        ((2, 1, 2, 1, 2), "zero1+sequence+tensor"),
    ],
)
def test_the_compiled_step_sends_as_much_and_holds_its_share_of_the_state(shape, preset):
    model = dataclasses.replace(MODEL, unroll=3)
    if len(shape) > 3:
        model = dataclasses.replace(model, block=Block(GAM(slots=16), EXPERTS))
    layout = layout_of(shape, preset)
    step, state, batch = abstract_step(model, layout, 8, 32)
    compiled = step.lower(state, batch).compile()
    found = by_group(compiled_messages(compiled.as_text()))
    wanted = by_group(step_traffic(model, layout, 8, 32))
    scalars = 2000  # the optimizer's norm, a number for each parameter
    assert found.keys() - wanted.keys() <= {("all_reduce", size) for size in (2, 4, 8)}
    for kind in found | wanted:
        assert wanted[kind] <= found[kind] <= wanted[kind] + scalars, kind
    optimizer = make_optimizer(OptimizerConfig(warmup=1), 10, model.table())
    inputs = 3 * 8 * 32 * 4 // (layout.row_parts * shape[1])
    held = bytes_held(state, state_shardings(model, optimizer, layout))
    assert compiled.memory_analysis().argument_size_in_bytes == held + inputs


def test_a_layer_without_a_formula_is_named():
    class Unknown(Layer):
        pass

    with pytest.raises(NotImplementedError, match="Unknown"):
        layer_traffic(Unknown(), None)
