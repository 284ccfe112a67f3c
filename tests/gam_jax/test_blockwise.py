"""Blocks trained alone: the parent's part, no gradient between blocks, and children taken out."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gam_jax.blockwise import BLOCKS, Library, make_step
from gam_jax.distil import cosine_distance, divergence, through
from gam_jax.extract import extraction
from gam_jax.layers import MLP, Attention, Block, Pattern
from gam_jax.models import LanguageModel
from gam_jax.ops.activation import gelu
from gam_jax.params import abstract_params
from gam_jax.replacements import (
    LINEAR_FFN,
    NO_OP,
    as_linear_attention,
    as_linear_mlp,
    contributions,
    grouped,
    narrower,
    pooled,
)
from sharding.errors import UserError
from tests.arrays import put
from tests.examples import random_like

DEPTH = 3
MIXER, FFN = Attention(heads=2, width=8), MLP(hidden=16, width=8)
PARENT = LanguageModel(Block(Attention(heads=2), MLP(hidden=16)), 8, DEPTH, vocab=16)
LIBRARY = Library(
    PARENT,
    (grouped(MIXER, 1), NO_OP),
    (narrower(FFN, 16), LINEAR_FFN),  # the first is as large as the parent's
)
TOKENS = np.random.default_rng(0).integers(0, 16, (2, 5)).astype(np.int32)
STEP = make_step(LIBRARY, optax.sgd(0.1))


@pytest.fixture(scope="module")
def parent():
    return random_like(PARENT.table())


@pytest.fixture(scope="module")
def begun(parent):
    made = jax.jit(LIBRARY.begun)(parent, TOKENS, jax.random.key(0))
    return jax.tree.map(np.asarray, made)


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params):
    return model(params, TOKENS)[0], through(model, params, TOKENS)


def test_all_blocks_chosen_from_the_parent_are_the_parent(parent, begun):
    assert jax.tree.map(np.shape, begun) == jax.tree.map(
        lambda x: x.shape, jax.eval_shape(LIBRARY.model.init_params, jax.random.key(0))
    )
    kept = LIBRARY.parent_params(begun)
    assert jax.tree.all(jax.tree.map(np.array_equal, kept, dict(parent)))
    mixed = LIBRARY.choosing(begun, np.zeros((DEPTH, 2), int))
    found = jax.jit(LIBRARY.model)(mixed, TOKENS)[0]
    whole, states = logits(PARENT, parent)
    np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(states.logits, whole, rtol=1e-5, atol=1e-5)
    assert states.states.shape == (DEPTH + 1, 2, 5, 8)


def test_a_child_is_a_pattern_that_gives_what_its_choice_gives(begun):
    point = (5, 0, 7)  # pairs of 3 mixers and 3 feed-forwards
    assert LIBRARY.choice(point).tolist() == [[1, 2], [0, 0], [2, 1]]
    mixed = LIBRARY.choosing(begun, LIBRARY.choice(point))
    found = extraction(LIBRARY.model, mixed)
    assert isinstance(found.model.block, Pattern)
    own = found.pick(mixed)
    shapes = jax.tree.map(lambda x: x.shape, abstract_params(found.model.table()))
    assert jax.tree.map(np.shape, own) == shapes
    child, states = logits(found.model, own)
    np.testing.assert_allclose(child, jax.jit(LIBRARY.model)(mixed, TOKENS)[0], atol=1e-4)
    np.testing.assert_allclose(states.logits, child, atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: LIBRARY.choice((9, 0, 0)), "9 is none of 9 pairs of options: give 0 to 8"),
        (lambda: LIBRARY.choice((0, -1, 0)), "-1 is none of 9 pairs"),
        (lambda: LIBRARY.choice((0, 0)), "a pair for each of 3 blocks, not 2"),
        (lambda: LIBRARY.choosing({}, np.array([[0, 0], [0, 3], [0, 0]])), "3 options of the ffn"),
        (lambda: LIBRARY.choosing({}, np.array([[0, 0], [-1, 0], [0, 0]])), "options of the mixer"),
        (lambda: LIBRARY.choosing({}, np.zeros((3, 3), int)), r"a choice is \[3, 2\]"),
    ],
)
def test_what_is_no_option_is_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        wrong()


def test_no_block_takes_part_in_another_s_training_and_all_at_once_is_one_by_one(parent, begun):
    own = LIBRARY.trained(begun)
    assert jax.tree.all(jax.tree.map(np.array_equal, LIBRARY.with_trained(begun, own), dict(begun)))

    def stepped(own):
        after, _, losses = STEP(own, optax.sgd(0.1).init(own), parent, TOKENS)
        return jax.tree.map(np.asarray, (after, losses))

    def moved(x):
        return x + (np.arange(DEPTH) == 1).reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)

    after, losses = stepped(own)
    after_then, losses_then = stepped(jax.tree.map(moved, own))
    for one, other in ((after, after_then), (losses, losses_then)):
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(np.delete(a, 1, 0), np.delete(b, 1, 0))
    both = zip(jax.tree.leaves(losses), jax.tree.leaves(losses_then), strict=True)
    assert any(not np.array_equal(a[1], b[1]) for a, b in both)

    given = jax.jit(LIBRARY.given)(parent, TOKENS)
    assert np.all(losses["ffn"]["1"] == 0)  # as large as the parent's, it is the parent's
    number, (part, name) = 2, ("ffn", "2")
    block = dataclasses.replace(PARENT.block, ffn=LIBRARY.layers(part)[int(name)])

    @jax.jit
    def alone(own, blocks, x, y):
        def loss(own):
            return jnp.mean((block({**blocks, part: own}, x)[0] - y) ** 2) / jnp.mean(y**2)

        value, slope = jax.value_and_grad(loss)(own)
        return value, jax.tree.map(lambda p, g: p - 0.1 * g, own, slope)

    here = jax.tree.map(lambda x: x[number], (own[part][name], dict(parent[BLOCKS]), *given))
    value, wanted = alone(*here)
    np.testing.assert_allclose(losses[part][name][number], value, rtol=1e-5)
    np.testing.assert_allclose(after[part][name]["weight"][number], wanted["weight"], atol=1e-5)


def test_options_start_as_the_parent_says():
    random = np.random.default_rng(1)
    params, x = random_like(MIXER.table()), random.normal(size=(3, 1, 8)).astype(np.float32)
    equal = {**params, **{n: put(np.repeat(params[n][:, :1], 2, 1)) for n in ("key", "value")}}
    fewer = dataclasses.replace(MIXER, kv_heads=1)
    key = jax.random.key(0)

    @jax.jit
    def outputs(params, equal, x):
        small = pooled(1)(MIXER, equal, x, key)
        straight = as_linear_attention(MIXER, params, x, key)["weight"]
        long = x.reshape(1, 3, 8)
        whole = MIXER(params, x)[0], MIXER(equal, long)[0]
        return *whole, x @ straight, fewer(small, long)[0]

    one, many, linear, small = map(np.asarray, outputs(params, equal, put(x)))
    np.testing.assert_allclose(linear, one, atol=1e-5)  # of one token, attention is linear
    np.testing.assert_allclose(small, many, atol=1e-5)  # heads that are alike are their mean
    with pytest.raises(UserError, match="2 heads of keys are not shared out by 3"):
        pooled(3)(MIXER, params, x, key)


def test_a_contribution_is_how_far_the_output_moves_without_the_unit():
    params = {name: np.asarray(p, float) for name, p in random_like(FFN.table()).items()}
    x = np.random.default_rng(2).normal(size=(2, 3, 8))
    narrow, scaled = narrower(FFN, 6), dataclasses.replace(FFN, out_scale=0.5)

    @jax.jit
    def found(params, x):
        product = as_linear_mlp(scaled, params, x, None)["weight"]
        return contributions(FFN, params, x), narrow.start(FFN, params, x, None), product

    single = jax.tree.map(lambda p: put(p, np.float32), params)
    told, kept, product = jax.tree.map(np.asarray, found(single, put(x, np.float32)))
    hidden = np.asarray(gelu(put(x @ params["w_in"] + params["b_in"], np.float32)), float)
    moved = hidden[..., None] * params["w_out"].T  # [B, T, F, D], what each unit adds
    wanted = np.linalg.norm(moved, axis=-1).mean((0, 1))
    np.testing.assert_allclose(told, wanted, rtol=1e-4)
    best = np.sort(np.argsort(-wanted)[:6])
    np.testing.assert_allclose(kept["w_out"], params["w_out"][:, best], rtol=1e-6)
    halved = params["w_in"] @ params["w_out"].T / 2
    np.testing.assert_allclose(product, halved, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="starts from the weights of MLP, not of Attention"):
        as_linear_mlp(MIXER, {}, None, None)


def test_divergence_and_cosines_are_those_of_float64():
    random = np.random.default_rng(3)
    one, other = random.normal(size=(2, 4, 2, 3, 5))
    kl, cosines = jax.jit(lambda a, b: (divergence(a, b), cosine_distance(a, b)))(
        put(one, np.float32), put(other, np.float32)
    )
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (one, other))
    np.testing.assert_allclose(kl, (p * np.log(p / q)).sum(-1), rtol=1e-4)
    length = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    wanted = 1 - (one * other).sum(-1) / length
    np.testing.assert_allclose(cosines, wanted.mean((1, 2)), rtol=1e-4)


def test_blocks_of_another_form_are_refused():
    with pytest.raises(UserError, match="a library needs a parent of equal blocks"):
        Library(LanguageModel(Block(MIXER, FFN, form="parallel"), 8, 2, vocab=16), (), ())
