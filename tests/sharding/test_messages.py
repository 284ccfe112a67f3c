"""Collectives are counted where they happen, as often as they happen; the compiler agrees."""

from __future__ import annotations

import collections

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from sharding import collectives
from sharding.mesh import make_mesh
from sharding.messages import Message, Total, compiled_messages, messages_of, totals

MESH = make_mesh(2, 2, 2)
X = jax.ShapeDtypeStruct((8, 8, 16), jnp.float32)
SPEC = P("data", "seq", "tensor")
OWN = 4 * 4 * 8 * 4
"""Bytes of a device's part of X."""


def on_mesh(program, outputs=SPEC):
    return jax.jit(jax.shard_map(program, mesh=MESH, in_specs=SPEC, out_specs=outputs))


def permuted(x):
    return lax.ppermute(x, "seq", [(0, 1)])


PROGRAMS = {
    "sum over two axes": (
        lambda x: collectives.psum(x, ("data", "seq")),
        P(None, None, "tensor"),
        Message("all_reduce", ("data", "seq"), 4, OWN),
    ),
    "maximum": (
        lambda x: collectives.pmax(x, "tensor"),
        P("data", "seq", None),
        Message("all_reduce", ("tensor",), 2, OWN),
    ),
    "gather": (
        lambda x: collectives.all_gather(x, "tensor", 2),
        P("data", "seq", None),
        Message("all_gather", ("tensor",), 2, OWN),
    ),
    "reduce-scatter": (
        lambda x: collectives.reduce_scatter(x, "data", 2),
        P(None, "seq", ("tensor", "data")),
        Message("reduce_scatter", ("data",), 2, OWN),
    ),
    "all-to-all": (
        lambda x: lax.all_to_all(x, "seq", 2, 1, tiled=True),
        P("data", None, ("tensor", "seq")),
        Message("all_to_all", ("seq",), 2, OWN),
    ),
    "permute": (permuted, SPEC, Message("permute", ("seq",), 2, OWN)),
}


@pytest.mark.parametrize(("program", "outputs", "message"), PROGRAMS.values(), ids=PROGRAMS)
def test_each_collective_is_counted_once(program, outputs, message):
    assert messages_of(on_mesh(program, outputs), X) == [message]


def all_in_a_loop(x):
    def turn(x, _):
        for axis in MESH.axis_names:
            x = x + jnp.mean(collectives.psum(jnp.sin(x), axis))
        x = collectives.own_shard(lax.all_gather(x, "tensor", axis=2, tiled=True), "tensor", 2)
        x = x + jnp.sum(lax.psum_scatter(x, "data", scatter_dimension=2, tiled=True))
        return x + permuted(x) * lax.all_to_all(x, "seq", 1, 1, tiled=True), None

    return lax.scan(turn, x, None, length=5)[0]


def test_what_happens_in_a_loop_happens_in_each_turn():
    found = totals(messages_of(on_mesh(all_in_a_loop), X))
    assert {kind[0]: total.count for kind, total in found.items() if kind[1] == ("seq",)} == {
        "all_reduce": 5,
        "all_to_all": 5,
        "permute": 5,
    }
    assert found["all_gather", ("tensor",)] == Total(5, 5 * OWN)


def by_group(messages):
    """Bytes sent, by collective and number of devices."""
    sent = collections.Counter()
    for message in messages:
        sent[message.collective, message.devices] += message.sent
    return dict(sent)


@pytest.mark.parametrize("length", ["loop", "gradient"])
def test_the_compiled_program_sends_the_bytes_that_the_jaxpr_counts(length):
    program = on_mesh(all_in_a_loop)
    if length == "gradient":
        inner = program
        program = jax.jit(jax.grad(lambda x: jnp.sum(jnp.square(inner(x)))))
    text = program.lower(X).compile().as_text()
    assert by_group(compiled_messages(text)) == by_group(messages_of(program, X))


def test_what_no_result_needs_is_not_counted():
    def program(x):
        collectives.psum(x, "data")
        return x

    assert messages_of(on_mesh(program), X) == []


def test_of_branches_the_dearest_counts():
    def program(x):
        return lax.cond(x[0, 0, 0] > 0, lambda x: permuted(permuted(x)), permuted, x)

    assert [message.count for message in messages_of(on_mesh(program), X)] == [2]


def test_a_loop_of_unknown_length_is_refused():
    def program(x):
        return lax.while_loop(lambda x: jnp.sum(x) > 0, permuted, x)

    with pytest.raises(ValueError, match="while loop cannot be counted"):
        messages_of(on_mesh(program), X)


def test_an_axis_of_one_device_sends_nothing():
    assert totals([Message("all_reduce", ("data",), 1, 64)]) == {}


def text_of(*lines, loop=""):
    """A compiled program of a loop whose body has these lines; `loop` says how often it turns."""
    return "\n".join(
        [
            "%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {",
            *(f"  {line}" for line in lines),
            "}",
            "%condition (p: (s32[], f32[8])) -> pred[] {",
            "  %n = s32[]{:T(128)} constant(5), metadata={}",
            "  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT",
            "}",
            "ENTRY %main (x: f32[8]) -> f32[8] {",
            f"  %w = (s32[], f32[8]) while(%t), condition=%condition, body=%body{loop}",
            "}",
        ]
    )


GROUPS = "replica_groups={{0,1,2,3}}, dimensions={0}"
GATHERED = Message("all_gather", (), 4, 8 * 4)
GATHER = f"%g = f32[32]{{0:T(128)S(1)}} all-gather(%x), channel_id=3, {GROUPS}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            f"%r = ((f32[32]), f32[8]) reduce-scatter-start(%x), {GROUPS}, to_apply=%add",
            Message("reduce_scatter", (), 4, 32 * 4),
        ),
        (f"%r = f32[8] reduce-scatter(%x), {GROUPS}", Message("reduce_scatter", (), 4, 32 * 4)),
        (f"%g = (f32[8], f32[32]) all-gather-start(%x), {GROUPS}", GATHERED),
        (GATHER, GATHERED),
    ],
)
def test_the_operand_counts_whether_or_not_a_collective_has_an_end_of_its_own(line, message):
    known = ', backend_config={"known_trip_count":{"n":"3"}}'
    assert compiled_messages(text_of(line, loop=known)) == [message.times(3)]


def test_a_loop_turns_as_often_as_the_constant_of_its_condition_says():
    assert compiled_messages(text_of(GATHER)) == [GATHERED.times(5)]
    with pytest.raises(ValueError, match="loop of unknown length"):
        compiled_messages(text_of(GATHER).replace("constant(5)", "parameter(0)"))


def test_the_parts_of_a_collective_that_overlaps_with_products_count_as_one():
    parts = [
        f"%part.{chain}.{part} (x: f32[8]) -> f32[32] {{\n  {GATHER}, "
        f'frontend_attributes={{chain_id="{chain}"}}\n}}'
        for chain in "12"
        for part in "abc"
    ]
    calls = [f"%f = f32[32] fusion(%x), calls=%part.{c}.{p}" for c in "12" for p in "abc"]
    text = "\n".join([*parts, text_of(*calls)])
    assert compiled_messages(text) == [GATHERED.times(2 * 5)]
