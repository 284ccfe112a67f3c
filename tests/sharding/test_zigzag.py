"""The balanced order of a sequence over devices."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from sharding.mesh import make_mesh
from sharding.zigzag import from_zigzag, to_zigzag
from tests.arrays import put


def over(function, shards):
    spec = P(None, "seq")
    mapped = jax.shard_map(
        lambda x: function(x, "seq", 1), mesh=make_mesh(seq=shards), in_specs=spec, out_specs=spec
    )
    return jax.jit(mapped)


@pytest.mark.parametrize("shards", [2, 3, 4, 8])
def test_device_r_holds_the_pieces_r_and_as_far_from_the_end(shards):
    pieces = np.repeat(np.arange(2 * shards), 3)[None]
    placed = np.asarray(over(to_zigzag, shards)(pieces))[0].reshape(shards, 2, 3)
    want = [[r, 2 * shards - 1 - r] for r in range(shards)]
    np.testing.assert_array_equal(placed, np.repeat(want, 3).reshape(placed.shape))


@pytest.mark.parametrize("shards", [2, 3, 4, 8])
def test_there_and_back_changes_nothing(shards):
    x = put(np.random.default_rng(0).normal(size=(2, 4 * shards, 3)))
    back = over(lambda x, *where: from_zigzag(to_zigzag(x, *where), *where), shards)
    np.testing.assert_array_equal(back(x), x)


def test_without_an_axis_it_is_the_identity():
    x = np.arange(3)[None]
    assert to_zigzag(x, None, 1) is x
    assert from_zigzag(x, None, 1) is x


def test_a_shard_that_cannot_be_halved_is_refused():
    with pytest.raises(ValueError, match="a shard of 3 tokens cannot be halved"):
        over(to_zigzag, 2)(np.zeros((1, 6), np.float32))
