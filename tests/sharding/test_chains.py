"""Turns of loops that must follow one another are counted; those side by side are not added up."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from sharding import collectives
from sharding.chains import longest_chain, longest_sums
from sharding.products import turns


def loop(x, length, inner=lambda x: x):
    return lax.scan(lambda x, _: (jnp.sin(inner(x)), None), x, None, length=length)[0]


def asked(x):
    with turns(6):
        return lax.while_loop(lambda x: jnp.sum(x) < 9, lambda x: x + 1, x)


PROGRAMS = {
    "no loop": (jnp.sin, 0),
    "one": (lambda x: loop(x, 5), 5),
    "one after another": (lambda x: loop(loop(x, 5), 3), 8),
    "side by side": (lambda x: loop(x, 5) + loop(x, 3), 5),
    "one in another": (lambda x: loop(x, 5, lambda x: loop(x, 3)), 15),
    "in a function": (lambda x: jax.jit(lambda x: loop(x, 5))(x) + 1, 5),
    "a branch": (lambda x: lax.cond(x[0] > 0, lambda x: loop(x, 5), jnp.sin, x), 5),
    "whose result nobody needs": (lambda x: (loop(x, 5), x)[1], 0),
    "and back": (jax.grad(lambda x: jnp.sum(loop(x, 5))), 10),
    "a while loop that says so": (asked, 6),
}


@pytest.mark.parametrize(("program", "want"), PROGRAMS.values(), ids=PROGRAMS)
def test_the_longest_way_is_found(program, want):
    assert longest_chain(jax.make_jaxpr(program)(np.ones(3, np.float32)).jaxpr) == want


def test_a_while_loop_that_does_not_say_how_often_it_turns_is_refused():
    def program(x):
        return lax.while_loop(lambda x: jnp.sum(x) < 9, lambda x: x + 1, x)

    with pytest.raises(ValueError, match="does not say how often it turns"):
        longest_chain(jax.make_jaxpr(program)(np.ones(3, np.float32)).jaxpr)


def summed(x, axis="a"):
    return collectives.as_varying(lax.psum(x, axis), axis)


SUMMED = {
    "none": (jnp.sin, 0),
    "one after another": (lambda x: summed(summed(x)), 2),
    "side by side": (lambda x: summed(x) + summed(2 * x), 1),
    "over another axis": (lambda x: summed(x, "b") + summed(x), 1),
    "in a loop": (lambda x: lax.scan(lambda x, _: (summed(x), None), x, None, length=5)[0], 5),
    "to shards": (lambda x: summed(lax.psum_scatter(x, "a", tiled=True)), 2),
    "a loop without": (lambda x: loop(x, 5), 0),
}


@pytest.mark.parametrize(("program", "want"), SUMMED.values(), ids=SUMMED)
def test_of_sums_those_that_wait_for_each_other_are_counted(program, want):
    mesh = jax.make_mesh((2, 1), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    spec = jax.sharding.PartitionSpec(("a", "b"))
    run = jax.shard_map(program, mesh=mesh, in_specs=spec, out_specs=spec)
    assert longest_sums(jax.make_jaxpr(run)(np.ones(8, np.float32)).jaxpr, "a") == want
