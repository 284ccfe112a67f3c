"""The selective scan: three implementations, one recurrence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gam_jax.ops.selective import METHODS, selective_scan
from tests.meshes import layout_of

NAMES = ("x", "dt", "a", "b", "c", "state", "begin")
STEPS = {"usual": (1e-3, 1e-1), "none": (0.0, 0.0), "tiny": (0.0, 1e-6), "large": (0.0, 60.0)}


def problem(tokens, steps="usual", channels=3, numbers=4, batch=2):
    """Random float64 arguments; a from -1 down to -numbers, as Mamba begins."""
    random = np.random.default_rng(tokens)
    normal = random.normal
    return {
        "x": normal(size=(batch, tokens, channels)),
        "dt": random.uniform(*STEPS[steps], size=(batch, tokens, channels)),
        "a": -np.tile(np.arange(1.0, numbers + 1)[:, None], channels),
        "b": normal(size=(batch, tokens, numbers)),
        "c": normal(size=(batch, tokens, numbers)),
        "state": normal(size=(batch, numbers, channels)),
        "begin": normal(size=(batch, numbers, channels)),
    }


def oracle(x, dt, a, b, c, state, begin, starts=None):
    """The recurrence in float64, a row, a token and a channel at a time: y and the last state.

    Where `starts` [B, T] is true, `begin` stands in the place of the state before.
    """
    y, last = np.zeros_like(x), state.copy()
    for row in range(x.shape[0]):
        for t in range(x.shape[1]):
            for channel in range(x.shape[2]):
                anew = starts is not None and starts[row, t]
                h = (begin if anew else last)[row, :, channel]
                step = dt[row, t, channel]
                h = np.exp(step * a[:, channel]) * h + step * b[row, t] * x[row, t, channel]
                last[row, :, channel] = h
                y[row, t, channel] = c[row, t] @ h
    return y, last


def oracle_gradients(given, by_y, by_last, starts=None):
    """Gradients of sum(y by_y) + sum(last by_last), from right to left in float64."""
    x, dt, a, b, c, state, begin = (given[name] for name in NAMES)
    states = [state]
    for t in range(x.shape[1]):
        part = {**given, "state": states[-1]}
        part.update({name: given[name][:, t : t + 1] for name in ("x", "dt", "b", "c")})
        begins = None if starts is None else starts[:, t : t + 1]
        states.append(oracle(*(part[name] for name in NAMES), begins)[1])
    found = {name: np.zeros_like(given[name]) for name in NAMES}
    g = by_last.copy()
    for t in reversed(range(x.shape[1])):
        step, h, before = dt[:, t, None], states[t + 1], states[t].copy()
        anew = np.zeros(len(x), bool) if starts is None else starts[:, t]
        before[anew] = begin[anew]
        found["c"][:, t] = np.einsum("bd,bnd->bn", by_y[:, t], h)
        g = g + c[:, t, :, None] * by_y[:, t, None]
        decay = np.exp(step * a)
        by_exponent = g * decay * before
        by_write = np.einsum("bnd,bn->bd", g, b[:, t])
        found["a"] += np.sum(by_exponent * step, 0)
        found["dt"][:, t] = np.sum(by_exponent * a, 1) + by_write * x[:, t]
        found["x"][:, t] = by_write * dt[:, t]
        found["b"][:, t] = np.einsum("bnd,bd->bn", g, dt[:, t] * x[:, t])
        g = g * decay
        found["begin"][anew] += g[anew]
        g[anew] = 0
    return {**found, "state": g}


scan = jax.jit(selective_scan, static_argnames=("method", "chunk"))


def single(arrays):
    """Each as float32 of NumPy."""
    return jax.tree.map(np.float32, arrays)


@functools.partial(jax.jit, static_argnames=("method", "chunk"))
def run(given, by_y, by_last, method, chunk, starts=None):
    def objective(given):
        *args, state, begin = (given[name] for name in NAMES)
        how = {"method": method, "chunk": chunk, "starts": starts, "begin": begin}
        y, last = selective_scan(*args, state=state, **how)
        return jnp.sum(y * by_y) + jnp.sum(last * by_last), (y, last)

    (_, outputs), gradients = jax.value_and_grad(objective, has_aux=True)(given)
    return outputs, gradients


def close(found, wanted):
    scale = np.max(np.abs(wanted), initial=1e-3)
    np.testing.assert_allclose(np.asarray(found), wanted, rtol=0, atol=2e-5 * scale)


def packing(tokens):
    """Where documents begin: many short ones, and none in the last row."""
    starts = np.random.default_rng(2).random((2, tokens)) < 0.4
    starts[-1] = False
    return starts


@pytest.mark.parametrize("packed", [False, True], ids=["one document", "packed"])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("method", METHODS)
def test_values_and_gradients_are_those_of_the_recurrence_in_float64(method, steps, packed):
    given = problem(11, steps)  # no multiple of the chunk
    random = np.random.default_rng(1)
    by_y, by_last = random.normal(size=given["x"].shape), random.normal(size=given["state"].shape)
    narrow = single((given, by_y, by_last))
    starts = packing(11) if packed else None
    outputs, gradients = run(*narrow, method, 4, starts)
    for found, wanted in zip(outputs, oracle(**given, starts=starts), strict=True):
        close(found, wanted)
    for name, wanted in oracle_gradients(given, by_y, by_last, starts).items():
        close(gradients[name], wanted)


@pytest.mark.parametrize("tokens", [1, 3, 8, 13])
@pytest.mark.parametrize("chunk", [1, 4, 16])
def test_any_chunk_and_length_give_what_token_by_token_gives(tokens, chunk):
    given = single(problem(tokens))
    args = [given[name] for name in NAMES[:-2]]
    wanted = scan(*args, state=given["state"], method="recurrent")
    found = scan(*args, state=given["state"], chunk=chunk)
    for one, other in zip(found, wanted, strict=True):
        close(one, np.asarray(other))


def test_no_state_is_a_state_of_zeros():
    given = single(problem(5))
    args = [given[name] for name in NAMES[:-2]]
    for one, other in zip(
        scan(*args),
        scan(*args, state=np.zeros_like(given["state"])),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("shards", "packed"), [(2, False), (8, False), (4, True)])
def test_shards_of_a_sequence_give_values_and_gradients_of_the_whole(shards, packed):
    """Of the packed one documents begin in some shards; no state goes through these."""
    given = single(problem(16))
    layout = layout_of((1, shards, 1))
    split = P(None, "seq")
    starts = (packing(16) & (np.arange(16) // 4 % 2 == 1)) if packed else None

    def objective(given, axis):
        def scan(starts, *args):
            *args, state, begin = args
            how = {"state": state, "chunk": 4, "axis": axis, "starts": starts, "begin": begin}
            return selective_scan(*args, **how)

        if axis is not None:
            scan = jax.shard_map(
                scan,
                mesh=layout.mesh,
                in_specs=(split, split, split, P(), split, split, P(), P()),
                out_specs=(split, P()),
            )
        y, last = scan(starts, *(given[name] for name in NAMES))
        return jnp.sum(y * jnp.cos(y)) + jnp.sum(last**3), (y, last)

    both = jax.jit(jax.value_and_grad(objective, has_aux=True), static_argnums=1)
    wanted, found = both(given, None), both(given, "seq")
    jax.tree.map(lambda one, other: close(one, np.asarray(other)), found, wanted)


def temporaries(tokens):
    """Bytes that the compiler sets aside for values and gradients of one row of 64 channels."""
    channels, numbers = 64, 16

    def f(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    args = [f(1, tokens, channels)] * 2 + [f(numbers, channels)] + [f(1, tokens, numbers)] * 2
    gradient = jax.grad(lambda *args: jnp.sum(selective_scan(*args)[0] ** 2), range(5))
    return jax.jit(gradient).lower(*args).compile().memory_analysis().temp_size_in_bytes


def test_memory_is_less_than_half_of_what_all_states_would_take_once():
    tokens = 4096
    all_states = 4 * tokens * 64 * 16
    assert temporaries(tokens) - temporaries(tokens // 2) < 0.5 * all_states / 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "fast"}, "not one of chunked"),
        ({"chunk": 0}, "at least 1"),
        ({"dt": np.ones((2, 2))}, r"dt \(2, 2\) is not \(2, 2, 3\)"),
        ({"a": np.ones((4, 5))}, r"a \(4, 5\) is not \[N, D\] with D = 3"),
        ({"c": np.ones((2, 2, 5))}, r"c \(2, 2, 5\) is not \(2, 2, 4\)"),
        ({"state": np.ones((2, 3, 4))}, r"state \(2, 3, 4\) is not \(2, 4, 3\)"),
        ({"starts": np.ones((2, 2), int)}, "starts is int.., not bool"),
    ],
)
def test_what_does_not_fit_is_named(changes, words):
    given = single(problem(2)) | changes
    with pytest.raises(ValueError, match=words):
        selective_scan(**given)
