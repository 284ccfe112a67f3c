"""What a program reads and writes, its arguments too, is what can be counted by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.interpreters import partial_eval
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from gam_jax.planning.passes import follow
from sharding.products import turns

ROWS, WIDTH, PLACES = 8, 16, 64
ARRAY, WEIGHTS = ROWS * WIDTH * 4, WIDTH * WIDTH * 4
X, W, CACHE = (
    np.ones(shape, np.float32) for shape in ((ROWS, WIDTH), (WIDTH, WIDTH), (PLACES, WIDTH))
)


def of(function, *args, growing=()):
    """What a function does."""
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    live, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
    return follow(live, {}, growing)


def test_a_product_reads_its_weights_too():
    found = of(lambda x, w: x @ w, X, W).fixed
    assert found.product_bytes == ARRAY + WEIGHTS + ARRAY
    assert found.other_bytes == 0
    assert found.flops == {"float32": 2 * ROWS * WIDTH**2}


def test_what_is_computed_element_by_element_is_read_once_and_written_where_it_is_needed():
    found = of(lambda x, w: jnp.tanh(2 * x + x) @ w, X, W).fixed
    assert found.other_bytes == 2 * ARRAY
    assert found.product_bytes == ARRAY + WEIGHTS + ARRAY


def test_what_several_read_of_several_arrays_is_written_once():
    """As a residual stream: read by what follows, not computed again from all before."""

    def layers(x, w, count):
        for _ in range(count):
            x = x + jnp.tanh(x) @ w
        return x

    sizes = [of(lambda x, w, n=n: layers(x, w, n), X, W).fixed.other_bytes for n in (2, 3, 4)]
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0]


def test_what_is_written_in_place_counts_as_what_is_written():
    row = jnp.ones((1, WIDTH))
    found = of(lambda c, r: lax.dynamic_update_slice(c, r, (3, 0)), CACHE, row).fixed
    assert found.other_bytes == 2 * WIDTH * 4  # the row is read and written
    found = of(lambda c, r, i: c.at[i].set(r), CACHE, jnp.ones(WIDTH), jnp.int32(3)).fixed
    assert found.other_bytes < 4 * WIDTH * 4


def test_of_what_is_sliced_a_part_is_read():
    found = of(lambda c, i: 2 * lax.dynamic_slice_in_dim(c, i, ROWS), CACHE, jnp.int32(0)).fixed
    assert found.other_bytes == pytest.approx(2 * ARRAY, abs=64)
    found = of(lambda c, i: 2 * c[i], CACHE, jnp.arange(ROWS)).fixed
    assert found.other_bytes == pytest.approx(2 * ARRAY, abs=64)


def test_a_choice_that_data_make_counts_as_what_is_not_asked_for():
    def asked(x, w, flag):
        return lax.cond(flag, lambda: x @ w, lambda: jnp.zeros_like(x))

    assert of(asked, X, W, jnp.bool_(False)).fixed.flops == {}


@pytest.mark.parametrize("by_place", [True, False])
def test_of_what_a_devices_place_alone_chooses_the_branch_that_moves_most_counts(by_place):
    mesh = AbstractMesh((4,), ("data",), axis_types=(AxisType.Auto,))

    def inside(x, w, flag):
        first = lax.axis_index("data") == 3 if by_place else flag[0] > 0
        return lax.cond(first, lambda x: x @ w, lambda x: x, x)

    specs = (P("data"), P(), P())
    whole = jax.shard_map(inside, mesh=mesh, in_specs=specs, out_specs=P("data"), check_vma=False)
    jaxpr = jax.make_jaxpr(whole)(jnp.ones((4 * ROWS, WIDTH)), W, jnp.ones(1)).jaxpr
    (call,) = (eqn for eqn in jaxpr.eqns if eqn.primitive.name == "shard_map")
    found = follow(call.params["jaxpr"], {"data": 4}).fixed
    assert found.flops == ({"float32": 2 * ROWS * WIDTH**2} if by_place else {})


def test_what_a_loop_s_turn_chooses_counts_as_what_is_not_asked_for():
    def some(x, w):
        turn = lambda h, i: (lax.cond(i == 1, lambda: h @ w, lambda: h), None)  # noqa: E731
        return lax.scan(turn, x, jnp.arange(3))[0]

    assert of(some, X, W).fixed.flops == {}


def test_a_loop_over_places_that_fill_counts_apart():
    def read(cache, count):
        with turns(PLACES // ROWS):
            return lax.fori_loop(
                0,
                count,
                lambda i, y: y + lax.dynamic_slice_in_dim(cache, i * ROWS, ROWS).sum(0),
                jnp.zeros(WIDTH),
            )

    found = of(read, CACHE, jnp.int32(4), growing=(0,))
    assert found.turns == PLACES // ROWS
    assert found.most.other_bytes >= found.fixed.other_bytes + CACHE.size * 4
    assert found.fixed.other_bytes < 2 * ARRAY
    other = of(read, CACHE, jnp.int32(4))
    assert other.turns == 0
    assert other.fixed.other_bytes >= CACHE.size * 4


def test_a_loop_reads_its_constants_in_each_turn_and_a_part_of_what_it_takes_in_turn():
    many = jnp.ones((5, WIDTH, WIDTH))
    found = of(lambda x, m: lax.scan(lambda h, w: (h @ w, None), x, m)[0], X, many).fixed
    assert found.product_bytes == 5 * (2 * ARRAY + WEIGHTS)
    found = of(lambda x, w: lax.scan(lambda h, _: (h @ w, None), x, length=5)[0], X, W).fixed
    assert found.product_bytes == 5 * (2 * ARRAY + WEIGHTS)
