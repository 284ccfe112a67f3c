"""Recurrent layers equal their equations, read one token at a time in float64, and PyTorch's.

The golden file holds torch.nn.RNN, LSTM, GRU (also bidirectional) of width 5 with PyTorch's own
random weights, inputs [2, 7, 5], outputs, and gradients of sum(outputs * pull).
"""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax.layers import GRU, LSTM, Bidirectional, Elman
from gam_jax.params import count_params, init_params, stack
from tests.arrays import put
from tests.examples import apply, random_like
from tests.oracle import sigmoid

GOLDEN = np.load(pathlib.Path(__file__).parents[2] / "golden" / "torch_mixers.npz")
WIDTH = 5


def elman(p, x, h):
    (h,) = h
    return (np.tanh(x @ p["w_in"][:, 0] + h @ p["w_state"][:, 0] + p["bias"][0]),)


def lstm(p, x, state):
    h, s = state
    i, f, g, o = (x @ p["w_in"][:, n] + h @ p["w_state"][:, n] + p["bias"][n] for n in range(4))
    s = sigmoid(f) * s + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(s), s


def gru(p, x, state, reset_first):
    (h,) = state
    given = [x @ p["w_in"][:, n] + p["bias"][n] for n in range(3)]
    r, z = (sigmoid(given[n] + h @ p["w_state"][:, n]) for n in range(2))
    if reset_first:
        n = np.tanh(given[2] + (r * h) @ p["w_state"][:, 2])
    else:
        n = np.tanh(given[2] + r * (h @ p["w_state"][:, 2] + p["state_bias"]))
    return (z * h + (1 - z) * n,)


EQUATIONS = {
    "Elman": (Elman(WIDTH), elman, 1),
    "LSTM": (LSTM(WIDTH), lstm, 2),
    "GRU": (GRU(WIDTH), lambda p, x, h: gru(p, x, h, False), 1),
    "GRU reset first": (GRU(WIDTH, reset_first=True), lambda p, x, h: gru(p, x, h, True), 1),
}


@pytest.mark.parametrize(("layer", "step", "states"), EQUATIONS.values(), ids=EQUATIONS.keys())
def test_it_equals_its_equations_token_by_token(layer, step, states):
    params = random_like(layer.table())
    x = np.random.default_rng(0).normal(size=(2, 9, WIDTH))
    wide = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    state, outputs = (np.zeros((2, WIDTH)),) * states, []
    for t in range(x.shape[1]):
        state = step(wide, x[:, t], state)
        outputs.append(state[0])
    y, carry = apply(layer, params, put(x, jnp.float32))
    np.testing.assert_allclose(y, np.stack(outputs, axis=1), rtol=1e-5, atol=1e-6)
    for found, want in zip(jax.tree.leaves(carry), state, strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


def from_torch(get, gates, suffix="_l0"):
    """Our parameters from PyTorch's: two biases become one, but for the candidate of a GRU."""
    w_in, w_state = (
        get(f"weight_{side}{suffix}").reshape(gates, WIDTH, WIDTH).transpose(2, 0, 1)
        for side in ("ih", "hh")
    )
    given, state = (get(f"bias_{side}{suffix}").reshape(gates, WIDTH) for side in ("ih", "hh"))
    params = {"w_in": w_in, "w_state": w_state, "bias": given + state}
    if gates == 3:
        params["bias"][2], params["state_bias"] = given[2], state[2]
    return params


def gradients(layer, params, name):
    x, pull = GOLDEN[f"{name}/x"], GOLDEN[f"{name}/pull"]

    def loss(params, x):
        y, _ = layer(params, x)
        return jnp.sum(y * pull[..., : y.shape[-1]]), y

    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, y), found = both(jax.tree.map(put, params), x)
    return y, found


@pytest.mark.parametrize(
    ("name", "layer", "gates"),
    [("elman", Elman(WIDTH), 1), ("lstm", LSTM(WIDTH), 4), ("gru", GRU(WIDTH), 3)],
)
def test_values_and_gradients_are_those_of_pytorch(name, layer, gates):
    params = from_torch(lambda key: GOLDEN[f"{name}/{key}"], gates)
    y, (by_params, by_x) = gradients(layer, params, name)
    np.testing.assert_allclose(y, GOLDEN[f"{name}/y"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(by_x, GOLDEN[f"{name}/grad/x"], rtol=1e-4, atol=1e-6)

    def slope(key):  # where two biases are one, each has the gradient of the one
        array = GOLDEN[f"{name}/grad/{key}"]
        return array / 2 if "bias" in key and gates != 3 else array

    want = from_torch(slope, gates)
    if gates == 3:
        want["bias"][:2] /= 2
    for key, found in by_params.items():
        np.testing.assert_allclose(found, want[key], rtol=1e-4, atol=2e-6, err_msg=key)


def test_both_directions_are_those_of_pytorch():
    """With W_f = [I 0] and W_b = [0 I], half by half, the outputs are PyTorch's two halves."""
    directions = {
        ours: from_torch(lambda key: GOLDEN[f"bigru/{key}"], 3, suffix)
        for ours, suffix in (("forward", "_l0"), ("backward", "_l0_reverse"))
    }
    layer, eye, zero = Bidirectional(GRU(), width=WIDTH), np.eye(WIDTH), np.zeros((WIDTH, WIDTH))
    for half, out in enumerate(([eye, zero], [zero, eye])):
        params = {**directions, "w_out": np.stack(out), "b_out": np.zeros(WIDTH)}
        params = jax.tree.map(lambda p: put(p, jnp.float32), params)
        y, _ = apply(layer, params, put(GOLDEN["bigru/x"]))
        want = GOLDEN["bigru/y"][..., half * WIDTH : (half + 1) * WIDTH]
        np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)


def test_a_reversed_sequence_swaps_the_two_directions():
    layer = Bidirectional(LSTM(), width=WIDTH)
    params = random_like(layer.table())
    swapped = {
        **params,
        "forward": params["backward"],
        "backward": params["forward"],
        "w_out": np.asarray(params["w_out"])[::-1],
    }
    x = np.random.default_rng(1).normal(size=(2, 6, WIDTH)).astype(np.float32)
    there, back = apply(layer, params, x)[0], apply(layer, swapped, x[:, ::-1])[0]
    np.testing.assert_allclose(np.asarray(back)[:, ::-1], there, rtol=1e-5, atol=1e-6)


def test_states_keep_their_length_at_the_start_and_the_forget_gate_is_open():
    layer, depth = LSTM(WIDTH), 2
    made = jax.jit(lambda key: init_params(stack(layer.table(), depth), key))(jax.random.key(0))
    params = jax.tree.map(np.asarray, made)
    for place in np.ndindex(depth, 4):
        matrix = params["w_state"][place[0], :, place[1]]
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(WIDTH), atol=1e-6)
    np.testing.assert_array_equal(params["bias"], np.eye(4)[1][:, None] * np.ones((2, 4, WIDTH)))
    assert count_params(layer.table()) == 8 * WIDTH**2 + 4 * WIDTH
