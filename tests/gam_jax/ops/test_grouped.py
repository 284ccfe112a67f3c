"""Products by group are those of a loop over rows, and cost what their rows cost."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gam_jax.ops.grouped import (
    collect,
    grouped_product,
    grouped_product_transposed,
    make_groups,
    ranks,
    spread,
)
from sharding.products import product_flops

METHODS = {"ragged": {"method": "ragged"}, "blocks": {"method": "blocks", "block": 4}}
TOKENS, CHOSEN, GROUPS, WIDTH, HIDDEN = 12, 2, 5, 6, 7


def problem(seed, tokens=TOKENS, chosen=CHOSEN, groups=GROUPS, width=WIDTH, hidden=HIDDEN):
    """Inputs, weights in and out, biases, owners (some are of no group) and mixing weights."""
    random = np.random.default_rng(seed)
    shapes = (tokens, width), (groups, width, hidden), (groups, width, hidden), (groups, hidden)
    x, w_in, w_out, bias = (random.normal(size=shape) for shape in shapes)
    owner = random.integers(0, random.integers(1, groups + 2), (tokens, chosen))
    return x, w_in, w_out, bias, owner, random.normal(size=(tokens, chosen))


@functools.partial(jax.jit, static_argnames=("method", "block"))
def mixed(x, w_in, w_out, bias, weights, owner, method="auto", block=0):
    """sum_k weights_k tanh(x W_in + b) W_out^T, each of the group that owns the choice."""
    groups = make_groups(owner.reshape(-1), len(w_in), method=method, block=block)
    place = groups.place.reshape(owner.shape)
    rows = spread(x, groups.source, place)
    hidden = jnp.tanh(grouped_product(groups, rows, w_in, bias))
    rows = grouped_product_transposed(groups, hidden, w_out)
    return collect(rows, weights, groups.source, place)


def loop(x, w_in, w_out, bias, weights, owner):
    """The same, one choice at a time."""
    rows = []
    for token, owners in enumerate(owner):
        row = 0 * x[token]
        for k, group in enumerate(owners):
            if group < len(w_in):
                hidden = jnp.tanh(x[token] @ w_in[group] + bias[group])
                row = row + weights[token, k] * (w_out[group] @ hidden)
        rows.append(row)
    return jnp.stack(rows)


@given(seed=st.integers(0, 99))
def test_both_methods_equal_a_loop_over_choices(seed):
    x, w_in, w_out, bias, owner, weights = problem(seed)
    want = np.zeros_like(x)
    for token, k in np.ndindex(*owner.shape):
        if (group := owner[token, k]) < GROUPS:
            hidden = np.tanh(x[token] @ w_in[group] + bias[group])
            want[token] += weights[token, k] * (w_out[group] @ hidden)
    args = [jnp.asarray(a, jnp.float32) for a in (x, w_in, w_out, bias, weights)]
    for options in METHODS.values():
        found = mixed(*args, jnp.asarray(owner), **options)
        np.testing.assert_allclose(found, want, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
def test_gradients_are_those_of_the_loop(options):
    x, w_in, w_out, bias, owner, weights = problem(3)
    args = [jnp.asarray(a, jnp.float32) for a in (x, w_in, w_out, bias, weights)]

    def of(function):
        loss = lambda *args: jnp.sum(jnp.sin(function(*args)))  # noqa: E731
        return jax.jit(jax.grad(loss, argnums=tuple(range(5))))(*args)

    found = of(lambda *args: mixed(*args, jnp.asarray(owner), **options))
    want = of(lambda *args: loop(*args, owner))
    chex.assert_trees_all_close(found, want, atol=1e-5, rtol=1e-5)


def test_blocks_cost_what_their_rows_cost_and_ragged_products_on_cpu_as_many_times_as_groups():
    """Forward and backward: six products of choices x width x hidden."""
    sizes = {"tokens": 512, "chosen": 2, "groups": 8, "width": 16, "hidden": 32}
    x, w_in, w_out, bias, owner, weights = problem(0, **sizes)
    args = [jnp.asarray(a, jnp.float32) for a in (x, w_in, w_out, bias, weights)]

    def step(method):
        def loss(*args):
            return jnp.sum(jnp.sin(mixed(*args, jnp.asarray(owner), method=method)))

        return jax.grad(loss, argnums=(0, 1, 2))

    true = 6 * 2 * owner.size * 16 * 32
    blocks = jax.make_jaxpr(step("blocks"))(*args).jaxpr
    assert true <= product_flops(blocks).total() < 1.5 * true
    compiled = jax.jit(step("ragged")).lower(*args).compile()
    assert compiled.cost_analysis()["flops"] > 7 * true


@functools.partial(jax.jit, static_argnames="block")
def ordered(owner, block):
    return make_groups(owner, 4, method="blocks", block=block), ranks(owner, 4)


@given(owner=st.lists(st.integers(0, 4), min_size=24, max_size=24), block=st.sampled_from([2, 8]))
def test_every_entry_of_a_group_stands_once_in_blocks_of_that_group(owner, block):
    groups, (sizes, rank) = jax.tree.map(np.asarray, ordered(jnp.asarray(owner), block))
    stood = 0
    for row, entry in enumerate(groups.source.tolist()):
        if entry < len(owner):
            assert groups.place[entry] == row
            assert groups.owner[row // block] == owner[entry]
            assert rank[entry] == owner[:entry].count(owner[entry])
            stood += 1
    assert stood == sum(groups.sizes.tolist()) == sum(sizes.tolist())
    assert stood == sum(entry < 4 for entry in owner)
    assert all(groups.place[i] == len(groups.source) for i, o in enumerate(owner) if o == 4)


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match="method 'sparse' is not one of auto, blocks, ragged"):
        make_groups(jnp.zeros(3, jnp.int32), 2, method="sparse")
