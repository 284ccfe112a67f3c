"""The feed-forward against the formulas of its papers."""

import math

import numpy as np
import pytest

from gam_jax.layers import MLP
from tests.examples import apply, inputs, params_of


def relu(x):
    return np.maximum(x, 0)


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


FORMULAS = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": relu,
    "silu": silu,
    "swiglu": silu,
    "geglu": gelu,
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", FORMULAS)
def test_it_is_the_formula(activation, bias):
    layer = MLP(width=8, hidden=12, activation=activation, bias=bias)
    params, x = params_of(layer), inputs(2, 3)
    p = {name: np.asarray(array, np.float64) for name, array in params.items()}
    act, wide = FORMULAS[activation], np.asarray(x, np.float64)
    hidden = wide @ p["w_in"] + p.get("b_in", 0)
    if activation in ("swiglu", "geglu"):
        hidden = act(wide @ p["w_gate"] + p.get("b_gate", 0)) * hidden
    else:
        hidden = act(hidden)
    want = hidden @ p["w_out"].T + p.get("b_out", 0)
    np.testing.assert_allclose(apply(layer, params, x)[0], want, atol=1e-5)


def test_the_clamped_one_is_the_formula():
    layer = MLP(width=8, hidden=12, activation="clamped_swiglu", alpha=1.3, clamp=0.9)
    params, x = params_of(layer), inputs(2, 3)
    p = {name: np.asarray(array, np.float64) for name, array in params.items()}
    wide = np.asarray(x, np.float64)
    hidden, gate = (wide @ p[f"w_{name}"] + p[f"b_{name}"] for name in ("in", "gate"))
    assert all(found.any() for found in (np.abs(hidden) > 0.9, gate > 0.9, gate < -0.9))
    gate = np.where(gate > 0.9, 0.9, gate)
    hidden = np.where(np.abs(hidden) > 0.9, 0.9 * np.sign(hidden), hidden)
    hidden = (1 + hidden) * gate / (1 + np.exp(-1.3 * gate))
    want = hidden @ p["w_out"].T + p["b_out"]
    np.testing.assert_allclose(apply(layer, params, x)[0], want, atol=1e-5)


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match=r"swish.*swiglu"):
        MLP(activation="swish")
