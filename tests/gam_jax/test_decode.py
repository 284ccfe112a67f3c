"""Decoding is the whole-sequence pass, a token at a time."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax import decode
from gam_jax.layers import GAM, Block
from gam_jax.model import LanguageModel
from tests.examples import random_like

MODEL = LanguageModel(Block(GAM(slots=8)), width=16, depth=2, vocab=32)
PARAMS = random_like(MODEL.table())
PROMPT = np.random.default_rng(0).integers(0, 32, (2, 5)).astype(np.int32)


def write(tokens, **settings):
    pieces = decode.generate(MODEL, PARAMS, PROMPT, tokens, jax.random.key(1), **settings)
    return np.concatenate(list(pieces), axis=1)


@pytest.mark.parametrize("length", [1, 7, 300])
def test_prefill_in_chunks_equals_the_whole(length):
    tokens = np.random.default_rng(1).integers(0, 32, (1, length)).astype(np.int32)
    logits, carry = decode.prefill(MODEL, PARAMS, tokens)
    whole, last = jax.jit(MODEL)(PARAMS, tokens)
    chex.assert_trees_all_close(logits, whole[:, -1], atol=1e-5)
    chex.assert_trees_all_close(carry, last, atol=1e-5)


def test_greedy_text_is_the_argmax_of_the_whole_pass():
    text = write(12, temperature=0.0)
    assert text.shape == (2, 12)
    whole = np.concatenate([PROMPT, text], axis=1)
    best = jnp.argmax(MODEL(PARAMS, whole)[0], axis=-1)
    np.testing.assert_array_equal(text, best[:, PROMPT.shape[1] - 1 : -1])


def test_the_same_key_gives_the_same_text_however_long_it_is_asked_for():
    np.testing.assert_array_equal(write(21)[:, :10], write(10))


def test_nucleus_draws_only_from_the_likeliest_tokens():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
    many = jnp.broadcast_to(logits, (500, 4))
    draws = {
        p: set(np.asarray(decode.choose(many, jax.random.key(0), 1.0, p)).tolist())
        for p in (0.4, 0.7, 0.9, 1.0)
    }
    assert draws == {0.4: {0}, 0.7: {0, 1}, 0.9: {0, 1, 2}, 1.0: {0, 1, 2, 3}}


def test_draws_follow_the_softmax():
    logits = jnp.log(jnp.array([0.6, 0.3, 0.1]))
    many = jnp.broadcast_to(logits, (20_000, 3))
    drawn = decode.choose(many, jax.random.key(0), 1.0, 1.0)
    np.testing.assert_allclose(np.bincount(drawn) / 20_000, [0.6, 0.3, 0.1], atol=0.02)


def test_the_carry_has_one_size_for_ever():
    _, short = decode.prefill(MODEL, PARAMS, PROMPT)
    _, long = decode.prefill(MODEL, PARAMS, np.tile(PROMPT, (1, 50)))
    assert decode.carry_bytes(short) == decode.carry_bytes(long) == 4 + 2 * 2 * 2 * 16 * 4


def test_more_than_the_learned_positions_is_refused_before_anything_is_written():
    model = dataclasses.replace(MODEL, context=10)
    params = random_like(model.table())
    with pytest.raises(ValueError, match="11 tokens do not fit the model's 10"):
        next(decode.generate(model, params, PROMPT, 6, jax.random.key(0)))
