"""What each stage keeps: nothing is written over that is still needed, and no slot is idle."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sharding.pipeline.buffers import plan_of
from sharding.pipeline.stages import order, slots
from sharding.pipeline.tables import make_table
from tests.sharding.pipeline.test_tables import SIZES, table_of


@given(SIZES)
def test_each_task_finds_in_its_slots_what_was_sent_for_it(size):
    """The plan is followed with names in the place of arrays."""
    table = table_of(size)
    plan = plan_of(table)
    at = {name: column.tolist() for name, column in plan.columns.items()}
    kept = [{} for _ in range(table.stages)]
    waiting = [{} for _ in range(table.stages)]
    sent, returned = [None] * table.stages, [None] * table.stages
    last = table.stages * table.turns - 1
    for tick in range(table.ticks):
        for stage in range(table.stages):
            if (slot := at["input_arrives"][tick][stage]) >= 0:
                kept[stage][slot] = sent[stage]
            if (slot := at["gradient_arrives"][tick][stage]) >= 0:
                waiting[stage][slot] = returned[stage]
        out, back = [None] * table.stages, [None] * table.stages
        for stage in range(table.stages):
            for way in ("forward", "backward"):
                part, turn = at[f"{way}_part"][tick][stage], at[f"{way}_turn"][tick][stage]
                assert (part >= 0) == (getattr(table, way)[tick][stage] is not None)
                if part < 0:
                    continue
                place = turn * table.stages + stage
                if place:
                    assert kept[stage][at[f"{way}_slot"][tick][stage]] == (part, place)
                if way == "forward":
                    out[(stage + 1) % table.stages] = (part, place + 1)
                else:
                    if place < last:
                        assert waiting[stage][at["gradient_slot"][tick][stage]] == (part, place)
                    back[(stage - 1) % table.stages] = (part, place - 1)
        sent, returned = out, back


@given(SIZES)
def test_as_many_slots_as_the_worst_stage_keeps_inputs(size):
    table = table_of(size)
    plan = plan_of(table)
    assert plan.inputs <= max(table.peaks)
    if size[0] == "1f1b" and table.parts > 2 * table.stages:
        again = plan_of(make_table("1f1b", table.stages, table.parts + 8))
        assert (again.inputs, again.gradients) == (plan.inputs, plan.gradients)


def test_the_order_of_layers_on_stages():
    np.testing.assert_array_equal(order(8, 2, 1), range(8))
    np.testing.assert_array_equal(order(8, 2, 2), [0, 1, 4, 5, 2, 3, 6, 7])


@given(st.integers(1, 4), st.integers(1, 3), st.data())
def test_every_layer_has_a_slot_of_its_own_in_its_chunk(stages, turns, data):
    """Chunks of equal size are in the order of `order`."""
    chunks = st.lists(st.integers(1, 3), min_size=stages * turns, max_size=stages * turns)
    layers = data.draw(chunks)
    found, most, layer = slots(layers, stages), max(layers), 0
    for place, count in enumerate(layers):
        for slot in range(count):
            stage, turn = place % stages, place // stages
            assert found[layer] == (stage * turns + turn) * most + slot
            layer += 1
    assert len(found) == layer
    if len(set(layers)) == 1:
        np.testing.assert_array_equal(np.argsort(found), order(layer, stages, turns))
