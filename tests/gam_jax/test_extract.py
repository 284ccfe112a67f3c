"""The chosen plain model gives what the mixed one gives without a key."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax.bilevel import without_logits
from gam_jax.config import from_dict, to_dict
from gam_jax.extract import extraction
from gam_jax.layers import (
    GAM,
    MLP,
    Block,
    InTurn,
    LayerNorm,
    Mixed,
    Pattern,
    Residual,
    RMSNorm,
    WrittenGAM,
)
from gam_jax.layers.pattern import runs_of
from gam_jax.models.language import LanguageModel
from gam_jax.params import abstract_params
from sharding.errors import UserError
from tests.arrays import compiled, put
from tests.examples import random_like
from tests.meshes import slow_unless_chosen

MIXER = Mixed((GAM(slots=8), GAM(variant="local"), MLP()), "one")
FFN = Mixed((MLP(hidden=8), MLP(hidden=16)), "two", share=2)
PLAIN = LanguageModel(Block(MIXER), width=8, depth=4, vocab=16)
MODELS = {
    "unlike blocks": (PLAIN, [[0, 2, 2, 0]]),
    "equal blocks": (PLAIN, [[1, 1, 1, 1]]),
    "shares, in a pattern": (
        LanguageModel(
            Pattern((Block(MIXER, FFN), InTurn((Residual(MIXER),))), (0, 1, 0)), 8, 1, vocab=16
        ),
        [[0], [2], [2], [1], [1]],
    ),
}


def with_choices(params, choices):
    """The likeliest option in each place, in the order of their names."""
    left = iter(choices)

    def one(path, leaf):
        if "architecture" not in jax.tree_util.keystr(path):
            return leaf
        hot = np.eye(leaf.shape[-1], dtype=np.float32)[np.asarray(next(left))]
        return put(hot.reshape(leaf.shape) + np.float32(0.1))

    return jax.tree_util.tree_map_with_path(one, params)


ALWAYS = [("shares, in a pattern",)]


@pytest.mark.parametrize("name", slow_unless_chosen([(n,) for n in MODELS], ALWAYS))
def test_the_chosen_model_gives_what_the_mixed_one_gives(name):
    model, choices = MODELS[name]
    params = with_choices(random_like(model.table()), choices)
    found = extraction(model, params)
    assert sorted(map(str, found.options.values())) == sorted(map(str, choices))
    plain = compiled(found.pick, params)
    shapes = jax.tree.map(jnp.shape, abstract_params(found.model.table()))
    assert jax.tree.map(jnp.shape, plain) == shapes
    assert from_dict(LanguageModel, to_dict(found.model)) == found.model
    tokens = np.random.default_rng(0).integers(0, 16, (2, 6)).astype(np.int32)
    want, y = (compiled(m, p, tokens)[0] for m, p in ((model, params), (found.model, plain)))
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)


def test_moments_of_weights_alone_have_no_logits():
    """Where `train.bilevel` trains them apart; the chosen model has its part of all others."""
    model = LanguageModel(Block(MLP(hidden=8), FFN), width=8, depth=1, vocab=16)
    params = random_like(model.table())
    found = extraction(model, with_choices(params, [[1]]))
    moments = jax.tree.map(jnp.shape, jax.eval_shape(found.pick, without_logits(params)))
    assert moments == jax.tree.map(jnp.shape, without_logits(abstract_params(found.model.table())))


def test_equal_blocks_stay_one_loop_and_unlike_ones_are_a_pattern():
    for name, kinds in (("unlike blocks", 2), ("equal blocks", 0)):
        model, choices = MODELS[name]
        plain = extraction(model, with_choices(random_like(model.table()), choices)).model
        assert isinstance(plain.block, Pattern if kinds else Block)
        assert plain.depth == (1 if kinds else 4)
        if kinds:
            assert plain.block.order == (0, 1, 1, 0)


@pytest.mark.parametrize(("remat", "most"), [(False, 2), (True, 1)])
def test_blocks_that_are_computed_again_are_so_one_by_one(remat, most):
    """A turn of several would be computed again as a whole."""
    model = dataclasses.replace(PLAIN, remat=remat)
    params = with_choices(random_like(model.table()), [[0, 2, 0, 2]])
    found = extraction(model, params)
    assert max(len(run.period) for run in runs_of(found.model.block.order)) == most
    shapes = jax.tree.map(jnp.shape, abstract_params(found.model.table()))
    assert jax.tree.map(jnp.shape, found.pick(params)) == shapes


def test_patterns_in_a_row_are_computed_again_as_before():
    """Each turn of each pattern by itself, whichever of them are unlike now."""
    inner = Pattern((Block(MIXER),), (0, 0))
    model = LanguageModel(inner, width=8, depth=2, vocab=16, remat=True, unroll=2)
    params = random_like(model.table())
    for choices, unlike in ([[1, 1, 1, 1]], False), ([[0, 0, 1, 1]], True):
        plain = extraction(model, with_choices(params, choices)).model
        each = plain.block.layers if unlike else (plain.block,)
        assert all((pattern.remat, pattern.unroll) == (True, 2) for pattern in each)
        assert plain.stack.block.remat != unlike  # not all of them at once


def test_what_cannot_be_extracted_is_refused():
    plain = dataclasses.replace(PLAIN, block=Block(GAM(slots=8)))
    with pytest.raises(UserError, match="no mixed layer"):
        extraction(plain, random_like(plain.table()))
    inside = dataclasses.replace(PLAIN, block=Block(WrittenGAM(MIXER)))
    with pytest.raises(UserError, match="inside WrittenGAM cannot be taken out"):
        extraction(inside, random_like(inside.table()))
    norm = Mixed((LayerNorm(), RMSNorm()), "one")
    for other, name in (
        (dataclasses.replace(PLAIN, block=Block(GAM(slots=8), norm=norm)), "blocks/ffn_norm"),
        (dataclasses.replace(PLAIN, norm=norm), "final_norm"),
    ):
        with pytest.raises(UserError, match=f"the mixed layer {name} cannot be taken out"):
            extraction(other, random_like(other.table()))
    for fields, match in (({"ladder": 2}, "ladder"), ({"streams": 2}, "streams")):
        other = dataclasses.replace(PLAIN, **fields)
        params = with_choices(random_like(other.table()), [[0, 1, 1, 0]])
        with pytest.raises(UserError, match=match):
            extraction(other, params)
