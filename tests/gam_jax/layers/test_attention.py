"""What the laws of every layer do not say of attention: its cache and its limits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax import decode
from gam_jax.layers import Attention, Block, LatentAttention, Stack
from gam_jax.models.language import LanguageModel
from gam_jax.params import rule_specs
from sharding.errors import UserError
from tests.examples import inputs, params_of, random_like
from tests.meshes import layout_of

LAYER = Attention(width=8, heads=2, context=6)


def test_more_tokens_than_the_context_are_an_error():
    params = params_of(LAYER)
    with pytest.raises(ValueError, match="7 tokens do not fit a cache of 6"):
        jax.eval_shape(LAYER, params, inputs(1, 7))
    _, carry = jax.jit(LAYER)(params, inputs(1, 5))
    with pytest.raises(ValueError, match="7 tokens do not fit"):
        LAYER(params, inputs(1, 2), carry)
    beyond, _ = jax.jit(LAYER)(params, inputs(1, 2), carry)
    assert np.all(np.isnan(beyond))


LATENT = LatentAttention(width=8, heads=2, latent=4, head_size=2, rotary_size=2, context=6)


@pytest.mark.parametrize("layer", [LAYER, LATENT], ids=["Attention", "LatentAttention"])
def test_the_context_is_that_of_a_document_and_its_cache_begins_with_it(layer):
    """Chunks of four tokens; the document of eight tokens is too long, and the next begins anew."""
    run, params, x = jax.jit(layer), params_of(layer), inputs(1, 20)
    lengths = (5, 6, 8, 1)
    starts = np.isin(np.arange(20), np.cumsum((0, *lengths[:-1])))[None]
    carry, parts = layer.carry(1), []
    for t in range(0, 20, 4):
        y, carry = run(params, x[:, t : t + 4], carry, starts=starts[:, t : t + 4])
        parts.append(y)
    found = np.split(np.concatenate(parts, axis=1), np.cumsum(lengths)[:-1], axis=1)
    alone = np.split(x, np.cumsum(lengths)[:-1], axis=1)
    for y, own in zip(found, alone, strict=True):
        fits = layer.context
        want, last = run(params, own[:, :fits])
        np.testing.assert_allclose(y[:, :fits], want, atol=1e-5)
        assert np.all(np.isnan(y[:, fits:]))
    for array, want in zip(jax.tree.leaves(carry), jax.tree.leaves(last), strict=True):
        np.testing.assert_allclose(array, want, atol=1e-5)


def test_a_model_says_before_it_writes_that_its_cache_is_too_small():
    model = LanguageModel(Block(LAYER), width=8, depth=2, vocab=16)
    assert model.limit == 6
    prompt = np.zeros((1, 4), np.int32)
    with pytest.raises(ValueError, match="7 tokens do not fit the model's cache of 6"):
        next(decode.generate(model, random_like(model.table()), prompt, 3, jax.random.key(0)))
    window = dataclasses.replace(LAYER, window=3)
    assert dataclasses.replace(model, block=Block(window)).limit == 0


def test_block_sizes_are_taken_as_given_and_change_nothing():
    """Those of the machine are 128 tokens here; a window's are no smaller than 64."""
    own, x = dataclasses.replace(LAYER, context=32), inputs(1, 20)
    params = params_of(own)
    shut = dataclasses.replace(own, block_size=4, window=7)
    assert (shut.rule.block, dataclasses.replace(shut, block_size=0).rule.block) == (4, 64)
    texts = [
        jax.jit(dataclasses.replace(own, block_size=size)).lower(params, x) for size in (0, 4, 256)
    ]
    found = [lowered.compile()(params, x)[0] for lowered in texts]
    assert texts[0].as_text() != texts[1].as_text()
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-6)


def test_a_window_keeps_one_token_less_than_it_sees():
    layer = Attention(width=8, heads=4, kv_heads=2, window=5)
    assert layer.carry_table(3)["key"].shape == (3, 2, 4, 2)


def test_training_holds_no_cache():
    """Memory of a gradient does not depend on the context that could be decoded."""

    def temporary(context):
        block = Block(Attention(heads=2, context=context), width=8)
        stack = Stack(block, depth=2)
        x = jax.ShapeDtypeStruct((2, 16, 8), jnp.float32)
        loss = jax.jit(jax.grad(lambda p, x: stack(p, x)[0].sum()))
        analysis = loss.lower(params_of(stack), x).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    assert temporary(1 << 20) == temporary(16)


@pytest.mark.parametrize(("heads", "groups", "named"), [(6, 6, "query"), (8, 2, "key")])
def test_heads_that_a_mesh_does_not_divide_are_named(heads, groups, named):
    layer = Attention(width=8, heads=heads, kv_heads=groups, head_size=2)
    with pytest.raises(UserError, match=rf"{named}.*'heads' = .*tensor=4"):
        rule_specs({named: layer.table()[named]}, layout_of((1, 1, 4)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 4, "kv_heads": 3}, "heads=4 is not a multiple of kv_heads=3"),
        ({"heads": 3}, "width=8 is not a multiple of heads=3"),
        ({"heads": 2, "head_size": 3}, "even head, not 3"),
        ({"context": 0}, "context must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Attention(width=8, **fields)


@pytest.mark.slow
def test_decoding_gives_the_logits_of_the_whole():
    block = Block(Attention(heads=4, kv_heads=2, context=40))
    model = LanguageModel(block, width=16, depth=2, vocab=32)
    params = random_like(model.table())
    tokens = np.random.default_rng(0).integers(0, 32, (2, 40)).astype(np.int32)
    whole, _ = jax.jit(model)(params, tokens)
    logits, carry = decode.prefill(model, params, tokens[:, :37])
    np.testing.assert_allclose(logits, whole[:, 36], atol=1e-4)
    for t in range(37, 40):
        logits, carry = decode.prefill(model, params, tokens[:, t : t + 1], carry)
        np.testing.assert_allclose(logits, whole[:, t], atol=1e-4)
