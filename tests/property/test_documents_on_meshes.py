"""The law of documents over devices: a packed row that is split gives what it gives whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding import collectives
from tests.arrays import put
from tests.examples import EXAMPLES
from tests.property.test_layers_on_meshes import IN_TOKENS, WHOLE, assert_same

APART = [name for name, layer in EXAMPLES.items() if layer.causal and layer.documents]
SHAPES = ((1, 4, 1), (1, 2, 2), (2, 2, 2), (1, 8, 1), (1, 2, 4))

CHOSEN = (
    ("Attention grouped", (1, 2, 2), IN_TOKENS),
    ("Attention wide window", (1, 4, 1), WHOLE),
    ("LatentAttention", (1, 2, 2), IN_TOKENS),
    ("TCNCA", (1, 4, 1), WHOLE),
)
"""Layers, meshes and presets that are always run: each way to tell documents apart."""

STARTS = np.random.default_rng(7).random((8, 32)) < 0.15
STARTS[:, 16] = [row % 2 for row in range(8)]  # at a border of shards, in some rows
STARTS[:, 24:] = False
STARTS[0] = np.arange(32) == 5
"""Where documents begin, in all rows; the last one of each is cut by a border of shards."""


def packed_and_on(layer, axes, params, x):
    """One piece, and one more on its carry: documents go on from device to device and over both."""
    starts = collectives.own_shard(put(STARTS), axes.rows, dim=0)
    starts = collectives.own_shard(starts, axes.seq, dim=1)
    y, carry = layer(params, x, None, axes, starts=starts)
    more, carry = layer(params, x, carry, axes, starts=starts)
    return y + more, carry


@pytest.mark.parametrize(("name", "shape", "preset"), CHOSEN, ids=str)
def test_packed_documents_give_on_a_mesh_what_they_give_on_one_device(name, shape, preset):
    assert_same(name, shape, preset, packed_and_on)


@pytest.mark.slow
@pytest.mark.parametrize("name", APART)
@settings(max_examples=3)
@given(shape=st.sampled_from(SHAPES), preset=st.sampled_from([WHOLE, IN_TOKENS]))
def test_every_layer_keeps_documents_apart_on_any_mesh(name, shape, preset):
    assert_same(name, shape, preset, packed_and_on)
