"""Kimi Delta Attention against what the code of flash-linear-attention computes."""

from __future__ import annotations

import functools
import pathlib

import jax
import numpy as np

from gam_jax.layers import LinearMemory
from gam_jax.ops import memory_scan
from tests import scan_oracle
from tests.arrays import put
from tests.examples import apply
from tests.gam_jax.ops.test_scan import METHOD

GOLDEN = np.load(pathlib.Path(__file__).parents[2] / "golden" / "kimi_delta.npz")
GIVEN = ("q", "k", "v", "g", "beta", "state")
HEADS, KEYS = 2, 4


def of(part):
    """The arrays of the file that belong to one part of it."""
    return {name.removeprefix(part): GOLDEN[name] for name in GOLDEN if name.startswith(part)}


def close(found, wanted, tolerance=2e-5):
    """Relative to the largest value."""
    for a, b in zip(found, wanted, strict=True):
        assert np.max(np.abs(a - b)) <= tolerance * np.max(np.abs(b))


@functools.partial(jax.jit, static_argnames="method")
def run(given, to, method):
    """Results and gradients of the recurrence, whose queries are over sqrt(K)."""

    def scan(q, k, v, g, beta, state):
        how = {"rule": "delta", "method": method, "chunk": 4}
        return memory_scan(q / KEYS**0.5, k, v, log_decay=g, beta=beta, state=state, **how)

    outputs, pull = jax.vjp(scan, *given)
    return outputs, pull(to)


@METHOD
def test_the_recurrence_is_the_plain_one_with_its_gradients(method):
    op = of("op.")
    outputs, gradients = run([op[n] for n in GIVEN], (op["to_y"], op["to_last"]), method)
    close(outputs, (op["y"], op["last"]))
    close(gradients, [op[f"by_{name}"] for name in GIVEN])


def test_the_plain_one_is_that_of_the_equations():
    op = of("op.")
    q, *given = (op[name] for name in GIVEN)
    *outputs, pull = scan_oracle.memory(q / KEYS**0.5, *given, "delta")
    close(outputs, (op["y"], op["last"]))
    by_q, *rest = pull(op["to_y"], op["to_last"])
    close((by_q / KEYS**0.5, *rest), [op[f"by_{name}"] for name in GIVEN])


def from_fla(state):
    """Parameters of `LinearMemory`, of a state dict: each name is read once."""

    def by_head(name):  # [H C, D] as [D, H, C]
        rows = state.pop(name)
        return rows.T.reshape(rows.shape[1], HEADS, -1)

    def filters(name):  # [H C, 1, taps] as [taps, H, C]
        taps = state.pop(name)[:, 0].T
        return taps.reshape(len(taps), HEADS, -1)

    rows = state.pop("o_proj.weight")
    return {
        "w_qkv": np.concatenate([by_head(f"{x}_proj.weight") for x in "qkv"], axis=2),
        "conv": np.concatenate([filters(f"{x}_conv1d.weight") for x in "qkv"], axis=2),
        "w_beta": state.pop("b_proj.weight").T,
        "w_decay_in": state.pop("f_proj.0.weight").T,
        "w_decay_out": by_head("f_proj.1.weight"),
        "decay_bias": state.pop("dt_bias").reshape(HEADS, -1),
        "a_log": state.pop("A_log"),
        "norm": state.pop("o_norm.weight"),
        "w_gate_in": state.pop("g_proj.0.weight").T,
        "w_gate_out": by_head("g_proj.1.weight"),
        "gate_bias": state.pop("g_proj.1.bias").reshape(HEADS, -1),
        "w_out": rows.reshape(len(rows), HEADS, -1),
    }


def test_the_layer_is_that_of_the_library_with_all_its_parameters():
    found = of("layer.")
    x, y = found.pop("x"), found.pop("y")
    layer = LinearMemory(width=10, heads=HEADS, variant="kimi_delta", key_width=4, value_width=6)
    params = jax.tree.map(put, from_fla(found))
    assert not found
    assert {name: p.shape for name, p in params.items()} == {
        name: p.shape for name, p in layer.table().items()
    }
    close([apply(layer, params, x)[0]], [y])


def test_it_begins_as_the_library_does():
    """Decays of a head from U(1, 16), steps from 0.001 to 0.1."""
    layer = LinearMemory(width=64, heads=16, variant="kimi_delta")
    assert (layer.keys, layer.values) == (4, 4)
    table = layer.table()
    rate, bias = (
        np.asarray(table[name].init(jax.random.key(0), table[name].shape))
        for name in ("a_log", "decay_bias")
    )
    assert np.all((rate >= 0) & (rate <= np.log(16.001)))
    steps = np.log1p(np.exp(bias))
    assert bias.shape == (16, 4)
    assert np.all((steps > 0.9e-3) & (steps < 0.11))
