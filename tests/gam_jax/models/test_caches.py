"""Caches of language models: as long as a sequence needs, in the dtype of the arithmetic."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax import decode
from gam_jax.layers import TCNCA, Attention, Block, LatentAttention, LinearMemory
from gam_jax.models import LanguageModel, suits
from gam_jax.ops.rotary import Positions
from sharding.errors import UserError
from tests.examples import random_like

CONTEXT = 1000
MIXERS = {
    "attention": Attention(heads=2, context=CONTEXT),
    "window": Attention(heads=2, window=5),
    "latent": LatentAttention(heads=2, latent=8, head_size=4, rotary_size=4, context=CONTEXT),
    "chunks": TCNCA(chunk=4, keys=4),
    "memory": LinearMemory(heads=2, variant="gla"),
}
every_mixer = pytest.mark.parametrize("name", MIXERS)


def model_of(name, **fields):
    return LanguageModel(Block(MIXERS[name]), width=8, depth=2, vocab=16, **fields)


@pytest.mark.parametrize(
    ("tokens", "places"), [(1, 128), (128, 128), (129, 256), (900, CONTEXT), (1000, CONTEXT)]
)
@pytest.mark.parametrize("name", ["attention", "latent"])
def test_a_cache_has_as_many_whole_blocks_as_a_sequence_needs(name, tokens, places):
    model = model_of(name)
    fitted = model.for_length(tokens)
    assert fitted.table().keys() == model.table().keys()
    shapes = jax.tree.leaves(jax.eval_shape(lambda: fitted.carry(3)))
    assert max(size for leaf in shapes for size in leaf.shape) == places


def test_more_than_the_declared_limit_is_refused():
    with pytest.raises(ValueError, match="1001 tokens do not fit the model's cache of 1000"):
        model_of("attention").for_length(1001)


@pytest.mark.parametrize("name", [pytest.param("attention", marks=pytest.mark.slow), "latent"])
def test_a_shorter_cache_changes_no_text(name):
    model = model_of(name)
    params = random_like(model.table())
    prompt = np.random.default_rng(0).integers(0, 16, (2, 5))
    logits, carry = decode.prefill(model, params, prompt)
    key = jax.random.key(0)
    whole = decode.write(model, params, logits, carry, 6, key)
    short = decode.generate(model, params, prompt, 6, key)
    for one, other in zip(whole, short, strict=True):
        np.testing.assert_array_equal(one, other)


LONGROPE = Positions(kind="longrope", original=8, short=(1.0, 1.5), long=(2.0, 9.0))
DYNAMIC = Positions(kind="dynamic", original=8, factor=4.0)
by_length = pytest.mark.parametrize(
    "mixer",
    [
        Attention(heads=2, context=64, rotary=50.0, positions=LONGROPE),
        LatentAttention(
            heads=2, latent=8, head_size=4, rotary_size=4, context=64, positions=DYNAMIC
        ),
        LinearMemory(heads=2, variant="retnet", positions=DYNAMIC),
    ],
    ids=["attention", "latent", "memory"],
)


@by_length
def test_positions_that_turn_by_length_do_so_for_a_whole_sequence_and_in_parts(mixer):
    """A sequence read at once tells its length; in parts, `for_length` does, or it is refused."""
    model = LanguageModel(Block(mixer), width=8, depth=1, vocab=16)
    params = random_like(model.table())
    tokens = np.random.default_rng(1).integers(0, 16, (2, 20))
    fitted = model.for_length(20)
    whole, _ = jax.jit(model)(params, tokens)
    set_before, _ = jax.jit(fitted)(params, tokens)
    np.testing.assert_array_equal(whole, set_before)
    short, _ = jax.jit(model)(params, tokens[:, :8])
    assert np.abs(np.asarray(whole)[:, :8] - short).max() > 1e-4
    logits, _ = decode.prefill(fitted, params, tokens)
    np.testing.assert_allclose(logits, whole[:, -1], atol=1e-5)
    with pytest.raises(ValueError, match="20 tokens in parts are more than the 8"):
        decode.prefill(model, params, tokens)
    with pytest.raises(ValueError, match="20 tokens in parts"):
        jax.eval_shape(model, params, tokens, starts=np.zeros((2, 20), bool))
    written = decode.generate(model, params, tokens, 4, jax.random.key(0), temperature=0.0)
    assert np.concatenate(list(written), axis=1).shape == (2, 4)


def test_packed_rows_longer_than_what_positions_are_for_are_refused():
    mixer = Attention(heads=2, context=64, rotary=50.0, positions=LONGROPE)
    model = LanguageModel(Block(mixer), width=8, depth=1, vocab=256)
    suits.check_data(model, {"vocab": 256, "window": 8, "packed": 1}, "text:x")
    suits.check_data(model, {"vocab": 256, "window": 16, "packed": 0}, "text:x")
    with pytest.raises(UserError, match="documents are of any length"):
        suits.check_data(model, {"vocab": 256, "window": 16, "packed": 1}, "text:x")


@every_mixer
def test_caches_are_in_the_dtype_of_the_arithmetic_and_stay_in_it(name):
    model = model_of(name, dtype="bfloat16")
    params = jax.eval_shape(lambda: random_like(model.table()))
    tokens = jax.ShapeDtypeStruct((2, 4), jnp.int32)
    carry = jax.eval_shape(lambda: model.carry(2))
    _, begun = jax.eval_shape(model, params, tokens)
    _, after = jax.eval_shape(model, params, tokens, carry)
    chex.assert_trees_all_equal_shapes_and_dtypes(carry, begun, after)
    wide = jax.eval_shape(lambda: dataclasses.replace(model, dtype="float32").carry(2))
    bytes_of = [
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        for tree in (carry, wide)
    ]
    assert (bytes_of[0] < bytes_of[1]) == (name != "memory")


@pytest.mark.parametrize("name", ["attention", "window", "latent"])
def test_a_cache_in_bfloat16_gives_the_logits_of_the_whole_pass(name):
    """What is cached was computed in bfloat16, so nothing is lost."""
    model = model_of(name, dtype="bfloat16")
    params = random_like(model.table())
    tokens = np.random.default_rng(1).integers(0, 16, (1, 17))
    logits, _ = decode.prefill(model, params, tokens)
    whole, _ = jax.jit(model)(params, tokens)
    np.testing.assert_allclose(logits, whole[:, -1], atol=0.03)
