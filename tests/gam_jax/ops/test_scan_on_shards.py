"""A memory scan over shards of a sequence is that of the whole, and sends a state a shard."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gam_jax.ops.scan import diagonal_scan
from sharding import collectives
from sharding.mesh import make_mesh
from sharding.messages import messages_of, totals
from tests import scan_oracle
from tests.arrays import put
from tests.gam_jax.ops.test_scan import assert_close, draw, scan

SPLIT, WHOLE = P(None, "seq"), P()
TOKENS, GROUPS, HEADS, KEYS, WIDTH = 32, 2, 4, 4, 6
KINDS = [("hebb", "none"), ("hebb", "head"), ("hebb", "channel"), ("delta", "head")]
KINDS += [("delta", "channel")]


def over_shards(function, args, size, states=1):
    """`function` of arguments [B, T, ...], but for states [B, H, ...], over `size` shards."""
    specs = tuple(None if x is None else SPLIT for x in args[:-states])
    return jax.shard_map(
        functools.partial(function, axis="seq"),
        mesh=make_mesh(seq=size),
        in_specs=(*specs, *[WHOLE] * states),
        out_specs=(SPLIT, WHOLE),
    )


def pulled(function, args, cotangents):
    there = [x for x in args if x is not None]

    def given(*arrays):
        left = iter(arrays)
        return function(*(None if x is None else next(left) for x in args))

    outputs, pull = jax.vjp(given, *there)
    return outputs, pull(cotangents)


@pytest.mark.parametrize("size", [2, 8])
@pytest.mark.parametrize(("rule", "decay"), KINDS)
def test_values_and_gradients_are_those_of_the_whole(rule, decay, size):
    args = draw(2, TOKENS, GROUPS, HEADS, KEYS, WIDTH, decay)
    random = np.random.default_rng(1)
    shapes = (2, TOKENS, HEADS, WIDTH), (2, HEADS, KEYS, WIDTH)
    cotangents = tuple(random.normal(size=shape).astype(np.float32) for shape in shapes)
    program = over_shards(functools.partial(scan, rule=rule, chunk=4), args, size)
    outputs, gradients = jax.jit(lambda args, g: pulled(program, args, g))(args, cotangents)
    *wanted, pull = scan_oracle.memory(*args, rule)
    assert_close(outputs, wanted)
    assert_close(gradients, pull(*cotangents))


def packing():
    """Documents begin in shards 1 and 3 of 4 (row 0), or at the first token of one (row 1)."""
    starts = np.zeros((2, TOKENS), bool)
    starts[0, [9, 13, 26]] = starts[1, TOKENS // 2] = True
    return starts


def with_starts(function, starts):
    """`function` of this device's part of `starts`."""

    def told(*args, axis):
        return function(*args, axis=axis, starts=collectives.own_shard(starts, axis, dim=1))

    return told


@pytest.mark.parametrize(("rule", "decay"), KINDS)
def test_a_shard_in_which_a_document_begins_hands_on_nothing_of_what_came_in(rule, decay):
    """Documents begin with a memory that is given, and go on over shards from it."""
    args, starts = draw(2, TOKENS, GROUPS, HEADS, KEYS, WIDTH, decay), packing()
    random = np.random.default_rng(1)
    shapes = (2, TOKENS, HEADS, WIDTH), (2, HEADS, KEYS, WIDTH)
    cotangents = tuple(random.normal(size=shape).astype(np.float32) for shape in shapes)
    begin = random.normal(size=shapes[1]).astype(np.float32)
    args = (*args, begin)
    function = with_starts(functools.partial(scan, rule=rule, chunk=4), put(starts))
    program = over_shards(function, args, 4, states=2)
    outputs, gradients = jax.jit(lambda args, g: pulled(program, args, g))(args, cotangents)
    *wanted, pull = scan_oracle.memory(*args[:-1], rule, starts, begin)
    assert_close(outputs, wanted)
    assert_close(gradients, pull(*cotangents))


@pytest.mark.parametrize(("rule", "decay"), KINDS)
def test_what_is_sent_is_a_transition_and_a_state_whatever_the_length(rule, decay):
    def sent(tokens):
        shapes = {"none": None, "head": (2, tokens, HEADS), "channel": (2, tokens, HEADS, KEYS)}
        q = jax.ShapeDtypeStruct((2, tokens, HEADS, KEYS), jnp.float32)
        v = jax.ShapeDtypeStruct((2, tokens, HEADS, WIDTH), jnp.float32)
        log = shapes[decay] and jax.ShapeDtypeStruct(shapes[decay], jnp.float32)
        state = jax.ShapeDtypeStruct((2, HEADS, KEYS, WIDTH), jnp.float32)
        args = (q, q, v, log, None, state)
        program = over_shards(functools.partial(scan, rule=rule), args, 8)
        return totals(messages_of(lambda *args: program(*args)[0], *args))

    (total,) = sent(64).values()
    transition = {"none": 0, "head": 1, "channel": KEYS}[decay] if rule == "hebb" else KEYS**2
    assert total.sent == 7 * 4 * 2 * HEADS * (transition + KEYS * WIDTH)
    assert sent(64) == sent(2**15)


@pytest.mark.parametrize(("size", "packed"), [(2, False), (8, False), (4, True)])
def test_of_the_diagonal_scan_likewise(size, packed):
    random = np.random.default_rng(0)
    log = np.log(random.choice([1e-6, 0.5, 0.999], (2, TOKENS, 3))).astype(np.float32)
    log[0, 5] = -np.inf
    write, state, begin = (random.normal(size=(2, *n)) for n in ((TOKENS, 3), (3,), (3,)))
    args = (log, *(x.astype(np.float32) for x in (write, state, begin)))

    def function(log, write, state, begin, **where):
        return diagonal_scan(log, write, state=state, begin=begin, chunk=4, **where)

    starts = packing() if packed else None
    if packed:
        function = with_starts(function, put(starts))
    cotangents = random.normal(size=write.shape).astype(np.float32), np.zeros((2, 3), np.float32)
    program = over_shards(function, args, size, states=2)
    outputs, gradients = jax.jit(lambda args, g: pulled(program, args, g))(args, cotangents)
    states, pull = scan_oracle.diagonal(*args[:3], starts, begin)
    assert_close(outputs, (states, states[:, -1]))
    assert_close(gradients, pull(cotangents[0]))
