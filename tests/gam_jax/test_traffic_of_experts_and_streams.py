"""What parallel streams, experts and rings send; and the compiled step sends no more."""

from __future__ import annotations

import collections
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from gam_jax.layers import (
    GAM,
    MLP,
    Attention,
    Block,
    MoE,
    MoFME,
    RMSNorm,
    Shallow,
    SoftMixture,
)
from gam_jax.ops.ring_attention import ring_attention
from gam_jax.ops.routing import Capacity, Router
from gam_jax.ops.tiles import Rule
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.traffic.step import step_traffic
from gam_jax.training.state import state_shardings
from gam_jax.training.step import make_eval_step
from sharding import cost
from sharding.layout import Layout, bytes_held
from sharding.mesh import make_mesh
from sharding.messages import Total, compiled_messages, messages_of, totals
from tests.gam_jax.traffic_cases import (
    LATENT,
    LINEAR,
    MEMORIES,
    MODEL,
    PRESETS,
    abstract_step,
    assert_formula,
)
from tests.meshes import (
    AXES,
    COVERING,
    WORDS,
    layout_of,
    pairs,
    slow_unless_chosen,
)

STREAMS = {
    "of GAM": Block(GAM(slots=16)),
    "of Mamba-2 and deltas": Block(MEMORIES["Mamba-2"], LINEAR["deltanet"]),
    "of GAM and attention": Block(GAM(slots=16), Attention(heads=4, context=64), RMSNorm()),
}


STREAM_MESHES = ((1, 1, 1, 4), (1, 2, 2, 2), (2, 1, 2, 2))
STREAM_PRESETS = (*PRESETS, "data+sequence+tensor")
STREAM_CASES = tuple(
    (name, STREAM_MESHES[(row + place) % 3], preset)
    for row, name in enumerate(STREAMS)
    for place, preset in enumerate(STREAM_PRESETS)
)
"""Each model on each mesh, and each mesh under each preset."""


@pytest.mark.parametrize(
    ("name", "shape", "preset"),
    slow_unless_chosen(
        itertools.product(STREAMS, STREAM_MESHES, STREAM_PRESETS), STREAM_CASES[::2]
    ),
)
def test_of_parallel_streams(name, shape, preset):
    """Forward they send two sums of [B, T, D], however deep the model."""
    assert_formula(
        dataclasses.replace(MODEL, block=STREAMS[name], streams=4, prefix=3), shape, preset
    )


PACKED_STREAMS = STREAMS | {
    "of counted places": Shallow(Block(SoftMixture(LINEAR["retnet"], 2), LATENT), 2),
}
PACKED_CASES = tuple(zip(PACKED_STREAMS, itertools.cycle(STREAM_MESHES[1:]), STREAM_PRESETS * 2))


@pytest.mark.parametrize("remat", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("name", "shape", "preset"),
    slow_unless_chosen(
        itertools.product(PACKED_STREAMS, STREAM_MESHES[1:], STREAM_PRESETS), PACKED_CASES[1::2]
    ),
)
def test_of_streams_whose_rows_hold_documents(name, shape, preset, remat):
    """Each layer has a counter of its own, and is told with what documents begin."""
    changes = {"streams": 4, "prefix": 3, "packed": True, "remat": remat}
    assert_formula(dataclasses.replace(MODEL, block=PACKED_STREAMS[name], **changes), shape, preset)


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
    "one optimizer for all": (GATED, {}, (2, 1, 1, 1, 4), "zero1+sequence+tensor"),
    "in bfloat16": (GATED, {"dtype": "bfloat16"}, (2, 1, 1, 1, 4), "fully_sharded+sequence"),
    "remat": (GATED, {"remat": True}, (1, 2, 2, 1, 2), "data+sequence+tensor_tokens"),
    "modulated": (MoFME(), {"remat": True}, (1, 2, 2, 1, 2), "data+sequence+tensor_tokens"),
    "modulated, gathered": (MoFME(), {}, (2, 1, 2, 1, 2), "fully_sharded+sequence+tensor"),
    "weighed": (SoftMixture(MLP(), 2), {}, (1, 2, 2, 1, 2), "data+sequence+tensor_tokens"),
    "one device each": (GATED, {}, (2, 2, 2), "fully_sharded+sequence+tensor_tokens"),
    "a gated shared one": (
        dataclasses.replace(EXPERTS, shared_hidden=24, shared_gate=True),
        {},
        (1, 2, 2, 1, 2),
        "data+sequence+tensor_tokens",
    ),
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
    assert_formula(model, shape, preset)


def test_each_axis_is_split_under_each_word_of_a_preset():
    chosen = [case[1:] for case in STREAM_CASES] + [case[2:] for case in MIXTURES.values()]
    assert pairs([*COVERING, *chosen]) == set(itertools.product(AXES, WORDS))


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
        pytest.param((2, 2, 2), "data+sequence+tensor", marks=pytest.mark.slow),
        pytest.param((2, 1, 4), "zero1+tensor_tokens", marks=pytest.mark.slow),
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
