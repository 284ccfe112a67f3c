"""Memory layers against a float64 NumPy reading of their papers' equations."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax.layers import MLP, Block, FusedDelta, LinearMemory, MinimalRNN, RMSNorm
from gam_jax.layers.linear_memory import RECIPES
from gam_jax.models.language import LanguageModel
from gam_jax.params import count_params
from tests import scan_oracle
from tests.examples import apply, inputs, params_of

TOKENS = 11
SIZES = {"width": 8, "heads": 2, "key_width": 4, "value_width": 6}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def softplus(x):
    return np.log1p(np.exp(x))


def unit(x):
    return x / np.sqrt((x**2).sum(-1, keepdims=True) + 1e-6)


def convolved(x, taps):
    """[B, T, ...] with filters [K, ...] on what came before."""
    padded = np.concatenate([np.zeros_like(x[:, : len(taps) - 1]), x], axis=1)
    return sum(tap * padded[:, j : j + x.shape[1]] for j, tap in enumerate(taps))


def turned(x, places):
    """Pairs (i, i + K/2) as complex numbers, times e^(i place speed)."""
    half = x.shape[-1] // 2
    pairs = x[..., :half] + 1j * x[..., half:]
    pairs = pairs * np.exp(1j * places[:, None, None] * 10_000.0 ** (-np.arange(half) / half))
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


def formula(variant, p, x):
    """The layer's output."""
    heads, keys = SIZES["heads"], SIZES["key_width"]
    mixed = np.einsum("btd,dhc->bthc", x, p["w_qkv"])
    if "conv" in p:
        mixed = silu(convolved(mixed, p["conv"]))
    q, k, v = np.split(mixed, [keys, 2 * keys], axis=-1)
    log = beta = None
    if variant == "linear":  # the sum over the past, divided by its weights
        q, k = (np.where(z > 0, z + 1, np.exp(np.minimum(z, 0))) for z in (q, k))
        weights = np.tril(np.einsum("bthk,bshk->bhts", q, k))
        y = np.einsum("bhts,bshn->bthn", weights / weights.sum(-1, keepdims=True), v)
        return np.einsum("bthn,dhn->btd", y, p["w_out"])
    if variant == "retnet":
        q, k = (turned(z, np.arange(TOKENS)) for z in (q, k))
        log = np.broadcast_to(np.log(1 - 2.0 ** (-5 - np.arange(heads))), v.shape[:3])
    if variant == "gla":
        logits = np.einsum("btr,rhk->bthk", x @ p["w_decay_in"], p["w_decay_out"])
        log = np.log(sigmoid(logits + p["decay_bias"]) ** (1 / 16))
    if "delta" in variant:
        q, k, beta = unit(q), unit(k), sigmoid(x @ p["w_beta"])
    if variant == "gated_deltanet":
        log = -np.exp(p["a_log"]) * softplus(x @ p["w_decay"] + p["decay_bias"])
    if variant == "kimi_delta":
        steps = np.einsum("btr,rhk->bthk", x @ p["w_decay_in"], p["w_decay_out"])
        log = -np.exp(p["a_log"])[:, None] * softplus(steps + p["decay_bias"])
    start = np.zeros((len(x), heads, keys, v.shape[-1]))
    rule = "delta" if "delta" in variant else "hebb"
    y, _, _ = scan_oracle.memory(q / np.sqrt(keys), k, v, log, beta, start, rule)
    y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5) * p["norm"]
    if "w_gate" in p:
        y = y * silu(np.einsum("btd,dhn->bthn", x, p["w_gate"]))
    if "w_gate_in" in p:
        logits = np.einsum("btr,rhn->bthn", x @ p["w_gate_in"], p["w_gate_out"])
        y = y * sigmoid(logits + p["gate_bias"])
    return np.einsum("bthn,dhn->btd", y, p["w_out"])


def wide(params):
    return jax.tree.map(lambda p: np.asarray(p, np.float64), params)


