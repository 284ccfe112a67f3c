"""The kernels of JAX for TPUs, interpreted: the formula, its derivative, the types of a mesh."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gam_jax.ops.splash import _kernel, splash, suits
from gam_jax.ops.tiles import Rule
from sharding import collectives
from sharding.mesh import make_mesh
from sharding.opaque import opaque
from sharding.products import RECOMPUTED, product_flops
from tests.arrays import put

TOKENS, HEADS, GROUPS, SIZE = 384, 2, 1, 8
CASES = {
    "causal": (Rule(0.4), None),
    "window and cap": (Rule(0.9, window=100, soft_cap=1.5), None),
    "documents": (Rule(0.4), ((0, 130, 131), (0, 300))),
}


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def arrays(seed=0):
    queries = normal(2, TOKENS, HEADS, SIZE, seed=seed)
    return [queries, *(normal(2, TOKENS, GROUPS, SIZE, seed=seed + i) for i in (1, 2))]


def first_of(borders):
    rows = [np.isin(np.arange(TOKENS), row) * np.arange(TOKENS) for row in borders]
    return np.maximum.accumulate(rows, axis=1)


def formula(rule, first, q, k, v):
    """The whole matrix of scores, in the dtype of what is given."""
    k, v = (np.repeat(x, HEADS // GROUPS, axis=2) for x in (k, v))
    scores = np.einsum("bthk,bshk->bhts", q, k) * rule.scale
    if rule.soft_cap:
        scores = rule.soft_cap * np.tanh(scores / rule.soft_cap)
    query, key = np.arange(TOKENS)[:, None], np.arange(TOKENS)
    seen = (key <= query) & ((query - key < rule.window) if rule.window else True)
    seen = seen[None] & (
        key >= (0 if first is None else first)[..., None] if first is not None else True
    )
    weights = np.exp(scores) * seen[:, None]
    return np.einsum("bhts,bshk->bthk", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize(
    ("asked", "tokens", "size"),
    [(0, 1024, 512), (0, 384, 128), (128, 1024, 128), (1024, 2048, 1024), (100, 1024, 512)],
)
def test_blocks_are_those_asked_for_where_the_kernels_can_have_them(asked, tokens, size):
    kernel = _kernel(Rule(1.0).in_blocks(asked), HEADS, tokens, interpret=True)
    assert {kernel.kwargs["block_sizes"].block_q, kernel.kwargs["block_sizes"].block_kv} == {size}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_values_and_derivatives_are_the_formula_s_on_a_mesh(case):
    """The derivative along a direction, by the difference of two values in float64."""
    rule, borders = case
    first = None if borders is None else first_of(borders)
    given, along, weights = arrays(), arrays(seed=7), normal(2, TOKENS, HEADS, SIZE, seed=9)
    mesh = make_mesh(data=2, devices=jax.devices()[:2])
    documents = () if first is None else (put(first, jnp.int32),)

    def own(weights, qkv, *documents):
        def total(*qkv):
            y = splash(rule, *qkv, *documents, interpret=True)
            return jnp.sum(y * weights), y

        (_, y), found = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(*qkv)
        return y, found

    split = P("data")
    program = jax.shard_map(
        own, mesh=mesh, in_specs=(split,) * (2 + len(documents)), out_specs=split
    )
    single = [put(x, jnp.float32) for x in given]
    y, found = jax.jit(program)(put(weights, jnp.float32), single, *documents)
    np.testing.assert_allclose(y, formula(rule, first, *given), atol=3e-6)
    step = 1e-5
    ends = [
        np.sum(
            weights * formula(rule, first, *(x + s * d for x, d in zip(given, along, strict=True)))
        )
        for s in (step, -step)
    ]
    slope = sum(np.vdot(g, d) for g, d in zip(found, along, strict=True))
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * step), rtol=2e-5)


def test_what_the_kernels_do_not_compute_is_left_to_others():
    assert suits(Rule(1.0), 256, 256)
    assert not suits(Rule(1.0), 200, 200)
    assert not suits(Rule(1.0, causal=False), 256, 256)
    assert not suits(Rule(1.0), 128, 256)


def squares(scale, x, y):
    return (scale * x * x, jnp.sin(x) @ y)


def test_a_program_behind_the_primitive_is_itself():
    """Its values, its derivative and its map over an axis, with and without a mesh."""
    x, y = (put(normal(4, 4, seed=seed), jnp.float32) for seed in (1, 2))
    scale = put(3)
    hidden = functools.partial(opaque, squares, (scale,), flops=(128, 256, 0))

    def plain(arrays):
        return squares(scale, *arrays)

    def total(fn, x, y):
        return sum(jnp.sum(out) for out in fn((x, y)))

    def everything(fn):
        """Values, values of two, and slopes."""
        many = jax.vmap(lambda x: fn((x, y)))(jnp.stack([x, y]))
        return fn((x, y)), many, jax.grad(functools.partial(total, fn), (0, 1))(x, y)

    found, want = (jax.jit(functools.partial(everything, fn))() for fn in (hidden, plain))
    for of_found, of_want, rtol in zip(found, want, (1e-6, 1e-6, 1e-5), strict=True):
        for one, other in zip(of_found, of_want, strict=True):
            np.testing.assert_allclose(one, other, rtol=rtol)


def test_its_results_vary_as_its_arguments_do():
    mesh, split = make_mesh(data=2, devices=jax.devices()[:2]), P("data")

    def own(x, y):
        (found,) = opaque(lambda x, y: (x * y,), (), (x, y), (0, 0, 0))
        return collectives.varying(found), jax.grad(lambda y: jnp.sum(x * y))(y)

    seen = []

    def program(x, y):
        names, slope = own(x, y)
        seen.append(names)
        return slope

    x = np.arange(4, dtype=np.float32)
    mapped = jax.shard_map(program, mesh=mesh, in_specs=(split, P()), out_specs=P())
    slope = jax.jit(mapped)(x, np.ones(2, np.float32))
    assert seen[0] == {"data"}
    np.testing.assert_array_equal(slope, x[:2] + x[2:])  # a whole argument's gradient is a sum


def test_its_products_are_counted_as_it_says():
    q = jax.ShapeDtypeStruct((2, 256, 4, 8), jnp.float32)
    rule, pairs = Rule(1.0), 2 * 2 * 256 * 4 * 8 * 256
    forward = jax.make_jaxpr(functools.partial(splash, rule))(q, q, q).jaxpr
    assert product_flops(forward).total() == 2 * pairs
    loss = jax.grad(lambda *own: splash(rule, *own).sum(), (0, 1, 2))
    both = product_flops(jax.make_jaxpr(loss)(q, q, q).jaxpr)
    assert both == {"": 6 * pairs, RECOMPUTED: 3 * pairs}
