"""Routers choose and weight as their papers say; capacity drops who comes late."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax.ops.routing import (
    Capacity,
    Filled,
    Router,
    balance_loss,
    choose,
    choose_tokens,
    entropy,
    max_violation,
    positions,
    positions_by_choice,
    positions_on_device,
)
from tests.arrays import put
from tests.oracle import sigmoid, softmax

EXPERTS, CHOSEN = 8, 3
LOGITS = np.random.default_rng(0).normal(size=(2, 7, EXPERTS))


def best(scores, count):
    return np.argsort(-scores)[:count]


def switch(logits, bias):
    p = softmax(logits)
    chosen = best(p, CHOSEN)
    return chosen, p[chosen]


def mixtral(logits, bias):
    p = softmax(logits)
    chosen = best(p, CHOSEN)
    return chosen, p[chosen] / p[chosen].sum()


def gpt_oss(logits, bias):
    chosen = best(logits, CHOSEN)
    return chosen, softmax(logits[chosen])


def deepseek(logits, bias):
    """Two of four groups by the sum of their two best; the bias counts in choosing alone."""
    s = sigmoid(logits)
    biased = (s + bias).reshape(4, 2)
    kept = best(biased.sum(axis=1), 2)
    masked = np.full((4, 2), -np.inf)
    masked[kept] = biased[kept]
    chosen = best(masked.reshape(-1), CHOSEN)
    return chosen, 2.5 * s[chosen] / (s[chosen].sum() + 1e-20)


choices = jax.jit(choose, static_argnums=(0, 1))
places_of = jax.jit(positions)

ROUTERS = {
    "switch": (switch, Router(renormalise=False)),
    "mixtral": (mixtral, Router()),
    "gpt-oss": (gpt_oss, Router()),
    "deepseek": (deepseek, Router("sigmoid", scale=2.5, groups=4, chosen_groups=2)),
}


@pytest.mark.parametrize(("formula", "router"), ROUTERS.values(), ids=ROUTERS)
def test_a_token_s_experts_and_weights_are_those_of_the_formula(formula, router):
    bias = np.random.default_rng(1).normal(size=EXPERTS) if formula is deepseek else None
    found = choices(router, CHOSEN, put(LOGITS, jnp.float32), bias)
    choice = jax.tree.map(np.asarray, found)
    for place in np.ndindex(*LOGITS.shape[:2]):
        experts, weights = formula(LOGITS[place], bias)
        np.testing.assert_array_equal(choice.experts[place], experts)
        np.testing.assert_allclose(choice.weights[place], weights, rtol=1e-5)
        np.testing.assert_array_equal(np.argmax(choice.hot[place], axis=1), experts)
    np.testing.assert_allclose(np.sum(choice.probabilities, axis=-1), 1, rtol=1e-5)


def test_of_equal_scores_the_first_is_taken():
    choice = choices(Router(), 2, np.zeros((1, 1, 4), np.float32))
    assert choice.experts.tolist() == [[[0, 1]]]


def test_experts_choose_their_best_tokens_of_a_sequence():
    found = jax.jit(choose_tokens, static_argnums=(0, 1))
    choice, kept = found(Router(by="expert"), CHOSEN, put(LOGITS, jnp.float32))
    kept, scores = np.asarray(kept), np.apply_along_axis(softmax, -1, LOGITS)
    assert np.all(np.sum(kept, axis=1) == 3)  # 7 tokens x 3 / 8 experts, rounded up
    for row, expert in np.ndindex(2, EXPERTS):
        taken = np.flatnonzero(kept[row, :, expert])
        assert set(taken) == set(best(scores[row, :, expert], 3))
    np.testing.assert_allclose(choice.weights, scores, rtol=1e-6)


def hot_choices(tokens, seed=0, batch=2):
    logits = np.random.default_rng(seed).normal(size=(batch, tokens, EXPERTS))
    return jax.tree.map(np.asarray, choices(Router(), CHOSEN, put(logits, jnp.float32)))


def counted(experts, order):
    """The running count of each expert, one choice after another."""
    count, place = {}, np.zeros(experts.shape, int)
    for index in order:
        expert = int(experts[index])
        place[index] = count.get(expert, 0)
        count[expert] = place[index] + 1
    return place


@pytest.mark.parametrize("span", [1, 4, 5, 11, 64])
@pytest.mark.parametrize("seen", [0, 3])
def test_positions_are_the_running_count_of_a_span(span, seen):
    """In the order of tokens; a sequence that has begun goes on within its span."""
    choice = hot_choices(11)
    before = Filled(np.zeros(2, np.int32), np.zeros((2, EXPERTS), np.int32))
    _, middle = places_of(choice.hot[:, :seen], span, before) if seen else (None, before)
    found, after = places_of(choice.hot[:, seen:], span, middle)
    for row in range(2):
        want = np.concatenate(
            [
                counted(choice.experts[row, start : start + span], order)
                for start in range(0, 11, span)
                for order in [list(np.ndindex(min(span, 11 - start), CHOSEN))]
            ]
        )
        np.testing.assert_array_equal(found[row], want[seen:])
    assert after.seen.tolist() == [11, 11]


def test_first_choices_of_a_span_come_before_second_ones():
    choice, span = hot_choices(11), 4
    found = jax.jit(positions_by_choice, static_argnums=1)(choice.hot, span)
    for row, start in np.ndindex(2, 3):
        part = choice.experts[row, span * start : span * (start + 1)]
        order = [(t, k) for k in range(CHOSEN) for t in range(len(part))]
        np.testing.assert_array_equal(
            found[row, span * start : span * (start + 1)], counted(part, order)
        )


@pytest.mark.parametrize("by_choice", [False, True])
def test_on_a_device_all_sequences_are_one_span(by_choice):
    choice = hot_choices(5)
    inside = [(t, b) for t in range(5) for b in range(2)]
    if by_choice:
        order = [(b, t, k) for k in range(CHOSEN) for t, b in inside]
    else:
        order = [(b, t, k) for t, b in inside for k in range(CHOSEN)]
    found = jax.jit(positions_on_device, static_argnums=1)(choice.hot, by_choice)
    np.testing.assert_array_equal(found, counted(choice.experts, order))


def test_room_is_an_even_share_times_the_factor():
    assert Capacity(1.25, tokens=256).room(2, 8) == 80
    assert Capacity(1.0, tokens=0).room(2, 8, 100) == 25
    assert Capacity(1.0, tokens=8).most(2, 8, rows=3, tokens=16) == 3 * 3 * 2  # cut at both ends
    assert Capacity(1.0, tokens=8).most(2, 8, rows=3, tokens=16, begins=True) == 3 * 2 * 2
    assert Capacity(1.0, tokens=8).most(2, 8, rows=3, tokens=4, begins=True) == 3 * 2
    assert Capacity(0.0).most(2, 8, rows=3, tokens=16) == 48


def test_the_balance_loss_is_one_where_all_is_even():
    even, loss = np.full(8, 3.0), jax.jit(balance_loss)
    np.testing.assert_allclose(loss(even, even), 1)
    counts, mass = np.array([3.0, 1.0]), np.array([1.2, 2.8])
    np.testing.assert_allclose(loss(counts, mass), 2 * (0.75 * 0.3 + 0.25 * 0.7), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(max_violation)(counts), 0.5)
    np.testing.assert_allclose(jax.jit(entropy)(put([0.5, 0.5, 0.0])), np.log(2), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Router("tanh"), "Router.score 'tanh' is not one of softmax, sigmoid"),
        (lambda: Router(chosen_groups=2), "chosen_groups must be from 0"),
        (lambda: Capacity(first="last"), "Capacity.first 'last' is neither"),
        (lambda: Capacity(-1.0), "must not be negative"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
