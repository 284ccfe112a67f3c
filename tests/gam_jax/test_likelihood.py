"""Continuations are as likely as the whole-sequence pass says, each as if it were asked alone."""

import jax
import numpy as np
import pytest

from gam_jax import decode
from gam_jax.layers import GAM, Attention, Block
from gam_jax.likelihood import Pair, cut, filled, likelihoods, rolling
from gam_jax.models.language import LanguageModel
from sharding.errors import UserError
from tests.arrays import compiled, put
from tests.examples import random_like
from tests.meshes import layout_of

MODEL = LanguageModel(Block(GAM(slots=8), Attention(heads=2, context=48)), 16, 2, vocab=32)
PARAMS = random_like(MODEL.table())
RANDOM = np.random.default_rng(0)
LENGTHS = ((1, 1), (40, 9), (3, 20), (10, 8))
PAIRS = [Pair(*(RANDOM.integers(0, 32, n) for n in lengths)) for lengths in LENGTHS]


def oracle(pair):
    """From the logits of the pair alone, in float64."""
    ids = np.concatenate(pair)
    logits = np.asarray(compiled(MODEL, PARAMS, ids[None, :-1])[0], np.float64)[0]
    logs = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    asked = len(pair.continuation)
    found = logs[-asked:][np.arange(asked), pair.continuation].sum()
    return found, bool(np.all(np.argmax(logits[-asked:], axis=-1) == pair.continuation))


@pytest.fixture(scope="module")
def want():
    return [oracle(pair) for pair in PAIRS]


@pytest.mark.parametrize("rows", [3, 4])
def test_each_pair_is_as_likely_as_it_is_alone(rows, want):
    found = likelihoods(MODEL, PARAMS, PAIRS, rows)
    np.testing.assert_allclose([one.log for one in found], [log for log, _ in want], rtol=1e-5)
    assert [one.greedy for one in found] == [greedy for _, greedy in want]


def test_what_the_model_writes_greedily_is_greedy_and_with_another_end_is_not():
    prompt = np.array([5, 6, 7])
    pieces = decode.generate(MODEL, PARAMS, prompt[None], 9, jax.random.key(0), temperature=0.0)
    text = decode.written(pieces)[0]
    other = np.append(text[:-1], (text[-1] + 1) % 32)
    found = likelihoods(MODEL, PARAMS, [Pair(prompt, text), Pair(prompt, other)])
    assert [one.greedy for one in found] == [True, False]
    assert found[0].log > found[1].log


@pytest.mark.parametrize("shape", [(2, 1, 2), (1, 2, 2)], ids=str)
def test_likelihoods_are_the_same_on_every_mesh(shape, want):
    found = likelihoods(MODEL, PARAMS, PAIRS, 4, layout_of(shape))
    np.testing.assert_allclose([one.log for one in found], [log for log, _ in want], rtol=1e-5)


@pytest.mark.parametrize("longest", [1, 4, 7, 10, 64])
@pytest.mark.parametrize("tokens", [0, 1, 4, 10])
def test_windows_ask_for_each_token_once_with_all_before_it_that_fits(tokens, longest):
    ids = np.arange(1, tokens + 1)
    whole, asked = [0, *ids], []
    for context, continuation in rolling(ids, 0, longest):
        window = [*context, *continuation]
        assert len(window) - 1 <= longest
        end = continuation[-1]
        assert window == whole[max(0, end - longest) : end + 1]
        asked += list(continuation)
    assert asked == list(ids)


def test_a_context_that_is_too_long_loses_its_beginning():
    pair = Pair(np.arange(10), np.arange(4))
    assert cut(pair, 13).context.tolist() == list(range(10))
    assert cut(pair, 5).context.tolist() == [8, 9]
    assert cut(pair, 4).context.tolist() == [9]
    with pytest.raises(UserError, match="a continuation of 4 tokens is longer than the 3"):
        cut(pair, 3)


def test_rows_have_few_lengths():
    found = [filled(tokens, 0) for tokens in range(1, 200)]
    assert sorted(set(found)) == [16, 24, 32, 48, 64, 96, 128, 192, 256]
    assert all(size >= tokens for tokens, size in enumerate(found, 1))
    assert filled(20, 21) == 21


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (Pair(np.zeros(0, int), np.ones(1, int)), "pair 1 needs a context and a continuation"),
        (Pair(np.ones(1, int), np.zeros(0, int)), "pair 1 needs a context and a continuation"),
        (Pair(np.ones(1, int), np.array([32])), "pair 1: id 32 at position 1 is outside"),
        (Pair(np.ones(40, int), np.ones(10, int)), "pair 1: 49 tokens do not fit the model's"),
    ],
)
def test_pairs_that_cannot_be_asked_are_refused_by_number(pair, words):
    with pytest.raises(UserError, match=words):
        likelihoods(MODEL, PARAMS, [PAIRS[0], pair])


def test_a_likelihood_that_is_no_number_is_refused():
    params = jax.tree.map(lambda x: put(np.full_like(x, np.nan)), PARAMS)
    with pytest.raises(UserError, match="the likelihood of continuation 1 is no number"):
        likelihoods(MODEL, params, PAIRS)
