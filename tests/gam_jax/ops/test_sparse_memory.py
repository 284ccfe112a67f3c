"""Reading the best few of many slots: against NumPy, and against the dense read."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gam_jax.ops.memory import memory_read
from gam_jax.ops.sparse_memory import best_slots, product_read, sparse_read
from sharding.mesh import make_mesh
from tests.arrays import put
from tests.oracle import softmax


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def single(*arrays):
    return [put(array, jnp.float32) for array in arrays]


read = jax.jit(sparse_read, static_argnums=2, static_argnames="block")
best = jax.jit(best_slots, static_argnums=2, static_argnames="block")


def read_formula(x, bank, top):
    rows = []
    for query in x:
        chosen = np.argsort(-(bank @ query), kind="stable")[:top]
        rows.append(softmax(bank[chosen] @ query) @ bank[chosen])
    return np.stack(rows)


def product_formula(query, keys, values, top):
    side, out = keys.shape[2], np.zeros((len(query), values.shape[1]))
    for n in range(len(query)):
        for head in range(keys.shape[0]):
            scores = np.array(
                [
                    query[n, head, 0] @ keys[head, 0, i] + query[n, head, 1] @ keys[head, 1, j]
                    for i in range(side)
                    for j in range(side)
                ]
            )
            chosen = np.argsort(-scores, kind="stable")[:top]
            out[n] += softmax(scores[chosen]) @ values[chosen]
    return out


@pytest.mark.parametrize("block", [4, 5, 64])
@pytest.mark.parametrize("top", [1, 3, 13])
def test_it_reads_the_best_slots(top, block):
    x, bank = normal(7, 4), normal(13, 4)
    found = read(*single(x, bank), top, block=block)
    np.testing.assert_allclose(found, read_formula(x, bank, top), rtol=1e-5, atol=1e-6)


def test_of_equal_scores_the_first_slots_are_taken():
    scores, places = best(*single(np.ones((1, 2)), np.ones((9, 2))), 4, block=2)
    np.testing.assert_array_equal(places, [[0, 1, 2, 3]])
    np.testing.assert_array_equal(scores, 2)


def test_reading_every_slot_is_the_dense_read_with_its_gradients():
    arrays, pull = single(normal(7, 4), normal(13, 4)), single(normal(7, 4, seed=2))[0]

    def slopes(read):
        return jax.jit(jax.value_and_grad(lambda *a: jnp.sum(read(*a) * pull), argnums=(0, 1)))

    dense = slopes(memory_read)(*arrays)
    sparse = slopes(lambda x, bank: sparse_read(x, bank, 13, block=4))(*arrays)
    for a, b in zip(jax.tree.leaves(sparse), jax.tree.leaves(dense), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_gradients_go_to_the_chosen_slots_alone():
    x, bank = single(normal(2, 4), normal(30, 4))
    gradient = jax.jit(jax.grad(lambda bank: jnp.sum(sparse_read(x, bank, 3) ** 2)))(bank)
    touched = set(np.flatnonzero(np.any(np.asarray(gradient) != 0, axis=1)))
    assert touched == set(np.asarray(best(x, bank, 3)[1]).reshape(-1))


@pytest.mark.parametrize("top", [1, 4, 16])
def test_product_keys_find_the_best_of_all_pairs(top):
    query, keys, values = normal(5, 2, 2, 3), normal(2, 2, 4, 3), normal(16, 6)
    found = jax.jit(lambda *a: product_read(*a, top))(*single(query, keys, values))
    want = product_formula(query, keys, values, top)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


def test_gradients_of_product_keys_are_the_formula_s_slopes():
    arrays, pull, top = (normal(2, 1, 2, 2), normal(1, 2, 3, 2), normal(9, 3)), normal(2, 3), 4

    def loss(*arrays):
        return jnp.sum(product_read(*arrays, top) * put(pull, jnp.float32))

    found = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*single(*arrays))
    for i, gradient in enumerate(found):
        slope = np.zeros_like(arrays[i])
        for place in np.ndindex(slope.shape):
            moved = [[np.array(a) for a in arrays] for _ in range(2)]
            moved[0][i][place] += 1e-6
            moved[1][i][place] -= 1e-6
            up, down = (np.sum(product_formula(*m, top) * pull) for m in moved)
            slope[place] = (up - down) / 2e-6
        np.testing.assert_allclose(gradient, slope, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("top", [1, 5, 16])
def test_slots_split_over_devices_are_read_alike(top):
    """Top 5 is more than one of four devices has."""
    mesh = make_mesh(tensor=4)
    for read, arrays, split in (
        (sparse_read, single(normal(6, 4), normal(16, 4)), (P(), P("tensor"))),
        (
            product_read,
            single(normal(6, 2, 2, 3), normal(2, 2, 4, 3), normal(16, 4)),
            (P(), P(), P("tensor")),
        ),
    ):

        def over(*arrays, read=read):
            varying = jax.lax.pcast(arrays[0], "tensor", to="varying")
            return read(varying, *arrays[1:], top, "tensor", "tensor")

        on_mesh = jax.shard_map(over, mesh=mesh, in_specs=split, out_specs=P(None, "tensor"))
        numbers = tuple(range(len(arrays)))
        found, want = (
            jax.jit(jax.value_and_grad(lambda *a, f=f: jnp.sum(f(*a) ** 2), argnums=numbers))(
                *arrays
            )
            for f in (on_mesh, lambda *a, read=read: read(*a, top))
        )
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_more_than_there_is_cannot_be_read():
    with pytest.raises(ValueError, match="best 9 of 8 slots"):
        sparse_read(np.ones((1, 2)), np.ones((8, 2)), 9)
    with pytest.raises(ValueError, match="values must be as many as pairs of keys"):
        product_read(np.ones((1, 1, 2, 2)), np.ones((1, 2, 3, 2)), np.ones((8, 2)), 2)
