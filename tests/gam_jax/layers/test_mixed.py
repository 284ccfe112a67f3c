"""Mixed layers: gates by full differentiation, draws, channels that pass by, meshes, memory."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax.layers import GAM, MLP, Attention, Block, LayerNorm, LinearMemory, Mixed, MoE
from gam_jax.ops import choices
from tests.arrays import put
from tests.examples import EXAMPLES, WIDTH, apply, inputs, params_of
from tests.gam_jax.traffic_cases import MODEL, assert_formula
from tests.golden import pc_darts
from tests.meshes import ONE, slow_unless_chosen
from tests.property.test_layers import assert_split_equals_the_whole
from tests.property.test_layers_on_meshes import IN_TOKENS, assert_same
from tests.property.test_units import double, of_double

OPTIONS = (MLP(), LayerNorm(), MLP(activation="relu2"), GAM(variant="local"))
LOGITS = np.array([0.3, -0.2, 0.5, 0.1])


def mixed(how="one", **fields):
    return Mixed(OPTIONS, how, width=WIDTH, **fields)


def own_params(layer):
    params = params_of(layer)
    return {**params, "architecture": {"logits": LOGITS[: len(layer.options)]}}


def loss(y):
    return jnp.sum(jnp.sin(y) + y * y)


def by_gates(layer, params, x, gates):
    """The loss of sum_j g_j o_j(x), all options run and differentiated."""
    outs = [o(params["options"][n], x)[0] for n, o in layer.named.items()]
    return loss(sum(g * y for g, y in zip(gates, outs, strict=True)))


SLOW = pytest.mark.slow


@pytest.mark.parametrize("how", ["one", pytest.param("two", marks=SLOW)])
def test_gates_have_the_gradients_of_full_differentiation(how, monkeypatch):
    """In float64; those of parameters and inputs are those of the active option alone."""
    layer, x = mixed(how), of_double(np.asarray(inputs(2, 5)))
    params = of_double(own_params(layer))
    with double(monkeypatch):
        whole = jax.jit(jax.grad(lambda p, x, k: loss(layer(p, x, key=k)[0]), argnums=(0, 1)))
        full = jax.jit(jax.grad(functools.partial(by_gates, layer), argnums=(0, 1, 2)))
        count = 2 if how == "two" else len(OPTIONS)
        draw = jax.jit(lambda logits, key: choices.draw(logits, jax.random.split(key)[0], count))
        for seed in range(3):
            key = jax.random.key(seed)
            found, by_x = whole(params, x, key)
            drawn = draw(put(LOGITS), key)
            among = np.asarray(drawn.options)
            hot = np.zeros(len(OPTIONS))
            hot[among[int(drawn.active)]] = 1
            want, want_x, dg = jax.tree.map(np.asarray, full(params, x, hot))
            p = np.exp(LOGITS[among]) / np.exp(LOGITS[among]).sum()
            logits = np.zeros(len(OPTIONS))
            logits[among] = p * (dg[among] - p @ dg[among])
            own = np.asarray(found["architecture"]["logits"])
            np.testing.assert_allclose(own, logits, rtol=1e-10, atol=1e-10)
            assert abs(own.sum()) < 1e-10 * np.abs(own).max()
            close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9)
            jax.tree.map(close, found["options"], want["options"])
            close(by_x, want_x)


@pytest.mark.slow
def test_each_option_is_drawn_as_often_as_its_probability():
    keys = jax.random.split(jax.random.key(0), 4000)
    for count in (4, 2):
        drawn = jax.vmap(lambda k, n=count: choices.draw(put(LOGITS), k, n))(keys)
        active = np.take_along_axis(np.asarray(drawn.options), drawn.active[:, None], 1)[:, 0]
        assert np.all(drawn.gates[np.arange(4000), drawn.active] == 1)
        first = active if count == 4 else np.asarray(drawn.options)[:, 0]
        p = np.exp(LOGITS) / np.exp(LOGITS).sum()
        np.testing.assert_allclose(np.bincount(first, minlength=4) / 4000, p, atol=0.03)
        assert np.all(drawn.options[:, 0] != drawn.options[:, 1])


@pytest.mark.parametrize(
    "weights",
    ["dirichlet", *(pytest.param(n, marks=SLOW) for n in choices.WEIGHTS if n != "dirichlet")],
)
def test_a_sum_is_that_of_its_options(weights):
    layer, x, key = mixed("sum", weights=weights, temperature=0.7), inputs(2, 5), jax.random.key(3)
    params = own_params(layer)

    @jax.jit
    def run(params, x):
        outs = [o(params["options"][n], x)[0] for n, o in layer.named.items()]
        return outs, layer(params, x, key=key)[0], layer(params, x)[0]

    outs, drawn, still = run(params, x)
    drawn_by = jax.jit(lambda key: choices.WEIGHTS[weights](LOGITS, jax.random.split(key)[0], 0.7))
    w = np.asarray(drawn_by(key))
    np.testing.assert_allclose(np.sum(w), 1, rtol=1e-6)
    assert np.all(w >= 0)
    want = sum(a * y for a, y in zip(w, outs, strict=True))
    np.testing.assert_allclose(drawn, want, rtol=1e-5, atol=1e-5)
    alone = outs[2] if weights in choices.DRAWN else want  # without a key the likeliest
    np.testing.assert_allclose(still, alone, rtol=1e-5, atol=1e-5)


def test_sparse_weights_are_the_nearest_point_of_the_simplex():
    """By its conditions: w = max(a - t, 0) with a sum of 1."""
    for seed in range(5):
        a = np.random.default_rng(seed).normal(0, 1, 6)
        w = np.asarray(jax.jit(choices.sparsemax)(put(a, jnp.float32)))
        t = (a - w)[w > 0].mean()
        np.testing.assert_allclose(w, np.maximum(a - t, 0), atol=1e-6)
        np.testing.assert_allclose(w.sum(), 1, rtol=1e-6)


def test_others_keep_their_probabilities():
    before = np.random.default_rng(0).normal(size=(3, 5))
    after = before.copy()
    after[:, [1, 3]] += [0.7, -0.2]

    @jax.jit
    def both(before, after):
        return jax.nn.softmax(before), jax.nn.softmax(choices.others_kept(before, after))

    with jax.enable_x64(True):
        p, q = map(np.asarray, both(before, after))
    np.testing.assert_allclose(q[:, [0, 2, 4]], p[:, [0, 2, 4]], rtol=0, atol=1e-15)
    ratio = np.exp(0.9) * p[:, 1] / p[:, 3]
    np.testing.assert_allclose(q[:, 1] / q[:, 3], ratio, rtol=1e-12)


def test_the_gradient_of_an_expected_cost():
    costs = np.array([1.0, 5.0, 2.0, 9.0], np.float32)
    p = np.exp(LOGITS) / np.exp(LOGITS).sum()
    found = jax.jit(jax.grad(choices.expected_cost))(put(LOGITS, jnp.float32), costs)
    np.testing.assert_allclose(found, p * (costs - p @ costs), rtol=1e-5)


def test_the_shuffle_is_its_permutation():
    x = np.arange(24.0).reshape(2, 12)
    for groups in (1, 2, 3, 4):
        found = jax.jit(choices.shuffled, static_argnums=1)(put(x), groups)
        np.testing.assert_array_equal(found, x[:, choices.shuffle_of(12, groups)])
        size = 12 // groups
        for r in range(groups):
            for q in range(size):
                assert choices.shuffle_of(12, groups)[q * groups + r] == r * size + q
    twice = choices.shuffle_of(16, 4)[choices.shuffle_of(16, 4)]
    np.testing.assert_array_equal(twice, np.arange(16))


@pytest.mark.slow
def test_genotypes_and_shuffles_are_those_of_the_official_code():
    """A golden file of `tests/golden/pc_darts.py`; none is the largest in each second draw."""
    kept = json.loads((pathlib.Path(pc_darts.__file__).with_suffix(".json")).read_text())
    for seed, wanted in enumerate(kept["genotypes"]):
        found = choices.genotype(*pc_darts.drawn(seed), (2, 3, 4, 5), none=0)
        assert [list(gene) for node in found for gene in node] == wanted
    for groups, wanted in kept["shuffled"].items():
        assert choices.shuffle_of(24, int(groups)).tolist() == wanted
    weights = choices.edge_weights(put(pc_darts.drawn(0)[1]), (2, 3, 4, 5))
    sums = [part.sum() for part in np.split(np.asarray(weights), (2, 5, 9))]
    np.testing.assert_allclose(sums, 1, rtol=1e-6)


def test_channels_that_pass_by_are_as_they_were():
    layer, x = mixed("sum", share=2), inputs(2, 5)
    params, half = own_params(layer), WIDTH // 2
    y, _ = apply(layer, params, x)
    back = np.argsort(choices.shuffle_of(WIDTH, 2))
    np.testing.assert_array_equal(np.asarray(y)[..., back][..., half:], x[..., half:])
    inner, _ = apply(Mixed(OPTIONS, width=half), params, x[..., :half])
    np.testing.assert_allclose(np.asarray(y)[..., back][..., :half], inner, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_a_stream_hands_on_the_carry_of_the_likeliest_option_alone():
    layer = EXAMPLES["Mixed, one of shares"]
    assert_split_equals_the_whole(layer, [4, 4])
    params = params_of(layer)
    best = int(np.argmax(params["architecture"]["logits"]))
    _, carry = apply(layer, params, inputs(2, 4))
    for name, own in carry.items():
        moved = any(np.any(leaf) for leaf in jax.tree.leaves(own))
        assert moved == (int(name) == best)


def with_key(layer, axes, params, x):
    return layer(params, x, None, axes, key=jax.random.key(2))


@pytest.mark.parametrize(
    ("shape", "preset"),
    [((2, 2, 2), IN_TOKENS), pytest.param((1, 4, 2), ONE[1], marks=SLOW)],
)
def test_a_draw_and_its_gradients_are_the_same_on_any_mesh(shape, preset):
    """One option sends along `seq`, another along `tensor` alone."""
    assert_same("Mixed, one of shares", shape, preset, with_key)


WAYS = {
    "whole": ("data+sequence+tensor", False),
    "sharded": ("fully_sharded+sequence+tensor_tokens", False),
    "run again": ("zero1+sequence+tensor_tokens", True),
}


@pytest.mark.parametrize(
    ("how", "way"),
    slow_unless_chosen(itertools.product(("sum", "one", "two"), WAYS), [("one", "sharded")]),
)
def test_it_sends_what_the_formula_says(how, way):
    layer = Mixed((GAM(slots=16), LinearMemory(heads=4, key_width=4, value_width=3)), how, share=2)
    preset, remat = WAYS[way]
    model = dataclasses.replace(MODEL, block=Block(layer), dropout=0.0, remat=remat)
    assert_formula(model, (2, 2, 2), preset)


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises(ValueError, match="counts its tokens"):
        Mixed((MLP(), MoE()), "one", width=WIDTH)
    Mixed((MLP(), MoE()), "sum", width=WIDTH)
    with pytest.raises(ValueError, match="does not divide"):
        Mixed((MLP(),), share=3, width=WIDTH)
    with pytest.raises(ValueError, match="at least 2"):
        Mixed((MLP(),), "two", width=WIDTH)
    for fields in ({"weights": "sparsemax"}, {"temperature": 0.5}):
        with pytest.raises(ValueError, match="are of how='sum'"):
            Mixed((MLP(), MLP()), "one", width=WIDTH, **fields)
    with pytest.raises(ValueError, match="not one of"):
        Mixed((MLP(), Attention()), "three", width=WIDTH)