@pytest.mark.parametrize("variant", RECIPES)
def test_a_linear_memory_is_that_of_its_paper(variant):
    layer, x = LinearMemory(variant=variant, **SIZES), inputs(2, TOKENS)
    params = params_of(layer)
    wanted = formula(variant, wide(params), np.asarray(x, np.float64))
    np.testing.assert_allclose(apply(layer, params, x)[0], wanted, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("variant", ["gru", "lstm"])
def test_a_minimal_recurrence_is_that_of_its_paper(variant):
    layer, x = MinimalRNN(width=8, expansion=2, variant=variant), inputs(2, TOKENS)
    p, wide_x = wide(params_of(layer)), np.asarray(x, np.float64)
    *gates, candidate = np.moveaxis(np.einsum("btd,dpe->btpe", wide_x, p["w_in"]) + p["b_in"], 2, 0)
    gates = [sigmoid(gate) for gate in gates]
    keep = 1 - gates[0] if variant == "gru" else gates[0] / (gates[0] + gates[1])
    candidate = np.where(candidate >= 0, candidate + 0.5, sigmoid(candidate))
    states, _ = scan_oracle.diagonal(np.log(keep), (1 - keep) * candidate, np.zeros((2, 16)))
    found, _ = apply(layer, params_of(layer), x)
    np.testing.assert_allclose(found, states @ p["w_out"].T, atol=2e-5)


def test_fused_paths_are_those_of_the_equations():
    layer, x = FusedDelta(long=7, **SIZES), inputs(2, TOKENS)
    p, wide_x = wide(params_of(layer)), np.asarray(x, np.float64)
    keys = SIZES["key_width"]
    mixed = silu(convolved(np.einsum("btd,dhc->bthc", wide_x, p["w_qkv"]), p["conv"]))
    q, k, v = np.split(mixed, [keys, 2 * keys], axis=-1)
    log = np.broadcast_to(np.log(0.6 + 0.4 * sigmoid(p["decay"])) / 32, v.shape[:3])
    beta, start = sigmoid(wide_x @ p["w_beta"]), np.zeros((2, 2, keys, 6))
    read, _, _ = scan_oracle.memory(unit(q) / 2, unit(k), v, log, beta, start, "delta")
    paths = np.stack([convolved(v, p["short"]), convolved(v, p["long"]), read, v], axis=3)
    sizes = np.abs(paths).mean(-1)
    units = wide_x @ p["gate_in"] + np.einsum("bthp,hpf->btf", sizes, p["gate_sizes"])
    units = np.asarray(jax.nn.gelu(jnp.asarray(units + p["gate_in_bias"]), approximate=False))
    logits = np.einsum("btf,fhp->bthp", units, p["gate_out"]) + p["gate_bias"]
    gates = 0.02 + 0.98 * sigmoid(logits / np.exp(p["temperature"])[:, None])
    y = (gates[..., None] * paths).sum(3)
    y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5) * p["norm"]
    found, _ = apply(layer, params_of(layer), x)
    wanted = np.einsum("bthn,dhn->btd", y, p["w_out"])
    np.testing.assert_allclose(found, wanted, atol=3e-5, rtol=3e-5)


@pytest.mark.parametrize("floor", [0.0, 0.02])
def test_gates_on_the_delta_rule_alone_leave_the_delta_rule(floor):
    """Between the same projections, if no gate has a floor; the state does not decay."""
    fused = FusedDelta(long=7, floor=floor, **SIZES)
    memory = LinearMemory(variant="deltanet", kernel=fused.kernel, **SIZES)
    params, x = params_of(fused), inputs(2, TOKENS)
    shut = {"gate_out": 0, "gate_bias": np.float32([-1e4, -1e4, 1e4, -1e4]), "decay": 40}
    params |= {name: np.broadcast_to(x, params[name].shape) for name, x in shut.items()}
    params |= {name: np.float32(params[name]) for name in shut}
    wanted, _ = apply(memory, {name: params[name] for name in memory.table()}, x)
    found, _ = apply(fused, params, x)
    off = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert (off < 1e-5) == (floor == 0)


def test_fused_delta_has_the_published_number_of_parameters():
    """466.90 M at width 1024, 24 layers and GPT-2's vocabulary, untied (the paper's gallery)."""
    mlp = MLP(activation="swiglu", hidden=2816, bias=False)
    block = Block(FusedDelta(heads=8), mlp, norm=RMSNorm())
    model = LanguageModel(block, 1024, 24, vocab=50257, tied=False, norm=RMSNorm())
    assert round(count_params(model.table()) / 1e6, 2) == 466.90


def test_it_starts_as_the_papers_say():
    def start(layer, name):
        param = layer.table()[name]
        return np.asarray(param.init(jax.random.key(0), param.shape))

    fused, memory = FusedDelta(width=32, heads=4), LinearMemory(width=64, heads=16)
    np.testing.assert_allclose(start(fused, "long")[-1], 1.0, atol=0.06)
    np.testing.assert_allclose(start(fused, "long")[:-1], 0.0, atol=0.06)
    assert start(fused, "gate_bias").tolist() == [[-1, -1, 1, 3]] * 4
    steps = softplus(start(memory, "decay_bias"))
    assert np.all((steps > 0.9e-3) & (steps < 0.11))
    assert np.all(np.exp(start(memory, "a_log")) <= 16.001)


def test_sizes_are_those_of_the_papers():
    gated = LinearMemory(width=1024, heads=4)
    assert (gated.heads * gated.keys, gated.heads * gated.values) == (768, 1536)
    assert count_params(gated.table()) / 1024**2 == pytest.approx(6, rel=0.02)
    gla = LinearMemory(width=1024, heads=4, variant="gla")
    assert (gla.keys, gla.values) == (128, 256)


def test_another_method_is_the_same_layer():
    layer, x = LinearMemory(**SIZES), inputs(2, TOKENS)
    whole = apply(layer, params_of(layer), x)
    for method in ("associative", "recurrent"):
        other = dataclasses.replace(layer, method=method)
        for a, b in zip(
            *map(jax.tree.leaves, (apply(other, params_of(layer), x), whole)), strict=True
        ):
            np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variant": "rwkv"}, "variant 'rwkv' is not one of linear"),
        ({"feature": "cos"}, "feature 'cos' is not one of"),
        ({"width": 8, "heads": 64}, "too many for 8"),
        ({"width": 12, "heads": 4, "variant": "retnet"}, "even keys, not 3"),
    ],
)
def test_what_cannot_be_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        LinearMemory(**fields)
