"""MoFME against its equations, one token and one expert at a time in float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax.layers import MLP, MoFME
from gam_jax.layers.mofme import calibrated
from gam_jax.ops.dropout import dropout
from gam_jax.params import count_params
from tests import oracle
from tests.arrays import put
from tests.examples import WIDTH, apply, inputs, params_of


def shared(params, x):
    """h of one token."""
    gate = oracle.gelu(x @ params["w_gate"] + params["b_gate"])
    return gate * (x @ params["w_in"] + params["b_in"])


def adapted(params, y):
    """The MLP that follows, gelu in between."""
    return params["w_out"] @ oracle.gelu(y @ params["w_in"])


def evaluated(params, x, weights, chosen):
    """One token: the experts of the largest weights, each by itself."""
    h, y = shared(params, x), np.zeros(len(x))
    best = np.argsort(-weights)[:chosen]
    for e in best:
        (scale, shift), (g, c) = (
            np.split(params[name][e], 2, axis=-1) for name in ("modulation", "modulation_bias")
        )
        y += weights[e] / weights[best].sum() * ((h @ scale + g) * h + h @ shift + c)
    return adapted(params["adaptor"], y)


def wide(params):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


@functools.partial(jax.jit, static_argnums=0)
def trained(layer, params, x, key):
    """The layer as it is in training."""
    return layer(params, x, key=key)


def probabilities(params, x):
    return oracle.softmax(x @ params["router"] + params["router_bias"])


@pytest.mark.parametrize(("experts", "chosen"), [(8, 2), (3, 3), (1, 1)])
def test_it_is_the_weighted_sum_of_its_experts(experts, chosen):
    layer = MoFME(width=WIDTH, experts=experts, chosen=chosen)
    params, x = params_of(layer), inputs(2, 5)
    y, _ = apply(layer, params, x)
    own, rows = wide(params), np.asarray(x, np.float64).reshape(-1, WIDTH)
    expected = [evaluated(own, row, probabilities(own, row), chosen) for row in rows]
    np.testing.assert_allclose(y.reshape(-1, WIDTH), expected, rtol=2e-5, atol=2e-5)


def test_in_training_experts_that_the_router_doubts_count_less():
    layer = MoFME(width=WIDTH, experts=4, chosen=2, samples=3, doubt=0.4)
    params, x, key = params_of(layer), inputs(1, 3), jax.random.key(5)
    y, _ = trained(layer, params, x, key)

    @jax.jit
    def samples_of(x, key):
        keys = jax.random.split(jax.random.split(key)[0], 3)
        return jnp.stack([dropout(x, 0.4, own)[0] for own in keys])

    asked = np.asarray(samples_of(x, key), np.float64)
    own = wide(params)
    for t in range(3):
        samples = np.stack([probabilities(own, row[t]) for row in asked])
        mean, deviation = samples.mean(axis=0), samples.std(axis=0)
        assert deviation.max() > 0.01
        expected = evaluated(own, np.asarray(x[0, t], np.float64), mean / (1 + deviation / mean), 2)
        np.testing.assert_allclose(y[0, t], expected, rtol=2e-5, atol=2e-5)


def test_a_router_without_doubt_trains_as_it_evaluates():
    x = inputs(2, 4)
    for layer in (
        MoFME(width=WIDTH, experts=4, doubt=0.0),
        MoFME(width=WIDTH, experts=4, samples=0),
    ):
        params = params_of(layer)
        found, _ = trained(layer, params, x, jax.random.key(0))
        np.testing.assert_array_equal(found, apply(layer, params, x)[0])


def test_samples_that_agree_change_nothing_and_one_that_wavers_loses():
    p, found_of = np.array([0.5, 0.3, 0.2]), jax.jit(calibrated)
    np.testing.assert_allclose(found_of(np.stack([p, p, p])), p, rtol=1e-6)
    found = np.asarray(found_of(np.array([[0.5, 0.4, 0.1], [0.5, 0.1, 0.4]])))
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-6)
    assert found[0] > 0.5
    gradient = jax.jit(jax.grad(lambda q: calibrated(jnp.stack([q, q]))[0]))(put(p))
    assert np.all(np.isfinite(gradient))


def test_experts_that_do_not_modulate_are_the_shared_one_whatever_the_router_says():
    layer = MoFME(width=WIDTH, experts=4, chosen=2)
    params = dict(params_of(layer))
    params["modulation"] = put(np.zeros((4, WIDTH, 2 * WIDTH)), np.float32)
    params["modulation_bias"] = put(np.tile(np.repeat([1.0, 0.0], WIDTH), (4, 1)), np.float32)
    x = inputs(1, 3)
    y, _ = apply(layer, params, x)
    own = wide(params)
    expected = [adapted(own["adaptor"], shared(own, row)) for row in np.asarray(x[0], np.float64)]
    np.testing.assert_allclose(y[0], expected, rtol=2e-5, atol=2e-5)


def test_the_loss_reaches_the_router_and_no_expert_that_was_not_chosen():
    layer = MoFME(width=WIDTH, experts=4, chosen=2)
    params, x = params_of(layer), inputs(1, 1)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(layer(p, x)[0] ** 2)))(params)
    assert np.any(gradient["router"])
    reached = [bool(np.any(expert)) for expert in np.asarray(gradient["modulation"])]
    assert sum(reached) == 2


def test_an_expert_costs_two_squares_of_the_width():
    """As in the official code at D = 384, where one more costs 8 D^2 in a mixture of its MLPs."""
    counts = [count_params(MoFME(width=384, experts=n, chosen=1).table()) for n in (4, 5)]
    assert counts[1] - counts[0] == 2 * 384**2 + 2 * 384 + 384 + 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"experts": 4, "chosen": 5}, "chosen=5 is not from 1 to experts=4"),
        ({"samples": -1}, "must not be negative"),
        ({"doubt": 1.0}, "below 1"),
    ],
)
def test_fields_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        MoFME(width=WIDTH, adaptor=MLP(), **fields)
