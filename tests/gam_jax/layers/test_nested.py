"""Sizes in one another: the sum of all, the chosen one alone, and no more work than one."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax import units
from gam_jax.extract import extraction
from gam_jax.layers import GAM, MLP, Attention, Block, Nested
from gam_jax.models.language import LanguageModel
from gam_jax.ops import choices
from tests.examples import EXAMPLES, WIDTH, inputs, params_of, random_like
from tests.gam_jax.traffic_cases import MODEL, assert_formula
from tests.property.test_layers_on_meshes import IN_TOKENS, assert_same
from tests.property.test_units import double, of_double

SIZES = (2, 5, 8)
LAYER = Nested(MLP(hidden=8, activation="swiglu"), "hidden", SIZES, "softmax", width=WIDTH)


def of_size(params, size):
    """The layer of that size alone, and its parameters."""
    own = {name: x for name, x in params.items() if name != choices.ARCHITECTURE}
    return units.resized(LAYER.inner, "hidden", size), units.keep(own, LAYER.own, np.arange(size))


def test_it_is_the_sum_of_all_sizes_and_of_a_sure_choice_that_size_alone(monkeypatch):
    params, x = of_double(params_of(LAYER)), of_double(np.asarray(inputs(2, 3)))
    with double(monkeypatch):
        alone = []
        for size in SIZES:
            layer, own = of_size(params, size)
            alone.append(jax.jit(layer)(own, x)[0])
        run = jax.jit(LAYER)
        for logits in (params["architecture"]["logits"], *(1e4 * np.eye(3))):
            w = np.asarray(jax.nn.softmax(jnp.asarray(logits)))
            found = run({**params, "architecture": {"logits": np.asarray(logits)}}, x)[0]
            want = sum(a * np.asarray(y) for a, y in zip(w, alone, strict=True))
            np.testing.assert_allclose(found, want, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_a_drawn_choice_is_the_likeliest_size_without_a_key():
    layer = dataclasses.replace(LAYER, weights="dirichlet")
    params = {**params_of(LAYER), "architecture": {"logits": jnp.asarray([0.0, 3.0, 1.0])}}
    middle, own = of_size(params, 5)
    x = inputs(2, 3)
    still, drawn = jax.jit(lambda p: (layer(p, x)[0], layer(p, x, key=jax.random.key(1))[0]))(
        params
    )
    np.testing.assert_allclose(still, middle(own, x)[0], rtol=1e-5, atol=1e-6)
    assert np.any(np.abs(drawn - still) > 1e-4)


@pytest.mark.slow
def test_a_model_of_the_chosen_sizes_is_extracted():
    model = LanguageModel(
        Block(GAM(slots=8), dataclasses.replace(LAYER, weights="dirichlet")), 8, 2, vocab=16
    )
    params = random_like(model.table())
    params["blocks"]["ffn"]["architecture"]["logits"] = jnp.asarray([[3.0, 0, 0], [0, 3.0, 0]])
    found = extraction(model, params)
    tokens = np.random.default_rng(0).integers(0, 16, (2, 5)).astype(np.int32)
    want, y = (
        jax.jit(m)(p, tokens)[0] for m, p in ((model, params), (found.model, found.pick(params)))
    )
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
    assert [block.ffn.size for block in found.model.block.layers] == [2, 5]


def with_key(layer, axes, params, x):
    return layer(params, x, None, axes, key=jax.random.key(2))


@pytest.mark.slow
def test_a_draw_is_the_same_on_any_mesh():
    assert_same("Nested", (2, 1, 4), IN_TOKENS, with_key)
    assert EXAMPLES["Nested"].weights == "dirichlet"


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["data+sequence+tensor", "fully_sharded+sequence+tensor_tokens"])
def test_it_sends_what_the_formula_says(preset):
    ffn = Nested(MLP(hidden=32), "hidden", (8, 32))
    model = dataclasses.replace(MODEL, block=Block(GAM(slots=16), ffn), dropout=0.0)
    assert_formula(model, (2, 2, 2), preset)


def test_what_is_not_weighed_is_refused():
    with pytest.raises(ValueError, match="must ascend"):
        Nested(MLP(hidden=8), "hidden", (4, 2, 8), width=8)
    with pytest.raises(ValueError, match="must end with 8"):
        Nested(MLP(hidden=8), "hidden", (2, 4), width=8)
    with pytest.raises(ValueError, match="none of a MLP"):
        Nested(MLP(hidden=8), "slots", (2, 8), width=8)
    with pytest.raises(ValueError, match="is not weighed, since"):
        Nested(GAM(slots=8), "slots", (2, 8), width=8)
    heads = Attention(heads=4, kv_heads=2, head_size=2, context=8)
    with pytest.raises(ValueError, match="they are of 2 groups"):
        Nested(heads, "queries", (2, 4), width=8)
