"""The memory scan against its equations: values, gradients, extreme decays, any length."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gam_jax.ops.scan import METHODS, RULES, memory_scan
from tests import scan_oracle
from tests.arrays import put
from tests.meshes import slow_unless_chosen

EXTREME = (0.0, 1e-6, 1.0, 0.5, 0.99, 0.9999)
DECAYS = ("none", "head", "channel")


def draw(rows, tokens, groups, heads, keys, width, decay, beta=True, seed=0):
    """Arguments of a scan; keys have norm 1."""
    random = np.random.default_rng(seed)
    q, k = random.normal(size=(2, rows, tokens, groups, keys))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    v, state = random.normal(size=(rows, tokens, heads, width)), random.normal(size=keys * width)
    shape = {"none": None, "head": v.shape[:3], "channel": (*v.shape[:3], keys)}[decay]
    with np.errstate(divide="ignore"):
        log = None if shape is None else np.log(random.choice(EXTREME, shape))
    strength = random.uniform(0, 1, v.shape[:3]) if beta else None
    state = np.broadcast_to(state.reshape(keys, width), (rows, heads, keys, width))
    return tuple(
        None if x is None else x.astype(np.float32) for x in (q, k, v, log, strength, state)
    )


def scan(q, k, v, log_decay, beta, state, begin=None, **how):
    how |= {"beta": beta, "state": state, "begin": begin}
    return memory_scan(q, k, v, log_decay=log_decay, **how)


@functools.partial(jax.jit, static_argnames=("rule", "method", "chunk"))
def run(args, *, rule, method="chunked", chunk=8):
    return scan(*args, rule=rule, method=method, chunk=chunk)


@functools.partial(jax.jit, static_argnames=("rule", "method", "chunk"))
def run_and_pull(args, cotangents, starts=None, *, rule, method="chunked", chunk=8):
    """Outputs, and gradients by every argument that is there, as `scan` has them."""
    there = [i for i, x in enumerate(args) if x is not None]

    def function(*given):
        full = list(args)
        for i, x in zip(there, given, strict=True):
            full[i] = x
        return scan(*full, starts=starts, rule=rule, method=method, chunk=chunk)

    outputs, pull = jax.vjp(function, *(args[i] for i in there))
    return outputs, pull(cotangents)


def assert_close(found, wanted, tolerance=2e-6):
    for a, b in zip(found, wanted, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert np.all(np.isfinite(a))
        scale = max(np.max(np.abs(b), initial=0), 1e-30)
        assert np.max(np.abs(a - b), initial=0) <= tolerance * scale


KERNEL = pytest.param("pallas", marks=pytest.mark.slow)
"""A short form by default is in `test_scan_kernel`."""
METHOD = pytest.mark.parametrize("method", [*sorted({*METHODS} - {"pallas"}), KERNEL])
FAST = pytest.mark.parametrize("method", ["chunked", KERNEL])


@METHOD
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("rule", RULES)
def test_values_and_gradients_are_those_of_the_equations(rule, decay, method):
    args = draw(2, 75, 2, 4, 8, 6, decay)
    random = np.random.default_rng(1)
    cotangents = random.normal(size=(2, 75, 4, 6)), random.normal(size=(2, 4, 8, 6))
    cotangents = tuple(x.astype(np.float32) for x in cotangents)
    outputs, gradients = run_and_pull(args, cotangents, rule=rule, method=method)
    *wanted, pull = scan_oracle.memory(*args, rule)
    assert_close(outputs, wanted)
    assert_close(gradients, pull(*cotangents))


PACKED = [("chunked", rule, decay, True) for rule in RULES for decay in DECAYS]
PACKED += [("chunked", "hebb", "none", False), ("chunked", "delta", "channel", False)]
PACKED += [("associative", "hebb", "none", False), ("associative", "delta", "channel", True)]
PACKED += [("recurrent", "hebb", "channel", True), ("recurrent", "delta", "none", False)]


def packing(rows, tokens):
    """Where documents begin: many short ones, a long one, one a token, none in the last row."""
    starts = np.random.default_rng(2).random((rows, tokens)) < 0.3
    starts[0, 3 : tokens // 2], starts[0, -3:], starts[-1] = False, True, False
    return starts


@pytest.mark.parametrize(("method", "rule", "decay", "given"), PACKED)
def test_documents_begin_with_an_empty_memory_or_the_one_given(method, rule, decay, given):
    """The rest of the equations stays; no gradient reaches over a beginning."""
    args, starts = draw(3, 37, 2, 4, 4, 3, decay), packing(3, 37)
    random = np.random.default_rng(1)
    shapes = (3, 37, 4, 3), (3, 4, 4, 3)
    begin = random.normal(size=shapes[1]).astype(np.float32) if given else None
    args = (*args, begin)
    cotangents = tuple(random.normal(size=shape).astype(np.float32) for shape in shapes)
    outputs, gradients = run_and_pull(args, cotangents, starts, rule=rule, method=method)
    *wanted, pull = scan_oracle.memory(*args[:-1], rule, starts, begin)
    assert_close(outputs, wanted)
    assert_close(gradients, pull(*cotangents))


@settings(max_examples=8)
@given(
    tokens=st.integers(1, 70),
    chunk=st.sampled_from([1, 3, 16, 64]),
    groups=st.sampled_from([1, 3]),
    shared=st.sampled_from([1, 2]),
    keys=st.integers(1, 9),
    width=st.integers(1, 9),
    decay=st.sampled_from(DECAYS),
    beta=st.booleans(),
    rule=st.sampled_from(RULES),
)
def test_of_any_shape(tokens, chunk, groups, shared, keys, width, decay, beta, rule):
    args = draw(1, tokens, groups, groups * shared, keys, width, decay, beta)
    *wanted, _ = scan_oracle.memory(*args, rule)
    assert_close(run(args, rule=rule, chunk=chunk), wanted)


@pytest.mark.parametrize("rule", RULES)
def test_no_strength_is_a_strength_of_one(rule):
    q, k, v, log, _, state = draw(1, 20, 2, 2, 4, 4, "head")
    ones = np.ones(v.shape[:3], np.float32)
    with_ones = run((q, k, v, log, ones, state), rule=rule)
    assert_close(run((q, k, v, log, None, state), rule=rule), with_ones)


@FAST
@pytest.mark.parametrize("decay", ["head", "channel"])
def test_a_slow_decay_after_fast_ones_keeps_its_digits(decay, method):
    """A plain running sum of logs would be off by 1e-4 here."""
    q, k, v, log, beta, state = draw(1, 64, 1, 1, 4, 4, decay)
    log[:, :40], log[:, 40:] = np.log(1e-6), np.log(0.9)
    args = (q, k, v, log.astype(np.float32), beta, state)
    *wanted, _ = scan_oracle.memory(*args, "hebb")
    assert_close(run(args, rule="hebb", method=method, chunk=64), wanted, 5e-7)


STRENGTHS = (0.01, 1.0, 5.0, 20.0, 60.0, 86.0)
"""Of decays: the mean of -log for a token."""


@FAST
@pytest.mark.parametrize("rule", RULES)
def test_no_decay_of_a_channel_is_too_strong(rule, method):
    """A product of decays over a chunk is down to e^-5504 here: no quotient of such would do. The
    error is that of rounding once, whatever the strength. Each strength is a row."""
    args = draw(len(STRENGTHS), 96, 1, 1, 8, 4, "channel")
    random, shape = np.random.default_rng(3), (len(STRENGTHS), 96, 1, 8)
    log = -np.reshape(STRENGTHS, (-1, 1, 1, 1)) * random.uniform(0.5, 1.0, shape)
    log[:, :, :, ::3] *= 0.01  # slow channels beside fast ones
    args = (*args[:3], log.astype(np.float32), *args[4:])
    cotangents = (args[2][::-1], args[5][::-1])
    outputs, gradients = run_and_pull(args, cotangents, rule=rule, method=method, chunk=64)
    *wanted, pull = scan_oracle.memory(*args, rule)
    every = map(np.asarray, (*outputs, *gradients))
    for found, want in zip(every, (*wanted, *pull(*cotangents)), strict=True):
        for row in range(len(STRENGTHS)):
            assert_close([found[row]], [want[row]])


@FAST
def test_the_delta_rule_is_stable_where_all_keys_are_alike(method):
    q, k, v, _, _, state = draw(1, 64, 1, 1, 4, 4, "none")
    args = (q, np.broadcast_to(k[:, :1], k.shape), v, None, np.ones((1, 64, 1), np.float32), state)
    *wanted, _ = scan_oracle.memory(*args, "delta")
    assert_close(run(args, rule="delta", method=method, chunk=64), wanted)


BOUNDS = {1.0: 4e-6, 1.5: 8e-6, 1.9: 2e-5, 1.95: 4e-5, 2.0: 5e-4}
"""Of the error after 1,024 tokens, relative to the largest value, by the strength of writes."""


@FAST
def test_near_a_strength_of_two_the_delta_rule_stays_within_documented_bounds(method):
    """Where keys repeat, exactly, nearly or in turns, what was written is turned over again and
    again: the worst that there is. Each strength with each order of keys is a row."""
    kinds, tokens, keys = 3, 1024, 8
    q, k, v, *_, state = draw(kinds * len(BOUNDS), tokens, 1, 1, keys, keys, "none")
    near, places = k[:, :1] + 0.05 * k, np.arange(tokens)[:, None, None]
    turns = np.where(places % 2, k[:, :1], k[:, 1:2])
    rows = np.arange(len(k))[:, None, None, None] % kinds
    k = np.select([rows == 0, rows == 1], [np.broadcast_to(k[:, :1], k.shape), turns], near)
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    strengths = np.repeat(np.float32(list(BOUNDS)), kinds)
    beta = np.broadcast_to(strengths[:, None, None], v.shape[:3])
    args = (q, k, v, None, beta, state)
    cotangents = (v[::-1], state)
    outputs, gradients = run_and_pull(args, cotangents, rule="delta", method=method, chunk=64)
    *wanted, pull = scan_oracle.memory(*args, "delta")
    every = map(np.asarray, (*outputs, *gradients))
    for found, want in zip(every, (*wanted, *pull(*cotangents)), strict=True):
        for row, strength in enumerate(strengths):
            bound = BOUNDS[round(float(strength), 2)]
            assert_close([found[row]], [want[row]], bound)


def test_the_delta_rule_recalls_as_many_values_as_keys_and_overwrites():
    keys = np.eye(8, dtype=np.float32)[None, :, None]
    old, new = np.random.default_rng(0).normal(size=(2, 1, 8, 1, 4)).astype(np.float32)
    k, v = np.concatenate([keys, keys], 1), np.concatenate([old, new], 1)
    args = (k, k, v, None, None, np.zeros((1, 1, 8, 4), np.float32))
    y, state = map(np.asarray, run(args, rule="delta"))
    np.testing.assert_allclose(y, v, atol=1e-6)
    np.testing.assert_allclose(state[0, 0], new[0, :, 0], atol=1e-6)


def test_in_bfloat16_states_stay_float32():
    args = draw(1, 20, 1, 2, 4, 4, "head")
    half = tuple(put(x, jnp.bfloat16) for x in args[:3])
    y, state = run((*half, *args[3:]), rule="delta")
    assert (y.dtype, state.dtype) == (jnp.bfloat16, jnp.float32)


@pytest.mark.parametrize(
    ("rule", "decay"),
    slow_unless_chosen(itertools.product(RULES, DECAYS), [("delta", "none"), ("delta", "channel")]),
)
def test_the_backward_pass_of_chunks_stores_states_a_stretch_not_a_token(rule, decay):
    """Memory is linear in the tokens, up to 65,536 of them."""

    def temporary(tokens):
        q, heads = jax.ShapeDtypeStruct((1, tokens, 2, 32), jnp.float32), (1, tokens, 2)
        shape = {"none": None, "head": heads, "channel": q.shape}[decay]
        log = shape and jax.ShapeDtypeStruct(shape, jnp.float32)
        beta = jax.ShapeDtypeStruct(heads, jnp.float32)

        def loss(q, k, v, log, beta):
            return jnp.sum(memory_scan(q, k, v, log_decay=log, beta=beta, rule=rule)[0])

        by = (0, 1, 2, 4) if log is None else range(5)
        compiled = jax.jit(jax.grad(loss, by)).lower(q, q, q, log, beta).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = temporary(2**15), temporary(2**16)
    arrays = 2**15 * 2 * 32 * 4  # bytes of one argument
    assert long <= 2.05 * short
    assert long - short <= 20 * arrays
    assert 20 * arrays < 2**15 * 2 * 32 * 32 * 4  # a state a token would be more


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": "oja"}, "rule 'oja' is not one of hebb, delta"),
        ({"method": "fast"}, "method 'fast' is not one of"),
        ({"chunk": 0}, "chunk 0 is not at least 1"),
        ({"beta": np.ones((1, 4, 3))}, "beta"),
        ({"log_decay": np.ones((1, 4, 2, 3))}, "log_decay"),
        ({"starts": np.ones((1, 3), bool)}, "starts"),
        ({"begin": np.ones((1, 2, 3, 4))}, "begin"),
        ({"starts": np.ones((1, 4))}, "starts is float.., not bool: true at each document's first"),
        ({"state": np.ones((1, 2, 4, 5))}, r"state \(1, 2, 4, 5\) is not \(1, 2, 5, 4\)"),
        ({"q": np.ones((4, 2, 5))}, r"q \(4, 2, 5\) is not \[B, T, G, K\]"),
        ({"v": np.ones((1, 0, 2, 4))}, "has no tokens"),
        ({"v": np.ones((1, 4, 3, 4))}, "H a multiple of G"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    k = np.ones((1, 4, 2, 5), np.float32)
    args = {"q": k, "k": k, "v": np.ones((1, 4, 2, 4), np.float32), **changes}
    with pytest.raises(ValueError, match=message):
        memory_scan(**args)
