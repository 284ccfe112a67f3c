"""Shards that hand each other blocks or states compute what one device computes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from sharding import collectives
from sharding.exchange import prefix, ring, ring_home
from sharding.mesh import make_mesh
from sharding.messages import Total, messages_of, totals

SIZES = (1, 2, 3, 4, 8)
TOKENS, WIDTH = 24, 4
SPLIT = P(None, "seq")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def attend(q, k, v, axis, causal):
    """Softmax attention [B, T, D] over a ring, with an online softmax."""
    places = jnp.arange(q.shape[1])
    first = collectives.axis_index(axis) * q.shape[1]

    def step(state, block, source):
        top, total, out = state
        keys, values = block
        scores = jnp.einsum("btd,bsd->bts", q, keys)
        if causal:
            seen = (first + places)[:, None] >= (source * q.shape[1] + places)[None]
            scores = jnp.where(seen, scores, -1e30)
        new = jnp.maximum(top, jnp.max(scores, axis=-1))
        weights, old = jnp.exp(scores - new[..., None]), jnp.exp(top - new)
        out = out * old[..., None] + jnp.einsum("bts,bsd->btd", weights, values)
        return new, total * old + jnp.sum(weights, axis=-1), out

    start = (jnp.full(q.shape[:2], -1e30), jnp.zeros(q.shape[:2]), jnp.zeros(v.shape))
    _, total, out = ring(step, start, (k, v), axis)
    return out / total[..., None]


def attention_formula(q, k, v, causal):
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    scores = np.einsum("btd,bsd->bts", q, k)
    if causal:
        scores = np.where(np.tri(q.shape[1], dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bts,bsd->btd", weights / weights.sum(-1, keepdims=True), v)


def remember(decay, write, before, axis):
    """S_t = decay_t S_{t-1} + write_t over all tokens: [B, T], [B, T, D] -> S, last S."""

    def combine(left, right):
        return left[0] * right[0], left[1] * right[0][:, None] + right[1]

    def local(state, inputs):
        state = state * inputs[0][:, None] + inputs[1]
        return state, state

    zero = collectives.vary_alike(jnp.zeros_like(write[:, 0]), write[:, 0], decay)[0]
    moved = jnp.moveaxis(decay, 1, 0), jnp.moveaxis(write, 1, 0)
    last, states = jax.lax.scan(local, zero, moved)
    decays = jnp.cumprod(decay, axis=1)
    start = (jnp.ones_like(before[:, 0]), before)
    (_, incoming), (_, total) = prefix((decays[:, -1], last), combine, axis, start)
    states = jnp.moveaxis(states, 0, 1) + decays[..., None] * incoming[:, None]
    return states, total


def memory_formula(decay, write, before):
    state, states = before.astype(np.float64), []
    for t in range(decay.shape[1]):
        state = state * decay[:, t, None] + write[:, t]
        states.append(state)
    return np.stack(states, 1), state


@functools.cache
def program(kind, size):
    """The op over `size` shards."""
    mesh, axis = make_mesh(seq=size), "seq" if size > 1 else None
    if kind == "memory":
        function, ins, outs = remember, (SPLIT, SPLIT, P()), (SPLIT, P())
    else:
        function = functools.partial(attend, causal=kind == "causal")
        ins, outs = (SPLIT,) * 3, SPLIT
    function = functools.partial(function, axis=axis)
    if axis is None:
        return function  # no mesh at all
    return jax.shard_map(function, mesh=mesh, in_specs=ins, out_specs=outs)


ARGUMENTS = {
    "causal": tuple(normal(2, TOKENS, WIDTH, seed=seed) for seed in range(3)),
    "bidirectional": tuple(normal(2, TOKENS, WIDTH, seed=seed) for seed in range(3)),
    "memory": (
        1 / (1 + np.exp(-normal(2, TOKENS))),
        normal(2, TOKENS, WIDTH, seed=1),
        normal(2, WIDTH, seed=2),
    ),
}
FORMULAS = {
    "causal": functools.partial(attention_formula, causal=True),
    "bidirectional": functools.partial(attention_formula, causal=False),
    "memory": memory_formula,
}


@functools.cache
def values_and_gradients(kind, size):
    def loss(*args):
        found = program(kind, size)(*args)
        pulls = [normal(*x.shape, seed=9) for x in jax.tree.leaves(found)]
        return sum(map(jnp.sum, map(jnp.multiply, jax.tree.leaves(found), pulls))), found

    args = ARGUMENTS[kind]
    both = jax.value_and_grad(loss, argnums=tuple(range(len(args))), has_aux=True)
    (_, found), gradients = jax.jit(both)(*args)
    return jax.tree.map(np.asarray, (found, gradients))


@pytest.mark.parametrize("kind", ARGUMENTS)
@pytest.mark.parametrize("size", SIZES)
def test_any_number_of_shards_computes_the_formula_and_its_gradients(kind, size):
    found, gradients = values_and_gradients(kind, size)
    wanted = FORMULAS[kind](*ARGUMENTS[kind])
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    _, whole = values_and_gradients(kind, 1)
    for a, b in zip(gradients, whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_a_prefix_keeps_the_order_of_what_does_not_commute(size):
    matrices = normal(size, 2, 2)
    before = normal(2, 2, seed=1)
    run = jax.shard_map(
        lambda m, b: jax.tree.map(lambda x: x[None], prefix(m[0], jnp.matmul, "seq", b)),
        mesh=make_mesh(seq=size),
        in_specs=(P("seq"), P()),
        out_specs=(P("seq"), P()),
    )
    lefts, total = jax.jit(run)(matrices, before)
    product = before
    for left, matrix in zip(lefts, matrices, strict=True):
        np.testing.assert_allclose(left, product, rtol=1e-4, atol=1e-5)
        product = product @ matrix
    np.testing.assert_allclose(total[0], product, rtol=1e-4, atol=1e-5)


def sent(kind, tokens):
    def longer(x):
        shape = (x.shape[0], tokens, *x.shape[2:]) if x.shape[1] == TOKENS else x.shape
        return jax.ShapeDtypeStruct(shape, x.dtype)

    return totals(messages_of(program(kind, 4), *map(longer, ARGUMENTS[kind])))


def test_a_ring_sends_one_block_less_than_there_are_shards():
    found = sent("causal", TOKENS)
    keys_and_values = 2 * (2 * TOKENS // 4 * WIDTH * 4)
    assert found == {("permute", ("seq",)): Total(2 * 3, 3 * keys_and_values)}


def test_what_a_prefix_sends_does_not_grow_with_the_tokens_and_what_a_ring_sends_does():
    assert sent("memory", 48) == sent("memory", 24)
    assert [kind for kind, _ in sent("memory", 24)] == ["all_gather"]
    ring_of = [sent("causal", tokens)["permute", ("seq",)].sent for tokens in (24, 48)]
    assert ring_of[1] == 2 * ring_of[0]


@pytest.mark.parametrize("size", SIZES[1:])
def test_what_is_found_for_a_block_on_its_way_comes_home(size):
    """Each device adds its number times the block's; state and finding see every pair once."""
    numbers = jnp.arange(1.0, size + 1)

    def visit(own):
        def step(state, block, found, source):
            return state + block * source, found + own * block

        return ring_home(step, jnp.zeros(1), own, jnp.zeros(1), "seq")

    mapped = jax.shard_map(
        visit, mesh=make_mesh(seq=size), in_specs=P("seq"), out_specs=(P("seq"), P("seq"))
    )
    state, found = jax.jit(mapped)(numbers)
    np.testing.assert_array_equal(state, np.full(size, np.sum(numbers * np.arange(size))))
    np.testing.assert_array_equal(found, numbers * np.sum(numbers))
