"""What a program writes and holds, read from its jaxpr, is what can be counted by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.interpreters import partial_eval

from gam_jax.planning.live import lives
from sharding.products import product_flops

ROWS, WIDTH, LAYERS = 8, 16, 5
ARRAY = ROWS * WIDTH * 4
X, W = np.ones((ROWS, WIDTH), np.float32), np.ones((WIDTH, WIDTH), np.float32)


def of(function, *args):
    """The lives of a function's arrays."""
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    return lives(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def test_what_is_computed_element_by_element_is_written_once_in_the_end():
    found = of(lambda x: jnp.tanh(2 * x + 1) * x, X)
    assert found.sizes.tolist() == [ARRAY]
    assert found.peak == ARRAY


def test_products_are_added_to_one_array_one_by_one():
    """The gradient by what three products read: the sum, and what one of them reads."""

    def added(x, w):
        total = x @ w
        for factor in (2.0, 3.0):
            total = total + (factor * x) @ w
        return jnp.sin(total) @ w

    found = of(added, X, W)
    assert found.peak == 2 * ARRAY
    assert found.flops.sum() == 4 * 2 * ROWS * WIDTH**2
    twice = of(lambda x, w: (a := x @ w) @ w + (a + jnp.sin(a) @ w), X, W)
    assert twice.peak == 4 * ARRAY  # a is read again: it, its sine, and the product of each


def test_what_is_computed_element_by_element_lies_where_that_lay():
    found = of(lambda x, w: jnp.tanh(x @ w) @ w, X, W)
    assert found.peak == 2 * ARRAY  # the tanh in place of its product, and the second product
    found = of(lambda x, w: (jnp.tanh(a := x @ w).T @ jnp.sin(a.T).T) @ w, X, W)
    assert found.alive.sum(axis=1).max() == 3  # a stays beside its tanh for the transposed sine


def test_what_is_summed_is_not_written():
    assert of(lambda x: jnp.sum(x * x), X).sizes.tolist() == [4]


def test_a_product_reads_and_writes_arrays():
    found = of(lambda x, w: jnp.sin(x @ w) @ w, X, W)
    assert found.sizes.tolist() == [ARRAY] * 3  # of the first product, its sine, of the second
    assert found.peak == 2 * ARRAY  # the sine may lie where the product lay, not beside the next
    assert found.flops.tolist() == [2 * ROWS * WIDTH**2] * 2
    assert found.dtypes == ("float32",) * 2


def loop(x, w):
    """A loop whose backward pass needs what every turn has seen."""
    return jnp.sum(lax.scan(lambda h, _: (jnp.tanh(h @ w), None), x, length=LAYERS)[0])


def test_a_loop_stacks_what_its_backward_pass_reads():
    found = of(jax.grad(loop, argnums=(0, 1)), X, W)
    assert ARRAY * LAYERS in found.sizes[found.stacked].tolist()
    assert found.peak >= found.sizes[found.stacked].max()


@pytest.mark.parametrize("remat", [False, True])
def test_products_of_loops_are_counted_as_often_as_they_turn(remat):
    body = jax.checkpoint(loop) if remat else loop
    gradient = jax.grad(body, argnums=(0, 1))
    found = of(gradient, X, W)
    assert found.flops.sum() == product_flops(jax.make_jaxpr(gradient)(X, W).jaxpr).total()


def test_a_function_that_is_called_twice_gives_two_arrays():
    twice = jax.jit(lambda x, w: jnp.sin(x @ w))
    found = of(lambda x, w: (a := twice(x, w)) @ w + twice(a, w) @ w, X, W)
    assert found.sizes.tolist() == [ARRAY] * len(found.sizes)
    plain = of(lambda x, w: (a := jnp.sin(x @ w)) @ w + jnp.sin(a @ w) @ w, X, W)
    assert found.sizes.tolist() == plain.sizes.tolist()
    assert found.peak == plain.peak


def test_calls_are_read_through():
    inner = jax.jit(lambda x: jnp.exp(x) + 1)
    assert of(lambda x: inner(x) * 2, X).sizes.tolist() == [ARRAY]


def test_of_a_choice_the_branch_that_multiplies_most_counts():
    def chosen(number, x, w):
        return lax.switch(number, [lambda x: x @ w, lambda x: jnp.sin(x @ w) @ w, jnp.sin], x)

    found = of(chosen, jnp.int32(0), X, W)
    alone = of(lambda x, w: jnp.sin(x @ w) @ w, X, W)
    assert sum(found.flops) == sum(alone.flops)
    assert found.operands @ found.sizes == alone.operands @ alone.sizes


def test_calls_of_one_function_are_told_apart():
    """As equal blocks are, which are traced once: each call writes arrays of its own."""

    def block(x, w):
        return x + jnp.sin(x @ w) @ w

    def twice(block):
        return lambda x, w: block(block(x, w) @ w, w)

    once, apart = of(twice(jax.jit(block)), X, W), of(twice(block), X, W)
    assert once.sizes.tolist() == apart.sizes.tolist()
    assert once.moved.tolist() == apart.moved.tolist()
    assert once.peak == apart.peak
