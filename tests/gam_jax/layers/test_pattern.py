"""Unlike blocks in any order."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gam_jax import decode
from gam_jax.config import from_dict, to_dict
from gam_jax.layers import GRU, MLP, Attention, Block, LinearMemory, Pattern, Residual, RMSNorm
from gam_jax.layers.pattern import runs_of
from gam_jax.models import LanguageModel
from tests.examples import random_like

NEAR = Block(Attention(heads=2, window=3, rotary=0.0), MLP(expansion=1, bias=False), RMSNorm())
FAR = Block(Attention(heads=2, context=32), MLP(expansion=1, bias=False), RMSNorm())
MEMORY = Residual(LinearMemory(heads=2, variant="gla"))


@given(order=st.lists(st.integers(0, 2), min_size=1, max_size=24))
def test_runs_cover_the_order_and_none_compiles_more_than_equal_neighbours_would(order):
    runs = runs_of(tuple(order))
    assert [kind for run in runs for kind in run.period * run.turns] == order
    neighbours = 1 + sum(a != b for a, b in itertools.pairwise(order))
    assert sum(len(run.period) for run in runs) <= neighbours
    assert all(run.turns > 1 for run in runs if len(run.period) > 1)


@pytest.mark.parametrize(
    ("order", "runs"),
    [
        ((0, 0, 0, 1) * 12, [((0, 0, 0, 1), 12)]),
        ((0, 0, 0, 1) * 2 + (0,), [((0, 0, 0, 1), 2), ((0,), 1)]),
        ((0,) * 3 + (1,) * 58, [((0,), 3), ((1,), 58)]),
        ((2,) + (0, 1) * 5, [((2,), 1), ((0, 1), 5)]),
    ],
)
def test_what_repeats_is_one_run(order, runs):
    assert list(runs_of(order)) == runs


def test_a_pattern_is_its_blocks_one_after_another():
    layers, order = (NEAR, FAR, MEMORY), (0, 1, 0, 1, 2, 2, 0)
    pattern = Pattern(layers, order, width=8)
    params = random_like(pattern.table())
    x = np.random.default_rng(0).normal(size=(2, 6, 8)).astype(np.float32)
    y, _ = jax.jit(pattern)(params, x)
    h, each = x, [jax.jit(layer) for layer in pattern.layers]
    params = jax.tree.map(np.asarray, params)
    for number, (kind, (*names, turn)) in enumerate(zip(order, pattern.places(), strict=True)):
        own = params
        for name in names:
            own = own[name]
        own = jax.tree.map(lambda p, turn=int(turn): p[turn], own)
        assert jax.tree.all(jax.tree.map(np.array_equal, pattern.of_layer(params, number), own))
        h, _ = each[kind](own, h)
    np.testing.assert_allclose(y, h, atol=1e-5)
    again = jax.jit(pattern.of_layers)([pattern.of_layer(params, i) for i in range(len(order))])
    assert jax.tree.all(jax.tree.map(np.array_equal, again, params))


def test_a_model_of_a_pattern_writes_what_it_reads():
    """Each layer's cache is written to in place, that of a turn's layers too."""
    model = LanguageModel(Pattern((NEAR, MEMORY, FAR), (0, 1, 0, 1, 2)), 8, 1, vocab=16)
    assert from_dict(LanguageModel, to_dict(model)) == model
    params = random_like(model.table())
    prompt = np.random.default_rng(0).integers(0, 16, (2, 5))
    pieces = decode.generate(model, params, prompt, 4, jax.random.key(0), temperature=0.0)
    written = np.concatenate(list(pieces), axis=1)
    whole = np.concatenate([prompt, written], axis=1)
    logits, _ = jax.jit(model)(params, whole)
    np.testing.assert_array_equal(np.argmax(logits, axis=-1)[:, 4:-1], written)


def test_forty_layers_compile_no_more_than_one_turn():
    """The jaxpr of forty layers has as many equations as that of one turn, but for the loop's."""

    def equations(turns):
        pattern = Pattern((NEAR, MEMORY), (0, 0, 0, 1) * turns, width=8)
        x = jax.ShapeDtypeStruct((1, 4, 8), np.float32)
        params = jax.eval_shape(lambda: random_like(pattern.table()))
        return len(str(jax.make_jaxpr(lambda p, x: pattern(p, x)[0])(params, x)).splitlines())

    assert equations(10) <= 1.1 * equations(2)


def test_an_order_that_names_no_layer_is_refused():
    with pytest.raises(ValueError, match=r"order=\(0, 2\) must name each of its 2 layers"):
        Pattern((NEAR, FAR), (0, 2), width=8)
    with pytest.raises(ValueError, match="must name each"):
        Pattern((NEAR, Residual(GRU())), (0,), width=8)
