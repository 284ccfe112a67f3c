"""Weights gathered and gradients scattered in few bits: what is rounded, and what is sent."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from gam_jax.params import codings, shard_dims
from gam_jax.traffic import step_bytes, step_traffic
from gam_jax.training.step import make_gradients, param_specs
from sharding import zero
from sharding.messages import totals
from sharding.quantised import blocks_of
from tests.gam_jax.traffic_cases import counted
from tests.meshes import assert_leaves_close, layout_of, slow_unless_chosen
from tests.property.test_levels import MODEL, batches
from tests.quantised_oracle import relative, rounded

ONE = (1, 1, 1)
CASES = (
    ((8, 1, 1), "fully_sharded+sequence+tensor", "", "weights:8,gradients:4"),
    (((2, 2, 2), 1, 1), "data+sequence+tensor", "weights:2,gradients:4,state:8", "weights:8"),
    (((2, 2, 2), 1, 1), "data+sequence+tensor", "weights:8,secondary:2", "weights:4,gradients:8"),
    (((2, 4), 1, 1), "data+sequence+tensor", "weights:1,gradients:4,state:8", "gradients:4"),
    (((2, 2), 1, 2), "data+sequence+tensor_tokens", "weights:2,state:4", "weights:8,gradients:4"),
    (((2, 2), 2, 1), "data+sequence+tensor", "weights:4,secondary:2", "weights:8,gradients:4"),
    ((4, 1, 1, 2), "fully_sharded+sequence+tensor", "", "weights:8,gradients:4"),
    (((2, 2), 1, 2), "data+sequence+tensor_tokens", "weights:4,secondary:1", "weights:8"),
    ((2, 1, 1, 1, 1, 2), "fully_sharded", "", "weights:8,gradients:4"),
    (((2, 2), 1, 1, 1, 1, 2), "data", "weights:4,secondary:2", "weights:8,gradients:8"),
)
"""Mesh, preset, degrees and bits."""
ALONE = [case for case in CASES if case[0][2] == 1]
"""In which no rule splits a parameter besides."""


def layout(case):
    shape, preset, shards, bits = case
    return layout_of(shape, preset, shards=shards, bits=bits)


@functools.cache
def params():
    return jax.tree.map(np.asarray, jax.jit(MODEL.init_params)(jax.random.key(0)))


@functools.cache
def program(placed):
    return jax.jit(make_gradients(MODEL, placed))


def gradients(placed, of=None):
    """Of the first part of a batch, each leaf whole."""
    batch = {name: x[0] for name, x in next(iter(batches())).items()}
    found = program(placed)(params() if of is None else of, batch, jax.random.key(1))[1]
    return jax.tree.map(np.asarray, found)


def as_gathered(placed):
    """Parameters with each stored part rounded by itself, from the equations."""
    table, parts = MODEL.table(), placed.degrees.weights

    def one(x, dim, coding):
        if not dim or not coding.bits.weights:
            return x
        pieces = np.split(x, parts, axis=x.ndim + dim)
        layers = x.shape[: coding.layers] or (1,)

        def round_(piece):
            flat = piece.reshape(np.prod(layers), -1)
            size = blocks_of(flat.shape[1], coding.bits.weights)[1]
            rows = [rounded(row, coding.bits.weights, size)[0] for row in flat]
            return np.stack(rows).reshape(piece.shape)

        return np.concatenate([round_(piece) for piece in pieces], axis=x.ndim + dim)

    found = jax.tree.map(one, params(), shard_dims(table, placed), codings(table, placed))
    return jax.tree.map(lambda x: x.astype(np.float32), found)


@pytest.mark.parametrize("case", [CASES[1]], ids=str)
def test_weights_are_rounded_part_by_part_and_gradients_go_straight_through(case):
    placed = layout(case)
    there = as_gathered(placed)
    pairs = zip(*map(jax.tree.leaves, (there, params())), strict=True)
    assert 0 < max(relative(a, b) for a, b in pairs if b.any()) < 0.01
    assert_leaves_close(gradients(placed), gradients(layout_of(ONE), there), 1e-4)


@pytest.mark.parametrize("case", slow_unless_chosen([(case,) for case in ALONE], []))
def test_gradients_of_matrices_and_vectors_are_one_mean(case):
    """A scale that only one of two ways has would show here, and not in a run of Adam."""
    placed = layout(case)
    found, wanted = gradients(placed), gradients(layout_of(ONE), as_gathered(placed))
    for x, y, coding in zip(
        *map(jax.tree.leaves, (found, wanted, codings(MODEL.table(), placed))), strict=True
    ):
        assert (x * y).sum() / (y**2).sum() == pytest.approx(1, abs=0.1)
        assert relative(x, y) < (0.25 if coding.bits.gradients else 1e-4)


@pytest.mark.slow
def test_a_second_copy_is_gathered_in_the_same_numbers():
    case = ((2, 2, 2), 1, 1), "data+sequence+tensor"
    one, two = (
        gradients(layout((*case, shards, "weights:8")))
        for shards in ("weights:8", "weights:8,secondary:2")
    )
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize(
    "case", slow_unless_chosen([(case,) for case in CASES], [(CASES[2],), (CASES[4],)])
)
def test_what_is_sent_is_the_formula(case):
    placed = layout(case)
    wanted = totals(step_traffic(MODEL, placed, 16, 32, 2))
    assert counted(MODEL, placed, 16, 32, 2) == wanted


@pytest.mark.parametrize("case", [*CASES[:3], CASES[-1]], ids=str)
def test_what_is_held_coded_is_the_formula(case):
    placed, table, held = layout(case), MODEL.table(), []

    def shards(params):
        dims, coding = shard_dims(table, placed), codings(table, placed)
        found = zero.shards(params, dims, placed.weight_axes, placed.layer_axes, (), coding)
        arrays = [
            getattr(x, "array", x)
            for x in jax.tree.leaves(found, is_leaf=lambda x: isinstance(x, zero.Shard))
        ]
        second = bool(placed.degrees.secondary)
        held.append(sum(x.nbytes for x in arrays if second or x.dtype == np.uint8))
        return params

    specs = param_specs(table, placed)
    jax.eval_shape(
        jax.shard_map(shards, mesh=placed.mesh, in_specs=(specs,), out_specs=specs), params()
    )
    assert held == [step_bytes(MODEL, placed).secondary]
