"""Each op equals its formula, read independently in float64 NumPy, in values and in gradients.

Gradients are checked against central differences of the float64 formula, so neither JAX's
automatic derivatives nor the hand-written ones are trusted.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gam_jax.ops.activation import gelu
from gam_jax.ops.conv import causal_conv
from gam_jax.ops.cross_entropy import Head, loss_sum, token_losses, token_scores
from gam_jax.ops.dropout import dropout
from gam_jax.ops.linear import linear, linear_transposed
from gam_jax.ops.memory import memory_read
from gam_jax.ops.norm import layer_norm, rms_norm
from gam_jax.ops.vocabulary import embed, padded_rows
from sharding.axes import Axes
from sharding.mesh import make_mesh
from tests.arrays import put, single


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def gelu_formula(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def conv_formula(x, weight, bias, carry, dilation=1):
    before = np.concatenate([carry, x], axis=1)
    y = np.zeros((*x.shape[:2], weight.shape[-1]))
    for t in range(x.shape[1]):
        for j, tap in enumerate(weight):
            seen = before[:, t + j * dilation]
            y[:, t] += seen @ tap if tap.ndim == 2 else seen * tap
    return y + bias


def dilated(dilation):
    return (
        lambda *arrays: causal_conv(*arrays[:3], state=arrays[3], dilation=dilation)[0],
        functools.partial(conv_formula, dilation=dilation),
    )


def memory_formula(x, bank):
    rows = []
    for query in x:
        weights = np.exp(bank @ query - np.max(bank @ query))
        rows.append(weights @ bank / weights.sum())
    return np.stack(rows)


def norm_formula(x, scale, bias):
    deviation = np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
    return (x - x.mean(axis=-1, keepdims=True)) / deviation * scale + bias


def rms_formula(x, scale):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-5) * scale


TARGETS = np.array([0, 3, 7, 3, 5])
TOKENS = np.array([[1, 0, 7], [7, 7, 2]])


def losses_formula(hidden, embedding, cap=0.0):
    logits = hidden @ embedding.T
    logits = cap * np.tanh(logits / cap) if cap else logits
    picked = logits[np.arange(len(TARGETS)), TARGETS]
    return np.log(np.exp(logits - logits.max()).sum(axis=1)) + logits.max() - picked


OPS = {
    "gelu": (gelu, gelu_formula, [3 * normal(4, 5)]),
    "linear": (linear, lambda x, w, b: x @ w + b, [normal(5, 3), normal(3, 4), normal(4)]),
    "linear, wide to narrow": (linear, lambda x, w: x @ w, [normal(5, 4), normal(4, 2)]),
    "linear transposed": (linear_transposed, lambda x, w: x @ w.T, [normal(5, 4), normal(3, 4)]),
    "layer norm": (layer_norm, norm_formula, [2 + normal(2, 3, 6), normal(6), normal(6, seed=1)]),
    "rms norm": (rms_norm, rms_formula, [2 + normal(2, 3, 6), normal(6)]),
    "memory": (memory_read, memory_formula, [normal(5, 4), normal(6, 4)]),
    "memory of one slot": (memory_read, memory_formula, [normal(5, 4), normal(1, 4)]),
    "conv": (
        *dilated(1),
        [normal(2, 5, 3), normal(3, 3), normal(3), normal(2, 2, 3)],
    ),
    "conv longer than its tokens": (
        *dilated(1),
        [normal(2, 2, 3), normal(5, 3), normal(3), normal(2, 4, 3)],
    ),
    "conv of one tap": (
        *dilated(1),
        [normal(2, 5, 3), normal(1, 3), normal(3), normal(2, 0, 3)],
    ),
    "conv, dilated": (*dilated(2), [normal(2, 5, 3), normal(3, 3), normal(3), normal(2, 4, 3)]),
    "conv, dilated past its tokens": (
        *dilated(4),
        [normal(2, 3, 3), normal(3, 3), normal(3), normal(2, 8, 3)],
    ),
    "conv, dense": (*dilated(1), [normal(2, 5, 3), normal(3, 3, 2), normal(2), normal(2, 2, 3)]),
    "conv, dense and dilated": (
        *dilated(3),
        [normal(2, 4, 2), normal(2, 2, 3), normal(3), normal(2, 3, 2)],
    ),
    "token losses": (
        lambda hidden, embedding: token_losses(hidden, embedding, put(TARGETS)),
        losses_formula,
        [normal(5, 4), normal(8, 4)],
    ),
    "token losses, capped": (
        lambda hidden, embedding: token_losses(hidden, embedding, put(TARGETS), Head(cap=1.5)),
        functools.partial(losses_formula, cap=1.5),
        [normal(5, 4), normal(8, 4)],
    ),
    "token losses, in blocks": (
        lambda hidden, embedding: token_losses(hidden, embedding, put(TARGETS), Head(block=2)),
        losses_formula,
        [normal(5, 4), normal(8, 4)],
    ),
    "sum of losses, capped, in blocks": (
        lambda hidden, embedding, weights: loss_sum(
            hidden, embedding, put(TARGETS), weights, Head(cap=1.5, block=3)
        ),
        lambda hidden, embedding, weights: np.sum(
            weights * losses_formula(hidden, embedding, cap=1.5)
        ),
        [normal(5, 4), normal(8, 4), normal(5)],
    ),
    "embed": (
        lambda table: embed(put(TOKENS), table),
        lambda table: table[TOKENS],
        [normal(8, 3)],
    ),
}

every_op = pytest.mark.parametrize(("op", "formula", "arrays"), OPS.values(), ids=OPS.keys())


def differences(function, arrays, step=1e-5):
    """Central differences of a scalar float64 function in each element of each array."""
    gradients = []
    for i, array in enumerate(arrays):
        gradient = np.zeros_like(array)
        for place in np.ndindex(array.shape):
            ends = []
            for sign in (1, -1):
                moved = [np.array(a) for a in arrays]
                moved[i][place] += sign * step
                ends.append(function(*moved))
            gradient[place] = (ends[0] - ends[1]) / (2 * step)
        gradients.append(gradient)
    return gradients


@every_op
def test_it_equals_its_formula(op, formula, arrays):
    found = jax.jit(op)(*single(arrays))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, formula(*arrays), rtol=2e-5, atol=2e-6)


@every_op
def test_its_gradients_are_the_formula_s_slopes(op, formula, arrays):
    pull = normal(*formula(*arrays).shape, seed=9)

    def loss(*values):
        return jnp.sum(op(*values) * pull.astype(np.float32))

    found = jax.jit(jax.grad(loss, argnums=tuple(range(len(arrays)))))(*single(arrays))
    slopes = differences(lambda *values: np.sum(formula(*values) * pull), arrays)
    for gradient, slope in zip(found, slopes, strict=True):
        np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gelu", "layer norm", "memory", "conv", "linear"])
def test_bfloat16_in_is_bfloat16_out_and_near(name):
    op, formula, arrays = OPS[name]
    found = jax.jit(op)(*(put(array, jnp.bfloat16) for array in arrays))
    assert found.dtype == jnp.bfloat16
    want = formula(*arrays)
    np.testing.assert_allclose(np.asarray(found, np.float64), want, atol=0.05 * np.abs(want).max())


def test_losses_of_bfloat16_are_float32():
    arrays = [put(array, jnp.bfloat16) for array in OPS["token losses"][2]]
    assert jax.jit(token_losses)(*arrays, put(TARGETS)).dtype == jnp.float32


def test_gelu_is_exact_and_has_no_bad_value_far_out():
    far = put([-1e4, -40.0, 40.0, 1e4])
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(gelu)))(far)
    np.testing.assert_array_equal(values, [0, 0, 40, 1e4])
    np.testing.assert_array_equal(slopes, [0, 0, 1, 1])


def test_large_scores_do_not_overflow():
    bank = normal(6, 4).astype(np.float32)
    x = np.float32(1e4) * bank[:3]
    best = np.argmax(x @ bank.T, axis=1)
    np.testing.assert_allclose(jax.jit(memory_read)(x, bank), bank[best], rtol=1e-6)
    losses = jax.jit(token_losses)(np.float32(1e4) * bank, bank, np.arange(6))
    assert np.all(np.isfinite(losses))


def test_a_bank_of_one_slot_gives_that_slot_to_every_row():
    x, bank = single([normal(7, 4), normal(1, 4)])
    found = jax.jit(memory_read)(x, bank)
    np.testing.assert_allclose(found, np.tile(bank, (7, 1)), rtol=1e-6)


def test_what_is_read_lies_between_the_slots():
    bank = normal(6, 4)
    found = jax.jit(memory_read)(*single([normal(50, 4), bank]))
    assert np.all(found >= bank.min(axis=0) - 1e-6)
    assert np.all(found <= bank.max(axis=0) + 1e-6)


@pytest.mark.parametrize(("taps", "tokens"), [(1, 5), (3, 5), (3, 1), (5, 2)])
def test_the_carry_of_a_convolution_is_its_last_inputs(taps, tokens):
    x, carry = normal(2, tokens, 3), normal(2, taps - 1, 3)
    weight, bias = normal(taps, 3), normal(3)
    _, after = jax.jit(causal_conv)(*single([x, weight, bias]), state=put(carry, jnp.float32))
    last = np.concatenate([carry, x], axis=1)[:, tokens:]
    assert after.shape == (2, taps - 1, 3)
    np.testing.assert_array_equal(after, last.astype(np.float32))


def test_losses_are_those_of_a_distribution():
    """exp(-loss) over all targets sums to one."""
    hidden, embedding = single(OPS["token losses"][2])
    losses = jax.jit(token_losses)
    every = [losses(hidden, embedding, np.full(5, target)) for target in range(8)]
    np.testing.assert_allclose(np.exp(-np.stack(every)).sum(axis=0), 1, rtol=1e-5)


X = np.ones((64, 32, 16), np.float32)
dropped = jax.jit(dropout, static_argnums=1)


def test_dropout_keeps_the_mean_and_drops_the_rate():
    for rate in (0.1, 0.5):
        y = np.asarray(dropped(X, rate, jax.random.key(0)))
        assert (y == 0).mean() == pytest.approx(rate, abs=0.01)
        np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-6)
        assert y.mean() == pytest.approx(1, abs=0.02)
        for axis in range(3):  # no row, token or channel is favoured
            others = tuple({0, 1, 2} - {axis})
            assert np.abs((y == 0).mean(axis=others) - rate).max() < 0.1


def test_without_a_key_or_a_rate_dropout_does_nothing():
    assert dropout(X, 0.5, None) is X
    assert dropout(X, 0.0, jax.random.key(0)) is X


def test_the_key_decides_what_is_dropped():
    one, same, other = (np.asarray(dropped(X, 0.5, jax.random.key(seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert 0.4 < np.mean((one == 0) != (other == 0)) < 0.6


def test_the_gradient_of_dropout_is_its_mask():
    key = jax.random.key(0)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(dropout(x, 0.5, key))))(3 * X)
    np.testing.assert_allclose(gradient, dropped(X, 0.5, key), rtol=1e-6)


@pytest.mark.parametrize("shape", [(8, 1), (1, 8), (2, 4)], ids=str)
def test_what_is_dropped_does_not_depend_on_how_batch_and_tokens_are_split(shape):
    spec, axes = P("data", "seq"), Axes(data="data", seq="seq")
    program = jax.shard_map(
        lambda x: dropout(x, 0.5, jax.random.key(0), axes),
        mesh=make_mesh(*shape),
        in_specs=spec,
        out_specs=spec,
    )
    np.testing.assert_array_equal(jax.jit(program)(X), dropped(X, 0.5, jax.random.key(0)))


AXIS = "tensor"
SPLIT = {
    # op with an axis, its arguments, how they are split, how the result is
    "memory": (
        lambda x, bank, axis=None: memory_read(x, bank, axis, axis),
        [normal(5, 8), normal(12, 8)],
        (P(), P(AXIS)),
        P(None, AXIS),
    ),
    "memory, its result whole": (
        lambda x, bank, axis=None: memory_read(x, bank, axis),
        [normal(5, 8), normal(12, 8)],
        (P(), P(AXIS)),
        P(),
    ),
    "memory, its result alone split": (
        lambda x, bank, axis=None: memory_read(x, bank, None, axis),
        [normal(5, 8), normal(12, 8)],
        (P(), P()),
        P(None, AXIS),
    ),
    "token losses": (
        lambda hidden, table, axis=None: token_losses(hidden, table, put(TARGETS), Head(axis)),
        [normal(5, 4), normal(8, 4)],
        (P(), P(AXIS)),
        P(),
    ),
    "sum of losses, in blocks": (
        lambda hidden, table, weights, axis=None: loss_sum(
            hidden, table, put(TARGETS), weights, Head(axis, block=2)
        ),
        [normal(5, 4), normal(8, 4), normal(5)],
        (P(), P(AXIS), P()),
        P(),
    ),
    "embed": (
        lambda table, axis=None: embed(
            put(TOKENS), table, Axes(splits=(("vocab", axis),) if axis else ())
        ),
        [normal(8, 3)],
        (P(AXIS),),
        P(),
    ),
}


@pytest.mark.parametrize(("op", "arrays", "specs", "result"), SPLIT.values(), ids=SPLIT.keys())
def test_split_over_four_devices_it_equals_the_whole_with_its_gradients(op, arrays, specs, result):
    arrays = single(arrays)
    pull = normal(*op(*arrays).shape, seed=9).astype(np.float32)

    def value_and_gradients(program):
        def loss(*values):
            y = program(*values)
            return jnp.sum(y * pull), y

        places = tuple(range(len(arrays)))
        return jax.jit(jax.grad(loss, argnums=places, has_aux=True))(*arrays)

    sharded = jax.shard_map(
        functools.partial(op, axis=AXIS),
        mesh=make_mesh(tensor=4),
        in_specs=specs,
        out_specs=result,
    )
    for found, want in zip(
        jax.tree.leaves(value_and_gradients(sharded)),
        jax.tree.leaves(value_and_gradients(op)),
        strict=True,
    ):
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [3, 6, 9])
def test_rows_that_four_devices_do_not_divide_are_padded_with_nothing(size):
    """Some devices have no row of the vocabulary at all; ids outside it are still none."""
    ids = put([0, size - 1, size, 1, -1, size + 1])
    known = (np.asarray(ids) >= 0) & (np.asarray(ids) < size)
    hidden, table = single([normal(len(ids), 4), normal(size, 4)])

    def program(hidden, table, axis=None):
        axes, rows = Axes(), table
        if axis:
            axes, rows = Axes(splits=(("vocab", axis),)), padded_rows(table, axis)
        padded = size if axis else None
        losses = token_losses(hidden, rows, ids, Head(axis, padded, cap=1.5))
        scores = token_scores(hidden, rows, ids, Head(axis, padded))
        return embed(ids[None], rows, axes, padded), losses, scores

    split = jax.shard_map(
        functools.partial(program, axis=AXIS),
        mesh=make_mesh(tensor=4),
        in_specs=(P(), P()),
        out_specs=P(),
    )

    def loss(run, hidden, table):
        rows, losses, scores = run(hidden, table)
        return jnp.sum(jnp.where(known, losses, 0)) + jnp.sum(rows[:, known] ** 2), (
            rows,
            losses,
            scores,
        )

    found, want = (
        jax.jit(jax.value_and_grad(functools.partial(loss, run), argnums=(0, 1), has_aux=True))(
            hidden, table
        )
        for run in (split, program)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert np.isnan(found[0][1][1]).tolist() == (~known).tolist()


BAD = (-1, 8, -9, 300, 2**31 - 1)
"""Outside a vocabulary of 8."""


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
def test_ids_outside_the_vocabulary_give_nan_where_they_stand_and_nowhere_else(split):
    """Rows of the embedding, losses with their gradients, and hits."""
    ids = put([3, *BAD, 7, 0])
    bad = np.isin(np.asarray(ids), BAD)
    hidden, table = single([normal(len(ids), 4), normal(8, 4)])

    def program(hidden, table, axis=None):
        axes = Axes(splits=(("vocab", axis),) if axis else ())
        _, hits = token_scores(hidden, table, ids, Head(axis))
        return embed(ids[None], table, axes)[0], token_losses(hidden, table, ids, Head(axis)), hits

    def loss(hidden, table):
        rows, losses, hits = run(hidden, table)
        return jnp.sum(losses), (rows, losses, hits)

    split_program = jax.shard_map(
        functools.partial(program, axis=AXIS),
        mesh=make_mesh(tensor=4),
        in_specs=(P(), P(AXIS)),
        out_specs=P(),
    )
    run = split_program if split else program
    gradient, (rows, losses, hits) = jax.jit(jax.grad(loss, has_aux=True))(hidden, table)
    for found in (rows, losses[:, None], hits[:, None], gradient):
        np.testing.assert_array_equal(np.isnan(found).all(axis=-1), bad)
        np.testing.assert_array_equal(np.isnan(found).any(axis=-1), bad)


def test_small_unsigned_ids_are_ids():
    ids = np.array([0, 5, 255], np.uint8)
    table = normal(300, 4).astype(np.float32)
    np.testing.assert_array_equal(jax.jit(embed)(ids[None], table)[0], table[ids.astype(np.int32)])
    assert np.all(np.isfinite(jax.jit(token_losses)(table[:3], table, ids)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": np.ones((3, 4))}, r"causal_conv: x \(3, 4\) is not \[B, T, D\]"),
        ({"weight": np.ones((3, 5))}, r"weight \(3, 5\) is not \[K, D\] or \[K, D, F\] with D = 4"),
        ({"bias": np.ones(3)}, r"bias \(3,\) is not \(4,\)"),
        ({"state": np.ones((2, 3, 4))}, r"state \(2, 3, 4\) is not \(2, 2, 4\)"),
        ({"dilation": 0}, "dilation 0 is not at least 1"),
        ({"starts": np.ones((2, 5))}, "starts is float.., not bool"),
    ],
)
def test_what_a_convolution_cannot_take_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        causal_conv(**{"x": np.ones((2, 5, 4)), "weight": np.ones((3, 4)), **changes})
