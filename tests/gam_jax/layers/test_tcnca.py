"""Dilated convolutions and chunked attention, by their identities and in float64 NumPy."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax.layers import TCN, TCNCA
from gam_jax.ops.chunk_attention import chunk_attention
from gam_jax.ops.conv import causal_conv
from tests.arrays import put
from tests.examples import apply, random_like
from tests.oracle import sigmoid, softmax

GOLDEN = np.load(pathlib.Path(__file__).parents[2] / "golden" / "torch_mixers.npz")
WIDTH = 6
conv = jax.jit(causal_conv, static_argnames="dilation")


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def silu(x):
    return x * sigmoid(x)


@pytest.mark.parametrize(("name", "dilation"), [("depthwise", 3), ("dense", 5)])
def test_a_dilated_convolution_is_pytorch_s(name, dilation):
    """torch.nn.Conv1d with left padding; depthwise is groups = channels."""
    x, weight = GOLDEN[f"{name}/x"], GOLDEN[f"{name}/weight"]  # [B, D, T], [F, D / groups, K]
    ours = weight[:, 0].T if name == "depthwise" else weight.transpose(2, 1, 0)
    carry = np.zeros((2, (len(ours) - 1) * dilation, x.shape[1]), np.float32)
    bias = GOLDEN[f"{name}/bias"]
    y, _ = conv(x.transpose(0, 2, 1), put(ours), bias, state=carry, dilation=dilation)
    np.testing.assert_allclose(
        np.transpose(y, (0, 2, 1)), GOLDEN[f"{name}/y"], rtol=1e-5, atol=1e-6
    )


def composed(kernels, factor):
    """The one kernel that a stack of linear convolutions is, by lag."""
    whole = np.ones(1)
    for level, kernel in enumerate(kernels):
        spread = np.zeros((len(kernel) - 1) * factor**level + 1)
        spread[:: factor**level] = kernel[::-1]
        whole = np.convolve(whole, spread)
    return whole


@pytest.mark.parametrize(("kernel", "factor"), [(2, 2), (3, 3), (3, 2), (2, 3), (3, 4)])
def test_a_stack_of_linear_convolutions_is_one_without_holes_iff_factor_is_at_most_kernel(
    kernel, factor
):
    kernels = 1 + 0.1 * normal(3, kernel)
    whole = composed(kernels, factor)
    y = np.zeros((1, len(whole), 1), np.float32)
    y[0, 0] = 1
    for level, weight in enumerate(kernels):
        dilation = factor**level
        carry = np.zeros((1, (kernel - 1) * dilation, 1), np.float32)
        taps = put(weight[:, None], jnp.float32)
        y, _ = conv(y, taps, state=carry, dilation=dilation)
    np.testing.assert_allclose(np.asarray(y)[0, :, 0], whole, rtol=1e-5, atol=1e-6)
    assert np.all(whole != 0) == (factor <= kernel)
    if factor == kernel:  # one path for each lag
        np.testing.assert_array_equal(composed(np.ones((3, kernel)), factor), 1)


@pytest.mark.parametrize("layer", [TCN(1, 3, 3, 3), TCN(1, 2, 3, 2, convs=2), TCN(1, 4, 2, 2)])
def test_a_token_sees_itself_and_its_span_and_no_further(layer):
    params = random_like(layer.table())
    x = put(normal(1, layer.span + 4, 1), jnp.float32)
    gradient = jax.jit(jax.grad(lambda x: layer(params, x)[0][0, -1, 0]))(x)
    gradient = np.asarray(gradient)[0, :, 0]
    assert np.all(gradient[3:] != 0)
    assert not np.any(gradient[:3])
    assert sum(p.shape[1] for p in layer.carry_table(1)) == layer.span


def attention_formula(q, k, v, bias):
    size, out = len(bias), np.zeros((*q.shape[:2], v.shape[2]))
    for b in range(len(q)):
        for t in range(q.shape[1]):
            seen = np.arange(t - t % size, t + 1)
            scores = k[b, seen] @ q[b, t] / np.sqrt(q.shape[2]) + bias[t - seen]
            out[b, t] = softmax(scores) @ v[b, seen]
    return out


@pytest.mark.parametrize(("tokens", "size"), [(12, 4), (11, 4), (3, 4), (5, 1), (9, 9), (7, 20)])
def test_chunked_attention_equals_its_formula_and_full_attention_in_one_chunk(tokens, size):
    arrays = (normal(2, tokens, 3), normal(2, tokens, 3, seed=1), normal(2, tokens, 5))
    bias = normal(size)
    o, (keys, _, place) = jax.jit(chunk_attention)(*(put(x, jnp.float32) for x in (*arrays, bias)))
    np.testing.assert_allclose(o, attention_formula(*arrays, bias), rtol=1e-5, atol=1e-6)
    assert (keys.shape, place.tolist()) == ((2, size, 3), [tokens % size] * 2)


def test_large_scores_do_not_overflow():
    q = (1e3 * normal(1, 8, 2)).astype(np.float32)
    o, _ = jax.jit(chunk_attention)(q, np.float32(1e3) * q, q, np.zeros(4, np.float32))
    assert np.all(np.isfinite(o))


def tcnca_formula(p, x, layer):
    mixed = x
    for level in range(layer.tcn.levels):
        weight, bias = p["tcn"]["conv"][level, 0], p["tcn"]["conv_bias"][level, 0]
        y = np.zeros_like(mixed) + bias
        for j, tap in enumerate(weight):
            lag = (len(weight) - 1 - j) * layer.tcn.factor**level
            y[:, lag:] += tap * mixed[:, : mixed.shape[1] - lag]
        mixed = mixed + silu(y)
    mixed = silu(mixed + p["omega"] * x)
    z = silu(mixed @ p["w_z"] + p["b_z"])
    q, k = (z * p["scale"][i] + p["shift"][i] for i in range(2))
    if layer.variant == "simple":
        v = mixed @ p["w_v"] + p["b_v"]
        return attention_formula(q, k, v, p["distance"]) @ p["w_h"]
    o = attention_formula(q, k, silu(x @ p["w_v"] + p["b_v"]), p["distance"])
    u, given = (mixed @ p["w_m"][:, i] + p["b_m"][i] for i in range(2))
    h = silu(given + (o * silu(mixed @ p["w_r"] + p["b_r"])) @ p["w_h"])
    return sigmoid(u) * (h - x)


@pytest.mark.parametrize("variant", ["full", "simple"])
def test_the_layer_equals_its_equations(variant):
    layer = TCNCA(WIDTH, TCN(kernel=3, levels=2, factor=2), chunk=4, keys=5, variant=variant)
    params = random_like(layer.table())
    x = normal(2, 11, WIDTH)
    wide = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    y, _ = apply(layer, params, put(x, jnp.float32))
    np.testing.assert_allclose(y, tcnca_formula(wide, x, layer), rtol=1e-4, atol=1e-5)


def test_convolutions_carry_across_chunks_what_attention_cannot():
    """Gradients reach back through the convolutions alone beyond the start of a chunk."""
    layer = TCNCA(WIDTH, TCN(kernel=2, levels=2, factor=2), chunk=4, keys=5)
    params = random_like(layer.table())
    x = put(normal(1, 12, WIDTH), jnp.float32)
    gradient = jax.jit(jax.grad(lambda x: layer(params, x)[0][0, 9].sum()))(x)
    seen = np.any(np.asarray(gradient)[0] != 0, axis=1)
    first = 8 - layer.tcn.span  # what the chunk's first token sees
    np.testing.assert_array_equal(seen, [first <= t <= 9 for t in range(12)])
