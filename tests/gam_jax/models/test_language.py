"""Laws of the language model and the published facts about it."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gam_jax.data.base import Unread
from gam_jax.data.text import Text
from gam_jax.layers import GAM, Block
from gam_jax.models.language import LanguageModel
from gam_jax.params import count_params, decay_mask, init_params
from sharding.errors import UserError
from tests.arrays import compiled
from tests.examples import random_like

SMALL = LanguageModel(Block(GAM(slots=8)), width=16, depth=3, vocab=32)
PARAMS = random_like(SMALL.table())
forward = jax.jit(SMALL)


def published(variant="full"):
    return LanguageModel(
        Block(GAM(slots=512, kernel=3, variant=variant)),
        width=512,
        depth=6,
        vocab=10_000,
        context=256,
        dropout=0.1,
        init="published",
    )


def tokens_of(count, batch=2, seed=0):
    return np.random.default_rng(seed).integers(0, 32, (batch, count)).astype(np.int32)


@pytest.mark.parametrize(
    ("variant", "count"),
    [("full", 22_599_680), ("sum", 19_447_808), ("global", 19_435_520), ("local", 17_874_944)],
)
def test_parameter_counts_are_the_published_ones(variant, count):
    assert count_params(published(variant).table()) == count


def test_the_published_model_sees_exactly_thirteen_tokens():
    model = LanguageModel(Block(GAM(slots=8, kernel=3)), width=16, depth=6, vocab=32)
    params = random_like(model.table())
    hidden = np.random.default_rng(1).normal(size=(1, 40, 16)).astype(np.float32)
    last = 30

    def at_last(x):
        y, _ = model.stack(params["blocks"], x)
        return jnp.sum(y[0, last] ** 2)

    reach = np.flatnonzero(np.any(np.asarray(jax.jit(jax.grad(at_last))(hidden))[0] != 0, axis=-1))
    assert (reach[0], reach[-1], len(reach)) == (last - 12, last, 13)


def test_the_global_variant_sees_the_current_token_alone():
    model = dataclasses.replace(SMALL, block=Block(GAM(slots=8, variant="global")))
    params = random_like(model.table())
    tokens = tokens_of(12, batch=1)
    shuffled = np.concatenate(
        [np.random.default_rng(1).permutation(tokens[0, :-1]), tokens[0, -1:]]
    )
    one, other = (np.asarray(compiled(model, params, x)[0]) for x in (tokens, shuffled[None]))
    np.testing.assert_allclose(one[:, -1], other[:, -1], atol=1e-6)


@given(cuts=st.lists(st.integers(1, 8), unique=True))
def test_any_split_gives_the_logits_and_carry_of_the_whole(cuts):
    tokens = tokens_of(9)
    whole, last = forward(PARAMS, tokens)
    carry, parts = SMALL.carry(2), []
    for part in np.split(tokens, sorted(cuts), axis=1):
        logits, carry = forward(PARAMS, part, carry)
        parts.append(logits)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-5)
    chex.assert_trees_all_close(carry, last, atol=1e-5)


def test_learned_positions_continue_over_chunks():
    model = dataclasses.replace(SMALL, context=20, init="published")
    params = random_like(model.table())
    tokens = tokens_of(20)
    whole, _ = compiled(model, params, tokens)
    first, carry = compiled(model, params, tokens[:, :7])
    second, _ = compiled(model, params, tokens[:, 7:], carry)
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), whole, atol=1e-5)


def test_positions_beyond_the_learned_ones_are_an_error():
    model = dataclasses.replace(SMALL, context=8)
    params = random_like(model.table())
    with pytest.raises(ValueError, match="9 tokens do not fit the model's 8 learned positions"):
        jax.eval_shape(model, params, tokens_of(9))
    _, carry = compiled(model, params, tokens_of(8))
    with pytest.raises(ValueError, match="learned positions"):
        model(params, tokens_of(1), carry)
    logits, _ = compiled(model, params, tokens_of(1), carry)
    assert np.isnan(logits).all()


def entropies(logits, targets):
    """Cross-entropies [B, T], in float64."""
    logits = np.asarray(logits, np.float64)
    sums = np.log(np.sum(np.exp(logits), axis=-1))
    return sums - np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]


def test_the_loss_is_the_weighted_mean_of_the_logits_cross_entropy():
    tokens, targets = tokens_of(10), tokens_of(10, seed=1)
    weights = np.random.default_rng(2).uniform(size=(2, 10)).astype(np.float32)
    losses = entropies(forward(PARAMS, tokens)[0], targets)
    want = np.sum(losses * weights) / np.sum(weights)
    found = compiled(SMALL.loss, PARAMS, tokens, targets, weights)
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_an_untied_head_gives_logits_and_loss_of_its_own():
    untied = dataclasses.replace(SMALL, tied=False)
    tokens, targets = tokens_of(10), tokens_of(10, seed=1)
    same = {**PARAMS, "head": PARAMS["embedding"]}
    found = compiled(untied, same, tokens)[0]
    chex.assert_trees_all_close(found, forward(PARAMS, tokens)[0], atol=1e-6)
    hidden, _ = compiled(SMALL.hidden, PARAMS, tokens)
    head = random_like(untied.table())["head"]
    logits = compiled(untied, {**PARAMS, "head": head}, tokens)[0]
    np.testing.assert_allclose(logits, np.asarray(hidden) @ np.asarray(head).T, atol=1e-5)
    loss = compiled(untied.loss, {**PARAMS, "head": head}, tokens, targets)
    np.testing.assert_allclose(loss, entropies(logits, targets).mean(), rtol=1e-5)


def test_a_cap_bends_logits_and_their_loss():
    capped = dataclasses.replace(SMALL, logit_cap=0.5)
    tokens, targets = tokens_of(10), tokens_of(10, seed=1)
    logits = 0.5 * np.tanh(np.asarray(forward(PARAMS, tokens)[0]) / 0.5)
    chex.assert_trees_all_close(compiled(capped, PARAMS, tokens)[0], logits, atol=1e-6)
    last = compiled(capped.last_logits, PARAMS, tokens)[0]
    chex.assert_trees_all_close(last, logits[:, -1], atol=1e-6)
    loss = compiled(capped.loss, PARAMS, tokens, targets)
    np.testing.assert_allclose(loss, entropies(logits, targets).mean(), rtol=1e-5)


def test_dropout_needs_a_key_and_the_key_decides_it():
    model = dataclasses.replace(SMALL, dropout=0.5, block=Block(GAM(slots=8)))
    params = random_like(model.table())
    tokens = tokens_of(10)
    plain, _ = forward(PARAMS, tokens)
    run = jax.jit(model)
    chex.assert_trees_all_equal(run(params, tokens)[0], plain)
    keys = map(jax.random.key, (1, 2, 1))
    one, two, again = (np.asarray(run(params, tokens, key=key)[0]) for key in keys)
    chex.assert_trees_all_equal(one, again)
    assert np.any(one != two)


def test_rematerialisation_changes_no_gradient():
    tokens, targets = tokens_of(10), tokens_of(10, seed=1)
    remat = dataclasses.replace(SMALL, remat=True)
    gradients = [jax.jit(jax.grad(m.loss))(PARAMS, tokens, targets) for m in (SMALL, remat)]
    chex.assert_trees_all_close(*gradients, rtol=1e-5, atol=1e-7)


def test_bfloat16_stays_near_float32():
    half = dataclasses.replace(SMALL, dtype="bfloat16")
    tokens, targets = tokens_of(10), tokens_of(10, seed=1)
    found, want = (compiled(m.loss, PARAMS, tokens, targets) for m in (half, SMALL))
    np.testing.assert_allclose(found, want, rtol=2e-2)


def test_the_two_initialisations_differ_in_the_share_of_the_token():
    """Published: tokens are 0.07 % of the variance of the first input; sound: far more."""
    shares = {}
    for init in ("published", "sound"):
        model = dataclasses.replace(published(), init=init, depth=1, vocab=1000)
        table = {name: model.table()[name] for name in ("embedding", "positions")}
        params = jax.jit(functools.partial(init_params, table))(jax.random.key(0))
        token, place = np.var(params["embedding"]), np.var(params["positions"])
        shares[init] = float(token / (token + place))
    assert shares["published"] == pytest.approx(0.0007, rel=0.15)
    assert shares["sound"] > 0.5


def test_decay_is_for_matrices_alone():
    table = SMALL.table()
    mask = decay_mask(table)
    for path, decays in jax.tree_util.tree_leaves_with_path(mask):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        is_matrix = not any(word in name for word in ("bias", "b_in", "b_out", "norm"))
        assert decays is is_matrix, name


@pytest.mark.parametrize(("vocab", "fitted"), [(None, 256), (256, 256), (300, 300)])
def test_a_vocabulary_is_as_large_as_the_tokenizer_or_larger(vocab, fitted):
    model = dataclasses.replace(SMALL, vocab=vocab)
    assert model.fitted(Unread(Text(tokenizer="bytes"))).vocab == fitted


def test_a_vocabulary_that_is_smaller_than_the_tokenizer_is_refused():
    with pytest.raises(UserError, match=r"model.vocab=32 but the tokenizer has 256 ids"):
        SMALL.fitted(Unread(Text(tokenizer="bytes")))
