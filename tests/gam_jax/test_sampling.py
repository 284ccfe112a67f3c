"""What is drawn from logits: equal to the equations, to transformers, and to each row alone.

`tests/golden/sampling.py` wrote what transformers' logits processors leave.
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax import sampling
from gam_jax.sampling import Past, Settings
from sharding.errors import UserError
from tests.arrays import put

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "sampling.npz"
NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
TAKEN = ("presence_penalty", "frequency_penalty")
ROWS, VOCAB = 12, 24
filtered = jax.jit(sampling.filtered)
choose = jax.jit(sampling.choose)


def softmax(logits):
    weights = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def probabilities(logits, settings, seen):
    left = filtered(put(logits), settings.of_rows(len(logits)), Past.of(seen))
    return softmax(left)


def oracle(logits, temperature, top_p, top_k, min_p, penalty, seen, change=0.0):
    """The equations for one row, in float64; `change` is what is added before temperature."""
    logits = np.where(seen, np.where(logits < 0, logits * penalty, logits / penalty), logits)
    logits = logits + change
    if temperature == 0:
        return (np.arange(len(logits)) == np.argmax(logits)).astype(float)
    weights = np.exp((logits - logits.max()) / temperature)
    if top_k:
        weights[weights < np.sort(weights)[-min(top_k, len(weights))]] = 0
    if top_p < 1:
        order = np.argsort(-weights, kind="stable")
        reached = np.cumsum(weights[order]) / weights.sum()
        last = order[np.argmax(reached >= top_p)]
        weights[weights < weights[last]] = 0
    weights[weights < min_p * weights.max()] = 0
    return weights / weights.sum()


def test_each_row_is_filtered_by_its_own_settings_as_transformers_does():
    golden = np.load(GOLDEN)
    drawn = dict(zip(NAMES, golden["settings"].T, strict=True))
    settings = Settings(**{**drawn, "top_k": drawn["top_k"].astype(int)})
    seen = sampling.seen_in(list(golden["seen"]), VOCAB)
    found = probabilities(golden["logits"], settings, seen)
    np.testing.assert_allclose(found, golden["probabilities"], atol=2e-6)
    np.testing.assert_array_equal(found > 0, golden["probabilities"] > 0)


def test_what_is_left_is_what_the_equations_leave():
    random = np.random.default_rng(1)
    for some in (False, True) * 10:
        logits = (4 * random.standard_normal((ROWS, VOCAB))).astype(np.float32)
        read, written = random.random((ROWS, VOCAB)) < 0.3, random.poisson(0.2, (ROWS, VOCAB))
        past = Past(put(read), put(written, jnp.int32))
        ids = np.stack([random.permutation(VOCAB + 3)[:5] for _ in range(ROWS)])  # V and on: none
        bias = some * random.normal(0, 3, (ROWS, 5)).astype(np.float32)
        allowed = random.random((ROWS, VOCAB)) < (0.6 if some else 2)
        allowed[:, 0] = True
        drawn = {
            "temperature": random.choice([0, 0.3, 1, 2], ROWS),
            "top_p": random.choice([0, 0.5, 0.9, 1], ROWS),
            "top_k": random.choice([0, 1, 6, 1000], ROWS),
            "min_p": random.choice([0, 0.02, 0.3, 1], ROWS),
            "repetition_penalty": random.choice([0.5, 1, 1.4], ROWS),
            **{name: some * random.choice([-1.5, 0, 0.4], ROWS) for name in TAKEN},
        }
        rows = Settings(**drawn).of_rows(ROWS).replace(biased=put(ids), bias=bias)
        found = softmax(filtered(logits, rows, past, allowed))
        for row in range(ROWS):
            own = [drawn[name][row] for name in NAMES]
            presence, frequency = (drawn[name][row] for name in TAKEN)
            change = np.where(allowed[row], 0.0, -np.inf)
            np.add.at(change, ids[row][ids[row] < VOCAB], bias[row][ids[row] < VOCAB])
            change -= presence * (written[row] > 0) + frequency * written[row]
            seen = read[row] | (written[row] > 0)
            want = oracle(logits[row].astype(np.float64), *own, seen, change)
            np.testing.assert_allclose(found[row], want, atol=3e-6, err_msg=str(own))


@pytest.mark.parametrize("sharp", [0.1, 1.0, 6.0])
def test_a_sort_of_the_likeliest_leaves_what_a_sort_of_all_leaves(sharp):
    """To the bit; with equals among them, and whether the nucleus lies in the part or beyond."""
    random = np.random.default_rng(3)
    beyond, some = jax.jit(least_of_part), 0
    for _ in range(20):
        logits = np.round(sharp * random.standard_normal((ROWS, 60)), 1).astype(np.float32)
        drawn = {
            "top_p": random.choice([0, 0.5, 0.9, 0.999, 1], ROWS),
            "top_k": random.choice([0, 1, 5, 8, 9, 1000], ROWS),
        }
        rows = Settings(**drawn).of_rows(ROWS)
        scaled = put(logits - logits.max(axis=1, keepdims=True))
        found, known = beyond(scaled, rows)
        ordered = put(-np.sort(-np.asarray(scaled), axis=-1))
        want, _ = jax.jit(sampling._least_in, static_argnums=3)(ordered, scaled, rows, 8)
        np.testing.assert_array_equal(found, want)
        one = jax.tree.map(lambda x: np.asarray(x)[:1], (scaled, rows))
        np.testing.assert_array_equal(jax.jit(least_of_part)(*one)[0], np.asarray(want)[:1])
        some += int(np.sum(known))
    assert 0 < some < 20 * ROWS


def least_of_part(scaled, rows):
    first = jax.lax.top_k(scaled, 8)[0]
    known = sampling._least_in(first, scaled, rows, 8)[1]
    return sampling._least_sorted(scaled, rows, 8), known


def test_a_row_gets_what_it_gets_alone_whatever_the_others_ask_for():
    logits = 3 * np.random.default_rng(0).normal(size=(3, VOCAB)).astype(np.float32)
    past, keys = Past.of(np.zeros((3, VOCAB), bool)), jax.random.split(jax.random.key(1), 3)
    own_keys = jax.jit(lambda keys: [keys[row : row + 1] for row in range(3)])(keys)
    settings = Settings(temperature=(0.0, 1.0, 1.0), top_k=(0, 0, 4), top_p=(1.0, 1.0, 0.8))
    rows = settings.of_rows(3)
    together = np.asarray(choose(logits, keys, rows, past))
    left = np.asarray(filtered(logits, rows, past))
    for row in range(3):
        own = jax.tree.map(lambda x, at=row: np.asarray(x)[at : at + 1], (rows, past))
        one = logits[row : row + 1]
        np.testing.assert_array_equal(filtered(one, *own), left[row : row + 1])
        assert choose(one, own_keys[row], *own).tolist() == [together[row]]


def test_no_setting_compiles_anything():
    program = jax.jit(lambda *args: sampling.filtered(*args))
    logits, past = np.zeros((2, VOCAB), np.float32), Past.of(np.zeros((2, VOCAB), bool))
    for settings in (Settings(), Settings(0.0), Settings(0.5, 0.9, 3, 0.1, (1.3, 1.0))):
        program(logits, settings.of_rows(2), past)
    assert program._cache_size() == 1


def test_draws_follow_the_softmax():
    many = np.tile(np.log(np.array([0.6, 0.3, 0.1], np.float32)), (20_000, 1))
    keys = sampling.row_keys(jax.random.key(0), 20_000)
    drawn = choose(many, keys, Settings().of_rows(20_000), Past.of(np.zeros(many.shape, bool)))
    np.testing.assert_allclose(np.bincount(drawn) / 20_000, [0.6, 0.3, 0.1], atol=0.02)


def test_greedy_takes_the_first_of_equals():
    logits = put([[0.0, 2.0, 2.0, -np.inf]], np.float32)
    drawn = choose(
        logits,
        sampling.row_keys(jax.random.key(0), 1),
        Settings(0.0).of_rows(1),
        Past.of(np.zeros((1, 4), bool)),
    )
    assert drawn.tolist() == [1]


def test_a_draw_is_that_of_jax_and_the_likeliest_that_of_numpy():
    logits = np.random.default_rng(0).integers(0, 5, (40, 300)).astype(np.float32)  # many are equal
    logits[logits == 0] = -np.inf
    logits[0], logits[1, 7] = -np.inf, np.inf
    drawn, wanted = jax.jit(
        jax.vmap(lambda key, x: (sampling.categorical(key, x), jax.random.categorical(key, x)))
    )(sampling.row_keys(jax.random.key(3), 40), logits)
    np.testing.assert_array_equal(drawn, wanted)
    np.testing.assert_array_equal(jax.jit(sampling.likeliest)(logits), logits.argmax(-1))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"top_k": -1}, "top_k=-1: top_k must not be negative"),
        ({"top_k": 2.5}, "top_k must be a whole number"),
        ({"min_p": 1.5}, "min_p=1.5: min_p must be from 0 to 1"),
        ({"temperature": [0.5, -1.0]}, "temperature=-1.0: temperature must not be negative"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be at least 0.001"),
        ({"top_p": np.ones((2, 2))}, "top_p: give one number, or one for each row"),
        ({"top_p": [0.5, 0.6]}, "top_p: 2 numbers for 3 rows"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        Settings(**settings).of_rows(3)


def test_every_setting_has_an_array():
    fields = {field.name for field in dataclasses.fields(Settings)}
    rows = dataclasses.asdict(Settings().of_rows(2))
    assert fields | {"biased", "bias"} == rows.keys() == {*NAMES, *TAKEN, "biased", "bias"}
    assert all(x.shape == (2,) for name, x in rows.items() if name in fields)


def test_log_probabilities_are_before_all_settings_and_filled_up():
    logits = np.random.default_rng(0).normal(0, 3, (2, 3, 5)).astype(np.float32)
    ids = np.array([[0, 4, 2], [1, 1, 3]])
    log_probs_of = jax.jit(sampling.log_probs_of, static_argnums=2)
    own, top, values = map(np.asarray, log_probs_of(logits, ids, 7))
    whole = logits - np.log(np.sum(np.exp(np.float64(logits)), axis=-1, keepdims=True))
    np.testing.assert_allclose(
        own, np.take_along_axis(whole, ids[..., None], -1)[..., 0], atol=1e-5
    )
    np.testing.assert_array_equal(top[..., :5], np.argsort(-whole, axis=-1))
    np.testing.assert_allclose(values[..., :5], -np.sort(-whole, axis=-1), atol=1e-5)
    assert np.all(np.isneginf(values[..., 5:]))
    assert not np.any(top[..., 5:])
