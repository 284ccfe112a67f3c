"""Tables of probabilities beside autodiff and beside float64 NumPy; whole searches under vmap."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax.search import Space, TableSearch, Told, learn
from gam_jax.search.tables import (
    LEAST,
    RULES,
    Settings,
    advantages,
    draw,
    log_likelihood,
    uniform,
    update,
)
from sharding.errors import UserError

SIZES = (3, 2, 4)
WORTH = (np.array([2.0, 0.0, 1.0]), np.array([1.0, 0.0]), np.array([3.0, 1.0, 0.0, 2.0]))


def cost(points):
    """A sum over choices; one point is refused."""
    own = sum(jnp.asarray(w)[points[:, i]] for i, w in enumerate(WORTH))
    return jnp.where(jnp.all(points == jnp.asarray([0, 0, 0]), axis=1), jnp.inf, own)


costs = jax.jit(cost)


@pytest.fixture
def table():
    logits = np.asarray(uniform(SIZES)) + np.asarray(jax.random.normal(jax.random.key(1), (3, 4)))
    drawn = draw(logits, jax.random.key(2), 16)
    return logits, drawn, costs(drawn)


def p_of(logits):
    exp = np.exp(np.asarray(logits, np.float64))
    return exp / exp.sum(1, keepdims=True)


def test_values_that_a_choice_has_not_are_never_drawn(table):
    logits, _, _ = table
    drawn = draw(logits, jax.random.key(0), 4000)
    assert np.all(np.asarray(drawn) < np.asarray(SIZES))
    for place, size in enumerate(SIZES):
        often = np.bincount(drawn[:, place], minlength=4) / 4000
        np.testing.assert_allclose(often, p_of(logits)[place], atol=0.04)
        assert not often[size:].any()
    greedy = np.asarray(draw(logits, jax.random.key(0), 9, greed=1.0))
    assert np.all(greedy == np.argmax(logits, axis=1))


def test_reinforce_is_the_gradient_of_the_expected_reward(table):
    """By autodiff of the advantage times the log likelihood, the whole point's at once."""
    logits, drawn, scores = table

    @jax.jit
    @jax.grad
    def slope(logits):
        return jnp.mean(advantages(scores) * log_likelihood(logits, drawn))

    by_hand = np.asarray(logits, np.float64) + 0.5 * np.nan_to_num(slope(logits))
    found = p_of(update("reinforce", logits, drawn, scores, Settings(0.5)))
    np.testing.assert_allclose(found, p_of(by_hand), atol=1e-6)


def test_advantages_are_standardised_and_the_refused_are_the_worst():
    scores = np.array([1.0, 4.0, np.inf, 2.0])
    rewards = -np.array([1.0, 4.0, 4.0, 2.0])
    wanted = (rewards - rewards.mean()) / rewards.std()
    found = jax.jit(advantages)
    np.testing.assert_allclose(found(scores), wanted, rtol=1e-6)
    assert not np.any(found(np.full(4, np.inf)))
    assert not np.any(found(np.ones(4)))


@pytest.mark.parametrize("rule", ["ants", "cross_entropy"])
def test_shares_move_towards_the_best(table, rule):
    logits, drawn, scores = table
    many = 1 if rule == "ants" else 4  # a quarter of sixteen
    order = np.argsort(np.asarray(scores), kind="stable")[:many]
    often = np.zeros((3, 4))
    for point in np.asarray(drawn)[order]:
        often[np.arange(3), point] += 1 / many
    wanted = 0.7 * p_of(logits) + 0.3 * often
    found = update(rule, logits, drawn, scores, Settings(0.3, elite=0.25))
    np.testing.assert_allclose(p_of(found), wanted, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_a_round_of_refusals_changes_nothing_and_no_value_is_lost(table, rule):
    logits, drawn, scores = table
    same = update(rule, logits, drawn, np.full(16, np.inf), Settings(0.9))
    np.testing.assert_allclose(p_of(same), p_of(logits), atol=1e-6)
    for _ in range(60):
        logits = update(rule, logits, drawn, scores, Settings(1.0))
    for place, size in enumerate(SIZES):
        assert np.all(np.asarray(logits)[place, :size] >= LEAST)
        assert np.all(np.isneginf(np.asarray(logits)[place, size:]))


@pytest.mark.parametrize("rule", RULES)
def test_searches_under_vmap_are_those_one_by_one(rule):
    keys = jax.random.split(jax.random.key(0), 3)
    rates = np.array([0.1, 0.3, 0.6], np.float32)

    def one(key, rate):
        return learn(cost, rule, SIZES, 6, 8, Settings(rate, 0.1, 0.25), key)

    together = jax.jit(jax.vmap(one))(keys, rates)
    for number in range(3):
        alone = one(keys[number], rates[number])
        np.testing.assert_array_equal(together[1][number], alone[1])
        np.testing.assert_allclose(together[0][number], alone[0], atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_the_strategy_is_the_compiled_search(rule):
    space = Space.of({name: list(range(size)) for name, size in zip("abc", SIZES, strict=True)})
    own = TableSearch(rule, count=8, rate=0.3, greed=0.1, elite=0.25)
    searcher, asked = own.begin(space, seed=4), []
    while len(asked) < 48:
        points = searcher.ask(3)
        asked += points
        scores = np.asarray(costs(np.asarray(points))).tolist()
        searcher.tell([Told(p, s) for p, s in zip(points, scores, strict=True)])
    _, drawn, _ = learn(cost, rule, SIZES, 6, 8, own.settings, jax.random.key(4))
    np.testing.assert_array_equal(asked, np.asarray(drawn).reshape(48, 3))


def test_a_joint_table_is_a_table_of_points():
    space = Space.of({"a": [0, 1], "b": [0, 1, 2]})
    searcher = TableSearch("ants", joint=True, count=4, rate=0.9).begin(space)
    for _ in range(10):
        points = searcher.ask(4)
        searcher.tell([Told(point, float(point != (1, 2))) for point in points])
    assert searcher.ask(4).count((1, 2)) >= 3
    many = Space.of({name: list(range(20)) for name in "abcd"})
    with pytest.raises(UserError, match=r"160,000 points are more than 100,000"):
        TableSearch(joint=True).begin(many)


def test_learning_finds_the_best_of_a_sum():
    best = tuple(int(np.argmin(own)) for own in WORTH)
    for rule in RULES:
        run = functools.partial(learn, cost, rule, SIZES, 40, 8, Settings(0.3, 0.1, 0.25))
        last, _, _ = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(3), 5))
        found = [tuple(row) for row in np.argmax(last, axis=2).tolist()]
        assert found.count(best) >= 4, (rule, found)
