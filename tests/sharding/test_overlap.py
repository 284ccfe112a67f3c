"""A product and its collective in steps of a ring: the same numbers, bytes and gradients."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from sharding import cost
from sharding.mesh import make_mesh
from sharding.messages import inner_jaxprs, messages_of, totals
from sharding.overlap import RING, TWO_WAY, gather_map, map_scatter
from tests.arrays import put

ROWS, TOKENS, WIDTH, UNITS = 2, 3, 8, 6
"""Tokens of one device: odd, so that halves differ."""
CASES = [(2, RING), (3, TWO_WAY), (5, RING), (8, TWO_WAY)]

TOKENS_SPLIT, UNITS_SPLIT, IN, OUT = (
    P(None, "tensor"),
    P(None, None, "tensor"),
    P(None, "tensor"),
    P("tensor"),
)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def product(weight, x):
    return x @ weight


def sharded(function, devices, specs, out):
    mesh = make_mesh(tensor=devices, devices=jax.devices()[:devices])
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out, check_vma=True)


def gathering(devices, way):
    """[B, T, D] split over tokens times [D, F] split over F."""
    if way is None:

        def run(x, weight):
            return product(weight, lax.all_gather(x, "tensor", axis=1, tiled=True))
    else:

        def run(x, weight):
            return gather_map(product, weight, x, "tensor", way)

    return sharded(run, devices, (TOKENS_SPLIT, IN), UNITS_SPLIT)


def scattering(devices, way):
    """[B, T, F] split over F times [F, D] split over F."""

    def run(x, weight):
        return map_scatter(product, weight, x, "tensor", way)

    return sharded(run, devices, (UNITS_SPLIT, OUT), TOKENS_SPLIT)


def inputs(devices, gathers):
    tokens, units = devices * TOKENS, devices * UNITS
    if gathers:
        return normal(ROWS, tokens, WIDTH), normal(WIDTH, units, seed=1)
    return normal(ROWS, tokens, units), normal(units, WIDTH, seed=1)


@pytest.mark.parametrize(("devices", "way"), CASES)
def test_the_first_is_bit_for_bit_gather_and_product(devices, way):
    given = inputs(devices, gathers=True)
    found = jax.jit(gathering(devices, way))(*given)
    np.testing.assert_array_equal(found, jax.jit(gathering(devices, None))(*given))


@pytest.mark.parametrize(("devices", "way"), CASES)
def test_the_second_is_the_product_of_all(devices, way):
    x, weight = inputs(devices, gathers=False)
    want = x.astype(np.float64) @ weight.astype(np.float64)
    np.testing.assert_allclose(jax.jit(scattering(devices, way))(x, weight), want, atol=2e-5)


@pytest.mark.parametrize(("devices", "way"), CASES)
@pytest.mark.parametrize("gathers", [True, False])
def test_gradients_are_those_of_the_product_of_all(devices, way, gathers):
    given = inputs(devices, gathers)
    run = (gathering if gathers else scattering)(devices, way)
    seen = normal(*jax.eval_shape(run, *given).shape, seed=2)
    x, weight, g = (a.astype(np.float64) for a in (*given, seen))
    of_x, of_weight = jax.jit(lambda g, *given: jax.vjp(run, *given)[1](g))(seen, *given)
    np.testing.assert_allclose(of_x, g @ weight.T, atol=5e-5)
    np.testing.assert_allclose(of_weight, np.einsum("btd,btf->df", x, g), atol=5e-5)


@pytest.mark.parametrize(("devices", "way"), CASES)
@pytest.mark.parametrize("gathers", [True, False])
def test_each_step_is_a_permute_there_and_in_the_transpose(devices, way, gathers):
    """No gather and no scatter; n - 1 permutes of each ring, the bytes of the collective."""
    given = inputs(devices, gathers)
    run = (gathering if gathers else scattering)(devices, way)
    block = ROWS * TOKENS * WIDTH * 4
    wanted = cost.all_gather(block, devices)
    assert wanted == cost.reduce_scatter(devices * block, devices)
    rings = {RING: 1, TWO_WAY: 2}[way]
    seen = jax.eval_shape(run, *given)
    forward = totals(messages_of(run, *given))
    assert list(forward) == [("permute", ("tensor",))]
    backward = totals(
        messages_of(lambda x, g: jax.vjp(lambda x: run(x, given[1]), x)[1](g), given[0], seen)
    )
    for found in (forward, backward):
        (total,) = found.values()
        assert (total.count, total.sent) == (rings * (devices - 1), wanted)


def kinds_before(jaxpr, kind):
    """For each equation of a kind, in order: how many of the other kind it waits for."""
    other = {"ppermute": "dot_general", "dot_general": "ppermute"}[kind]
    behind, found = {}, []
    for eqn in jaxpr.eqns:
        waits = frozenset().union(
            *(behind.get(x, frozenset()) for x in eqn.invars if not hasattr(x, "val"))
        )
        name = eqn.primitive.name
        found += [len([1 for n, _ in waits if n == other])] if name == kind else []
        own = frozenset({(name, id(eqn))}) if name in ("ppermute", "dot_general") else frozenset()
        behind |= dict.fromkeys(eqn.outvars, waits | own)
    return found


def inside(run, given):
    (eqn,) = jax.make_jaxpr(run)(*given).jaxpr.eqns
    (jaxpr,) = inner_jaxprs(eqn)
    return jaxpr


def test_no_product_waits_for_the_message_of_its_own_step():
    """So both may go on at once: a gather sends what no product made, a scatter multiplies what
    nobody sent."""
    devices = 4
    gathered = inside(gathering(devices, RING), inputs(devices, True))
    assert kinds_before(gathered, "ppermute") == [0] * (devices - 1)
    assert kinds_before(gathered, "dot_general") == list(range(devices))
    scattered = inside(scattering(devices, RING), inputs(devices, False))
    assert kinds_before(scattered, "dot_general") == [0] * devices
    assert kinds_before(scattered, "ppermute") == list(range(1, devices))


def test_one_token_of_a_device_goes_one_way():
    x, weight = normal(1, 2, WIDTH), normal(WIDTH, 2, seed=1)
    found = jax.jit(gathering(2, TWO_WAY))(x, weight)
    np.testing.assert_allclose(found, x @ weight, rtol=1e-5)


def test_a_parameter_that_devices_share_has_its_gradient_summed_once():
    """However many steps meet it."""
    x, weight = normal(ROWS, 4 * TOKENS, WIDTH), normal(WIDTH, UNITS, seed=1)

    def loss(weight, x):
        return lax.psum(jnp.sum(gather_map(product, weight, x, "tensor")), "tensor") / 4

    run = sharded(loss, 4, (P(), TOKENS_SPLIT), P())
    found = totals(messages_of(jax.grad(run), weight, x))
    assert {kind: total.count for kind, total in found.items() if kind[0] == "all_reduce"} == {
        ("all_reduce", ("tensor",)): 1
    }
    want = np.broadcast_to(x.sum((0, 1))[:, None], weight.shape)
    np.testing.assert_allclose(jax.jit(jax.grad(run))(weight, x), want, rtol=1e-4)


@functools.cache
def narrow(way):
    x = put(normal(ROWS, 4 * TOKENS, 4 * UNITS), jnp.bfloat16)
    weight = put(normal(4 * UNITS, WIDTH, seed=1), jnp.bfloat16)
    return x, weight, jax.jit(scattering(4, way))(x, weight)


@pytest.mark.parametrize("way", [RING, TWO_WAY])
def test_sums_in_bfloat16_are_rounded_at_every_step_and_no_more(way):
    x, weight, found = narrow(way)
    assert found.dtype == jnp.bfloat16
    want = np.asarray(x, np.float64) @ np.asarray(weight, np.float64)
    parts = np.abs(np.asarray(x, np.float64)) @ np.abs(np.asarray(weight, np.float64))
    assert np.max(np.abs(np.asarray(found, np.float64) - want) / parts) < 4 * 2**-8
