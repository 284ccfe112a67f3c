"""The rules of speculative decoding: their laws by enumeration, and by draws."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gam_jax.serve.rejection import (
    accept_chain,
    ends_of_chain,
    judge_certain,
    judge_drawn,
    left_over,
    same_draw,
    stands,
    tokens_a_pass,
    without,
)

SEEDS = st.integers(0, 2**32 - 1)


def laws(seed: int, *shape: int) -> np.ndarray:
    """Drawn distributions, some tokens of which are never drawn."""
    rng = np.random.default_rng(seed)
    found = rng.dirichlet(np.ones(shape[-1]), shape[:-1])
    found[rng.random(found.shape) < 0.2] = 0
    found[..., 0] += 1e-3
    return found / found.sum(-1, keepdims=True)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 3), st.booleans())
def test_drawn_guesses_keep_the_law(seed, count, replaced):
    p, q = laws(seed, 2, 4)
    law = np.zeros(4)
    for guesses in itertools.product(range(4), repeat=count):
        chance, left = 1.0, q
        for guess in guesses:
            chance *= left[guess]
            left = left if replaced or not left[guess] else without(left, guess)
        if chance:
            law += chance * judge_drawn(p, q, guesses, replaced).law(guesses)
    np.testing.assert_allclose(law, p, atol=1e-12)


@given(SEEDS, st.permutations(range(5)), st.integers(0, 5))
def test_certain_guesses_keep_the_law(seed, tokens, count):
    (p,) = laws(seed, 1, 5)
    np.testing.assert_allclose(judge_certain(p, tokens[:count]).law(tokens[:count]), p, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(1, 3))
def test_a_pass_over_a_chain_writes_by_the_law_of_the_model(seed, size):
    """The law of the first tokens, where what a pass has not written the model writes after it."""
    vocab = 3
    p, q = laws(seed, vocab, vocab), laws(seed + 1, vocab, vocab)
    found = np.zeros((vocab,) * (size + 1))
    for guesses in itertools.product(range(vocab), repeat=size):
        states = [0, *guesses]
        chance = np.prod(q[states[:-1], states[1:]])
        for end, stood, law in ends_of_chain(p[states], q[states[:-1]], guesses):
            for token in range(vocab):
                for rest in itertools.product(range(vocab), repeat=size - stood):
                    text = [*guesses[:stood], token, *rest]
                    after = np.prod([p[a, b] for a, b in itertools.pairwise(text[stood:])])
                    found[tuple(text)] += chance * end * law[token] * after
    for text in itertools.product(range(vocab), repeat=size + 1):
        wanted = np.prod([p[a, b] for a, b in itertools.pairwise((0, *text))])
        assert found[text] == pytest.approx(wanted, abs=1e-12)


def test_tokens_of_a_pass_are_as_often_as_the_law_says():
    p, q = laws(5, 3, 6), laws(6, 2, 6)
    rng, counts = np.random.default_rng(0), np.zeros(3)
    ends = [chance for chance, _, _ in ends_of_chain(p, q, [1, 0])]
    for _ in range(2000):
        counts[len(accept_chain(p, q, [1, 0], rng)) - 1] += 1
    assert sum(ends) == pytest.approx(1)
    np.testing.assert_allclose(counts / 2000, ends, atol=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_the_same_noise_draws_the_same_token_as_often_as_the_formula_says(seed):
    p, q = np.random.default_rng(seed).dirichlet(np.ones(6), 2)
    keys = jax.random.split(jax.random.key(seed), 20_000)
    draws = jax.vmap(jax.random.categorical, (0, None))
    same = float(jnp.mean(draws(keys, jnp.log(p)) == draws(keys, jnp.log(q))))
    assert same_draw(p, q) == pytest.approx(same, abs=0.015)
    assert same_draw(p, q) <= stands(p, q) + 1e-12
    assert same_draw(p, p) == pytest.approx(1)


def test_corners():
    p = np.asarray([0.25, 0.75])
    assert left_over(p, p) is p
    assert tokens_a_pass(1.0, 4) == 5
    assert tokens_a_pass(0.5, 2) == 1.75
    assert judge_drawn(p, p, [0]).chances == (1.0,)
