"""Products at the doors of layers, and what is sent beside them."""

from __future__ import annotations

import dataclasses

import pytest

from gam_jax.layers import MLP, Attention, Block
from gam_jax.traffic.doors import Door, doors
from gam_jax.traffic.step import step_traffic
from sharding.messages import totals
from tests.gam_jax.traffic_cases import BLOCKS, MODEL
from tests.meshes import layout_of

SHAPE, PRESET = (1, 1, 4), "data+tensor_tokens+ring"


@pytest.mark.parametrize("name", BLOCKS)
def test_what_is_sent_beside_products_is_what_the_rings_send(name):
    """Forward, and as much backward: as the formulas of the step have it."""
    model = dataclasses.replace(MODEL, block=BLOCKS[name])
    layout = layout_of(SHAPE, PRESET)
    sent = totals(step_traffic(model, layout, 8, 32)).get(("permute", ("tensor",)))
    found = 2 * sum(door.sent * door.count for door in doors(model, layout, 8, 32))
    assert found == (sent.sent if sent else 0)


def test_operations_and_bytes_of_a_transformer():
    """Written out: 8 x 32 tokens of 16 channels, 4 devices, 3 layers; heads of 4."""
    block = Block(Attention(heads=8, kv_heads=4, head_size=4, context=32), MLP(expansion=2))
    model = dataclasses.replace(MODEL, block=block)
    tokens, sent = 8 * 32, 8 * 32 * 16 * 4 * 3 // 4
    assert doors(model, layout_of(SHAPE, PRESET), 8, 32) == [
        Door("Attention", "in", 2 * tokens * 16 * (32 + 16 + 16) // 4, sent, 3),
        Door("Attention", "out", 2 * tokens * 16 * 32 // 4, sent, 3),
        Door("MLP", "in", 2 * tokens * 16 * 32 // 4, sent, 3),
        Door("MLP", "out", 2 * tokens * 16 * 32 // 4, sent, 3),
    ]
