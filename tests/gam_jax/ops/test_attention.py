"""Attention in blocks against the formula in float64, gradients included, and its balanced ring."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gam_jax.ops.attention import attend_tokens, merge, with_sinks
from gam_jax.ops.fused_attention import attention as fused
from gam_jax.ops.fused_attention import implementation
from gam_jax.ops.ring_attention import ring_attention
from gam_jax.ops.rotary import rotary
from gam_jax.ops.tiles import EMPTY, Place, Rule, Tiles
from sharding import collectives
from sharding.mesh import make_mesh
from tests.arrays import put, single


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def formula(rule, q, k, v, offset, first):
    """One query and head at a time: the mixture, and the logarithm of the sum."""
    batch, tokens, heads, _ = q.shape
    first, offset = np.broadcast_to(first, (batch, tokens)), np.broadcast_to(offset, batch)
    out, lse = np.zeros((*q.shape[:3], v.shape[-1])), np.full(q.shape[:3], EMPTY)
    for b, t, h in np.ndindex(batch, tokens, heads):
        g, place = h // (heads // k.shape[2]), offset[b] + t
        begin = max(first[b, t], place - rule.window + 1) if rule.window else first[b, t]
        end = min(place + 1, k.shape[1]) if rule.causal else k.shape[1]
        if begin >= end:
            continue
        scores = k[b, begin:end, g] @ q[b, t, h] * rule.scale
        if rule.soft_cap:
            scores = rule.soft_cap * np.tanh(scores / rule.soft_cap)
        lse[b, t, h] = np.log(np.sum(np.exp(scores)))
        out[b, t, h] = np.exp(scores - lse[b, t, h]) @ v[b, begin:end, g]
    return out, lse


def heads(tokens, keys, count=4, groups=2):
    return [normal(2, tokens, count, 6), normal(2, keys, groups, 6), normal(2, keys, groups, 5)]


def begun(tokens, *borders):
    """For each row and token the beginning of its document, from where documents begin."""
    rows = [np.isin(np.arange(tokens), row) * np.arange(tokens) for row in borders]
    return np.maximum.accumulate(rows, axis=1)


attended = jax.jit(attend_tokens, static_argnums=0)

CASES = {
    "one block": (Rule(0.4), 7, 7, 0, 0),
    "blocks that do not divide": (Rule(0.4, block=4), 13, 13, 0, 0),
    "not causal": (Rule(0.4, causal=False, block=4), 5, 9, 0, 0),
    "after a cache": (Rule(0.4, block=4), 6, 16, 7, 3),
    "a token after a cache": (Rule(0.4, block=4), 1, 16, 9, 0),
    "window": (Rule(0.4, window=3, block=4), 13, 13, 0, 0),
    "window after a cache": (Rule(0.4, window=6, block=4), 9, 14, 5, 2),
    "soft cap": (Rule(0.9, soft_cap=1.5, block=4), 9, 9, 0, 0),
    "no key for some": (Rule(0.4, block=4), 6, 6, 0, 3),
    "documents": (Rule(0.4, block=4), 13, 13, 0, begun(13, (0, 5, 6), (4, 12))),
    "documents of one block": (Rule(0.4), 7, 7, 0, begun(7, (3,), (2, 4))),
    "documents in windows": (Rule(0.4, window=6, block=4), 13, 13, 0, begun(13, (5,), (1, 10))),
    "a row at a time": (Rule(0.4, block=4, at_once=64), 13, 13, 0, 0),
    "a group of heads at a time": (Rule(0.4, block=4, at_once=32), 13, 13, 0, 0),
    "a row at a time, unlike caches": (Rule(0.4, block=4, at_once=64), 6, 16, (9, 2), 0),
    "a group at a time, documents": (
        Rule(0.4, window=6, block=4, at_once=1),
        *(13, 13, 0),
        begun(13, (5,), (1, 10)),
    ),
    "documents after a cache": (Rule(0.4, block=4), 6, 16, 9, begun(16, (3,), (2, 11))[:, 9:15]),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@every_case
def test_it_is_the_formula(case):
    rule, tokens, keys, offset, first = case
    offset = np.array(offset, np.int32)
    arrays = heads(tokens, keys)
    out, lse = attended(rule, *single(arrays), offset, first)
    want_out, want_lse = formula(rule, *arrays, offset, first)
    np.testing.assert_allclose(out, want_out, atol=2e-6)
    np.testing.assert_allclose(lse, want_lse, atol=2e-6)


@every_case
def test_its_gradients_are_those_of_the_formula(case):
    rule, tokens, keys, offset, first = case
    offset = np.array(offset, np.int32)
    arrays = heads(tokens, keys)
    weights, lse_weights = normal(2, tokens, 4, 5, seed=1), normal(2, tokens, 4, seed=1)

    def loss(function, *arrays):
        out, lse = function(rule, *arrays, offset, first)
        return (out * weights).sum() + (lse * (lse > EMPTY / 2) * lse_weights).sum()

    pull = jax.jit(jax.grad(lambda *arrays: loss(attend_tokens, *arrays), argnums=(0, 1, 2)))
    gradients = pull(*single(arrays))
    step = 1e-6
    for i, gradient in enumerate(gradients):
        for seed in range(2):  # along random directions, by differences in float64
            direction = normal(*arrays[i].shape, seed=seed)
            ends = [
                [*arrays[:i], arrays[i] + change * direction, *arrays[i + 1 :]]
                for change in (step, -step)
            ]
            slope = (loss(formula, *ends[0]) - loss(formula, *ends[1])) / (2 * step)
            np.testing.assert_allclose(np.vdot(gradient, direction), slope, rtol=2e-5, atol=2e-5)


def test_two_sets_of_keys_merge_into_both():
    rule = Rule(0.4, causal=False)
    q, k, v = single(heads(5, 9))

    @jax.jit
    def merged(q, k, v):
        parts = [attend_tokens(rule, q, k[:, s], v[:, s]) for s in (slice(0, 4), slice(4, 9))]
        return merge(*parts)

    for found, want in zip(merged(q, k, v), attended(rule, q, k, v), strict=True):
        np.testing.assert_allclose(found, want, atol=1e-6)


def test_a_sink_is_one_more_key_without_a_value():
    rule = Rule(1.0, causal=False)
    q, k, v = heads(5, 9)
    sinks = normal(4)
    attention = attended(rule, *single([q, k, v]))
    found = jax.jit(with_sinks)(*attention, put(sinks, jnp.float32))
    more = np.concatenate([q, np.broadcast_to(sinks[:, None], (*q.shape[:3], 1))], axis=-1)
    keys = np.concatenate([k, np.zeros((*k.shape[:3], 1))], axis=-1)
    sink = np.zeros((2, 1, 2, 7))
    sink[..., -1] = 1
    values = np.concatenate([v, np.zeros((2, 1, 2, 5))], axis=1)
    want, _ = formula(rule, more, np.concatenate([keys, sink], axis=1), values, 0, 0)
    np.testing.assert_allclose(found, want, atol=2e-6)


def test_hidden_blocks_are_not_looked_at():
    tiles = Tiles(Rule(1.0, window=4, block=4), 16, 16, (1, 1, 1))
    assert [tuple(map(int, tiles.seen(Place(0, 0, i), 0, 0))) for i in range(4)] == [
        (0, 1),
        (0, 2),
        (1, 3),
        (2, 4),
    ]
    causal = Tiles(Rule(1.0, block=4), 1, 64, (1, 1, 1))
    assert tuple(map(int, causal.seen(Place(0, 0, 0), 9, 0))) == (0, 3)


@pytest.mark.parametrize(
    ("most", "together"),
    {
        0: (6, 4),
        6 * 4 * 32: (6, 4),
        23 * 32: (3, 4),
        4 * 32: (1, 4),
        3 * 32: (1, 2),
        1: (1, 1),
    }.items(),
)
def test_as_many_rows_and_groups_at_once_as_are_told(most, together):
    rule = Rule(1.0, block=4, at_once=most)
    assert Tiles(rule, 16, 16, (6, 4, 2)).together == together


PACKINGS = {
    "one document": (begun(64, *[()] * 8), 136),
    "eight documents of an eighth": (begun(64, *[range(0, 64, 8)] * 8), 24),
    "eight documents, other ones in each row": (
        begun(64, *(np.random.default_rng(row).choice(64, 8, replace=False) for row in range(8))),
        71,
    ),
}
"""Eight rows of sixteen blocks, and how many blocks of products each packing needs."""


def test_blocks_that_no_document_joins_are_not_computed(monkeypatch):
    """Counted as they are computed, forward and backward."""
    computed, plain = collections.Counter(), Tiles.scores

    def counted(tiles, q, k, see):
        jax.debug.callback(lambda: computed.update(["blocks"]))
        return plain(tiles, q, k, see)

    monkeypatch.setattr(Tiles, "scores", counted)
    rule, q = Rule(1.0, block=4), np.ones((8, 64, 1, 2), np.float32)
    pull = jax.jit(jax.grad(lambda q, first: attend_tokens(rule, q, q, q, 0, first)[0].sum()))
    found = {}
    for name, (first, _) in PACKINGS.items():
        computed.clear()
        jax.block_until_ready(pull(q, first))
        jax.effects_barrier()
        found[name] = computed["blocks"] / 2
    assert found == {name: blocks for name, (_, blocks) in PACKINGS.items()}


@pytest.mark.parametrize("split", [False, True], ids=["one device", "ring"])
def test_without_documents_a_program_knows_nothing_of_them(split):
    """Numbers for each token are in the program with documents, and not in that without."""
    rule, spec = Rule(1.0, block=4), P(None, "seq")
    if split:
        program = jax.shard_map(
            lambda q, first: ring_attention(rule, q, q, q, "seq", first=first),
            mesh=make_mesh(seq=2),
            in_specs=(spec, spec),
            out_specs=spec,
        )
    else:

        def program(q, first):
            return attend_tokens(rule, q, q, q, 0, 0 if first is None else first)

    q = jax.ShapeDtypeStruct((2, 16, 2, 4), jnp.float32)
    for first in (None, jax.ShapeDtypeStruct((2, 16), jnp.int32)):
        text = str(jax.make_jaxpr(program)(q, first))
        assert bool(re.search(r"i32\[2,\d", text)) == (first is not None)


def test_memory_grows_with_the_tokens_and_not_with_their_square():
    def temporary(tokens):
        array = jax.ShapeDtypeStruct((1, tokens, 1, 8), jnp.float32)
        loss = jax.grad(
            lambda q, k, v: attend_tokens(Rule(1.0), q, k, v)[0].sum(), argnums=(0, 1, 2)
        )
        compiled = jax.jit(loss).lower(array, array, array).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = temporary(2048), temporary(16384)
    assert large < 8 * small


@pytest.mark.parametrize("window", [0, 3])
def test_the_program_of_jax_gives_the_same(window):
    rule = Rule(0.3, window=window)
    q, k, _ = single(heads(9, 9))
    v = put(normal(*k.shape, seed=5), jnp.float32)
    run = jax.jit(fused, static_argnums=(0, 4))
    own, of_jax = (run(rule, q, k, v, backend) for backend in ("cpu", "tpu"))
    np.testing.assert_allclose(own, of_jax, atol=2e-6)


@pytest.mark.parametrize(
    ("backend", "dtype", "tokens", "rule", "want"),
    [
        ("cpu", "bfloat16", 64, Rule(1.0), "blocks"),
        ("gpu", "bfloat16", 4096, Rule(1.0), "cudnn"),
        ("gpu", "bfloat16", 4096, Rule(1.0, window=256), "cudnn"),
        ("gpu", "bfloat16", 4096, Rule(1.0, soft_cap=30.0), "blocks"),
        ("gpu", "float32", 4096, Rule(1.0), "blocks"),
        ("gpu", "float32", 256, Rule(1.0), "xla"),
        ("tpu", "bfloat16", 200, Rule(1.0), "xla"),
        ("tpu", "bfloat16", 200, Rule(1.0, soft_cap=30.0), "blocks"),
        ("tpu", "bfloat16", 256, Rule(1.0, window=64, soft_cap=30.0), "splash"),
        ("tpu", "float32", 4096, Rule(1.0), "splash"),
        ("tpu", "bfloat16", 4096, Rule(1.0, causal=False), "blocks"),
    ],
)
def test_the_machine_decides_the_program(backend, dtype, tokens, rule, want):
    assert implementation(backend, rule, tokens, tokens, 64, dtype) == want


def test_rotary_turns_pairs_so_that_products_tell_distances_alone():
    x = normal(1, 1, 1, 6)
    turn = jax.jit(rotary, static_argnums=2)
    turned = {t: np.asarray(turn(put(x, jnp.float32), put([t]), 100.0)) for t in (0, 3, 5, 8)}
    np.testing.assert_allclose(turned[0], x, atol=1e-6)
    for i in range(3):
        angle = 5 * 100.0 ** (-i / 3)
        pair = complex(x[0, 0, 0, i], x[0, 0, 0, i + 3]) * np.exp(1j * angle)
        np.testing.assert_allclose(turned[5][0, 0, 0, i], pair.real, atol=1e-5)
        np.testing.assert_allclose(turned[5][0, 0, 0, i + 3], pair.imag, atol=1e-5)
    near, far = (np.vdot(turned[a], turned[b]) for a, b in ((0, 3), (5, 8)))
    np.testing.assert_allclose(near, far, rtol=1e-5)


@pytest.mark.parametrize(
    ("shards", "documents"), [(2, False), (8, False), (2, True)], ids=["2", "8", "2 of documents"]
)
def test_every_device_of_a_ring_computes_as_many_blocks(shards, documents, monkeypatch):
    """Counted as they are computed, forward and backward; blocks on the diagonal are halves.

    Of two documents, each half of the sequence, only pairs of blocks of one are computed.
    """
    computed = collections.Counter()
    plain = Tiles.scores

    def counted(tiles, q, k, see):
        share = jnp.mean(see.astype(jnp.float32))
        jax.debug.callback(
            lambda device, share: computed.update({int(device): 1 + int(share == 1)}),
            jax.lax.axis_index("seq"),
            share,
        )
        return plain(tiles, q, k, see)

    monkeypatch.setattr(Tiles, "scores", counted)
    mesh, half = make_mesh(seq=shards), 2
    q = put(normal(1, 2 * shards * half, 1, 4), jnp.float32)
    rule = Rule(1.0, block=half)
    spec = P(None, "seq")
    first = put(begun(8, (4,)) if documents else [])

    def own(q, k, v):
        begins = collectives.own_shard(first, "seq", dim=1) if documents else None
        return ring_attention(rule, q, k, v, "seq", first=begins)

    ring = jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(spec, spec, spec),
        out_specs=spec,
    )
    halves = 2 * (2 * shards - 1) + 2  # two whole blocks a step, and one more, halved, at first
    halves = 4 if documents else halves  # two halved ones, and a whole one between them
    jax.block_until_ready(jax.jit(ring)(q, q, q))
    jax.effects_barrier()
    assert computed == dict.fromkeys(range(shards), 2 * halves // 2)
    computed.clear()
    jax.block_until_ready(jax.jit(jax.grad(lambda *a: ring(*a).sum(), argnums=(0, 1, 2)))(q, q, q))
    jax.effects_barrier()
    assert computed == dict.fromkeys(range(shards), 2 * halves)


def test_the_blocks_of_a_processor_give_what_one_block_gives():
    """Of tokens that fill no whole number of them, in documents too."""
    q, k, v = single(normal(3, 2, 300, 2, 8))
    first = put(begun(300, (0, 130, 131), (0, 290)))
    run = jax.jit(fused, static_argnums=(0, 4))
    for starts in (None, first):
        one = attended(Rule(0.4), q, k, v, 0, 0 if starts is None else starts)[0]
        found = run(Rule(0.4), q, k, v, "cpu", starts)
        np.testing.assert_allclose(found, one, atol=2e-6)
