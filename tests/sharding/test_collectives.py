"""Without an axis nothing happens; over an axis the parts do what the whole array does."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from sharding import collectives
from sharding.mesh import make_mesh
from tests.arrays import put

AXIS, SIZE = "seq", 4
X = np.random.default_rng(0).normal(size=(2, 8, 3)).astype(np.float32)
SPLIT, WHOLE = P(None, AXIS), P()


def over_four(program, *arrays, inputs=SPLIT, outputs=SPLIT):
    """`program` on four devices, compiled."""
    mesh = make_mesh(seq=SIZE)
    specs = inputs if isinstance(inputs, tuple) and not isinstance(inputs, P) else (inputs,)
    sharded = jax.shard_map(program, mesh=mesh, in_specs=specs, out_specs=outputs)
    return jax.jit(sharded)(*arrays)


@pytest.mark.parametrize(
    "collective",
    [
        collectives.psum,
        collectives.pmax,
        collectives.from_last,
        functools.partial(collectives.all_gather, dim=1),
        functools.partial(collectives.reduce_scatter, dim=1),
        functools.partial(collectives.own_shard, dim=1),
    ],
)
def test_without_an_axis_it_is_the_identity(collective):
    x = put(X)
    np.testing.assert_array_equal(collective(x, axis=None), x)


def test_without_an_axis_there_is_one_place():
    assert (collectives.axis_index(None), collectives.axis_size(None)) == (0, 1)
    np.testing.assert_array_equal(collectives.psum(put(X), ()), X)


def test_sum_and_maximum_are_over_all_devices():
    parts = np.split(X, SIZE, axis=1)
    total = over_four(lambda x: collectives.psum(x, AXIS), X, outputs=WHOLE)
    np.testing.assert_allclose(total, sum(parts), rtol=1e-6)
    top = over_four(lambda x: collectives.pmax(x, AXIS), X, outputs=WHOLE)
    np.testing.assert_array_equal(top, np.max(parts, axis=0))


def test_a_sum_of_what_is_equal_everywhere_counts_the_devices():
    total = over_four(lambda x: collectives.psum(x, AXIS), X, inputs=WHOLE, outputs=WHOLE)
    np.testing.assert_allclose(total, SIZE * X, rtol=1e-6)


def test_gathering_undoes_the_split_and_owning_undoes_the_gathering():
    whole = over_four(lambda x: collectives.all_gather(x, AXIS, dim=1), X, outputs=WHOLE)
    np.testing.assert_array_equal(whole, X)
    own = over_four(lambda x: collectives.own_shard(x, AXIS, dim=1), X, inputs=WHOLE)
    np.testing.assert_array_equal(own, X)


def test_reduce_scatter_sums_and_leaves_each_device_its_part():
    partial = np.stack([X * (i + 1) for i in range(SIZE)])
    found = over_four(
        lambda x: collectives.reduce_scatter(x[0], AXIS, dim=1), partial, inputs=P(AXIS)
    )
    np.testing.assert_allclose(found, X * 10, rtol=1e-6)


def test_from_last_gives_the_last_part_to_all():
    found = over_four(lambda x: collectives.from_last(x, AXIS), X, outputs=WHOLE)
    np.testing.assert_array_equal(found, X[:, 6:])


def test_index_and_size_tell_the_place():
    places = over_four(
        lambda x: x[0, :, 0] * 0 + collectives.axis_index(AXIS) + 10 * collectives.axis_size(AXIS),
        X,
        outputs=P(AXIS),
    )
    np.testing.assert_array_equal(places, [40, 40, 41, 41, 42, 42, 43, 43])


@pytest.mark.parametrize("halo", [0, 1, 2, 3, 5, 6, 9])
def test_a_halo_is_the_shift_of_the_whole_array(halo):
    carry = np.random.default_rng(1).normal(size=(2, halo, 3)).astype(np.float32)

    def program(x, carry):
        before = collectives.left_halo(x, carry, AXIS)
        return jnp.concatenate([before, x], axis=1)[:, : x.shape[1]]

    shifted = over_four(program, X, carry, inputs=(SPLIT, WHOLE))
    np.testing.assert_array_equal(shifted, np.concatenate([carry, X], axis=1)[:, : X.shape[1]])


@pytest.mark.parametrize("halo", [2, 5, 9])
def test_the_gradient_of_a_halo_goes_back_to_where_it_came_from(halo):
    carry = np.zeros((2, halo, 3), np.float32)
    weights = np.random.default_rng(2).normal(size=(SIZE, 2, halo, 3)).astype(np.float32)

    def loss(x, carry, weights):
        before = collectives.left_halo(x, carry, AXIS)
        return collectives.psum(jnp.sum(before * weights[0]), AXIS)

    specs = (SPLIT, WHOLE, P(AXIS))
    gradient = over_four(
        jax.grad(loss, argnums=(0, 1)), X, carry, weights, inputs=specs, outputs=(SPLIT, WHOLE)
    )
    tokens = X.shape[1] // SIZE
    want = np.zeros((2, halo + X.shape[1], 3), np.float32)
    for shard in range(SIZE):  # its halo stands at these places of [carry, x]
        want[:, shard * tokens : shard * tokens + halo] += weights[shard]
    np.testing.assert_allclose(gradient[0], want[:, halo:], rtol=1e-6)
    np.testing.assert_allclose(gradient[1], want[:, :halo], rtol=1e-6)


def test_without_an_axis_the_halo_is_the_carry():
    carry = jnp.ones((2, 9, 3))
    np.testing.assert_array_equal(collectives.left_halo(put(X), carry, None), carry)


def test_arrays_vary_wherever_one_of_them_does():
    def program(x, y):
        x, y = collectives.vary_alike(x, y)
        assert jax.typeof(x).manual_axis_type.varying == jax.typeof(y).manual_axis_type.varying
        return x + y[:, :2]

    found = over_four(program, X, X, inputs=(SPLIT, WHOLE))
    np.testing.assert_allclose(found, X + np.tile(X[:, :2], (1, SIZE, 1)), rtol=1e-6)
