"""The laws of the public ops: pieces, documents, rows and shards give what the whole gives.

Values and gradients are held against a plain reading of each equation: a step for each token in
float64, which JAX differentiates.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from gam_jax import ops
from sharding.mesh import make_mesh
from tests.arrays import put
from tests.meshes import slow_unless_chosen

ROWS, TOKENS, PIECES = 2, 12, (5, 1, 6)
SPLIT, WHOLE = P(None, "seq"), P()


@dataclasses.dataclass(frozen=True)
class Case:
    """An op with arguments.

    Attributes:
      call: of tokens, weights and keywords.
      tokens: shapes of the arrays [B, T, ...], without B and T.
      weights: shapes of the others.
      state: shape of the state, without B.
      step: float64; (state, tokens of one place, weights) to (state, y).
      given: how arguments are made of normal numbers.
    """

    call: Callable[..., Any]
    tokens: dict[str, tuple[int, ...]]
    state: tuple[int, ...]
    step: Callable[..., Any]
    weights: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    given: dict[str, Callable[..., Any]] = dataclasses.field(default_factory=dict)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def strong(x):
    """Log-decays: most near 0, some of -30 and of -inf's kind."""
    return np.where(x > 1.2, -30.0, np.where(x < -1.8, -95.0, -np.exp(x - 2)))


def share(x):
    return 1 / (1 + np.exp(-x))


H, K, N, D = 2, 4, 3, 4


def memory(rule, decay=None, beta=False):
    tokens = {"q": (H, K), "k": (H, K), "v": (H, N)}
    tokens |= {"log_decay": (H, K) if decay == "channel" else (H,)} if decay else {}
    tokens |= {"beta": (H,)} if beta else {}

    def call(given, weights, **how):
        return ops.memory_scan(**given, **weights, rule=rule, chunk=4, **how)

    def step(state, given, _):
        log = given.get("log_decay")
        if log is not None:
            log = jnp.where(log < -87, -jnp.inf, log)
            state = jnp.exp(log if log.ndim == 3 else log[..., None])[..., None] * state
        write = given["v"]
        if rule == "delta":
            write = write - jnp.einsum("bhk,bhkn->bhn", given["k"], state)
        if beta:
            write = given["beta"][..., None] * write
        state = state + given["k"][..., None] * write[:, :, None]
        return state, jnp.einsum("bhk,bhkn->bhn", given["q"], state)

    return Case(
        call, tokens, (H, K, N), step, given={"k": unit, "log_decay": strong, "beta": share}
    )


def selective():
    def call(given, weights, **how):
        return ops.selective_scan(**given, **weights, chunk=4, **how)

    def step(state, given, weights):
        write = (given["dt"] * given["x"])[:, None] * given["b"][..., None]
        state = jnp.exp(given["dt"][:, None] * weights["a"]) * state + write
        return state, jnp.einsum("bn,bnd->bd", given["c"], state)

    tokens = {"x": (D,), "dt": (D,), "b": (N,), "c": (N,)}
    made = {"dt": share, "a": lambda x: -np.exp(x)}
    return Case(call, tokens, (N, D), step, {"a": (N, D)}, made)


def conv(dense, dilation):
    taps = 3

    def call(given, weights, **how):
        return ops.causal_conv(**given, **weights, dilation=dilation, **how)

    def step(state, given, weights):
        seen = jnp.concatenate([state, given["x"][:, None]], axis=1)
        form = "bkd,kdf->bf" if dense else "bkd,kd->bd"
        y = jnp.einsum(form, seen[:, ::dilation], weights["weight"])
        return seen[:, 1:], y + weights["bias"]

    shape, out = ((taps, D, N), N) if dense else ((taps, D), D)
    weights = {"weight": shape, "bias": (out,)}
    return Case(call, {"x": (D,)}, ((taps - 1) * dilation, D), step, weights)


OPS = {
    "linear attention": memory("hebb"),
    "decay a head": memory("hebb", "head"),
    "decay a channel": memory("hebb", "channel", beta=True),
    "delta": memory("delta", beta=True),
    "gated delta": memory("delta", "head", beta=True),
    "kimi delta": memory("delta", "channel", beta=True),
    "selective": selective(),
    "conv": conv(dense=False, dilation=1),
    "conv, dense and dilated": conv(dense=True, dilation=3),
}


def each_op(*chosen):
    """All of them; those that are not chosen are marked slow."""
    cases = slow_unless_chosen(((name,) for name in OPS), [(name,) for name in chosen])
    return pytest.mark.parametrize("name", cases)


def draw(case, seed=0, rows=ROWS):
    """Arguments, a state, and where many short documents begin; with what, beside the weights."""
    random = np.random.default_rng(seed)

    def made(name, shape):
        return case.given.get(name, np.asarray)(random.normal(size=shape)).astype(np.float32)

    tokens = {name: made(name, (rows, TOKENS, *shape)) for name, shape in case.tokens.items()}
    weights = {name: made(name, shape) for name, shape in case.weights.items()}
    weights["begin"] = made("begin", (rows, *case.state))
    starts = random.random((rows, TOKENS)) < 0.4
    starts[0, 1:4] = True
    return tokens, weights, made("state", (rows, *case.state)), starts


def plain(case, tokens, weights, state, starts):
    """One token after another."""

    def step(state, now):
        given, begins = now
        there = begins.reshape(-1, *(1,) * (state.ndim - 1))
        state = jnp.where(there, weights["begin"], state)
        return case.step(state, given, weights)

    by_time = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (tokens, starts))
    state, y = lax.scan(step, state, by_time)
    return jnp.moveaxis(y, 0, 1), state


def scored(outputs):
    """One number of which every output has a share."""
    return sum(jnp.sum(jnp.sin(x + i)) for i, x in enumerate(outputs))


def close(found, wanted, tolerance=5e-6):
    """Leaf by leaf, relative to the largest value."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape
        assert np.max(np.abs(a - b), initial=0) <= tolerance * (1 + np.max(np.abs(b), initial=0))


@each_op("gated delta", "kimi delta", "conv", "conv, dense and dilated")
def test_values_and_gradients_are_those_of_a_plain_reading_in_float64(name):
    """Of many short documents, after a state, in chunks that the tokens do not fill."""
    case = OPS[name]
    *args, starts = draw(case)

    def both(function):
        def of(args):
            outputs = function(*args)
            return scored(outputs), outputs

        return jax.jit(jax.value_and_grad(of, has_aux=True))

    found = both(lambda t, w, state: case.call(t, w, state=state, starts=starts))(args)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: put(x, jnp.float64), args)
        wanted = both(lambda *args: plain(case, *args, put(starts)))(wide)
    close(found, wanted)


@each_op("kimi delta", "selective", "conv, dense and dilated")
def test_pieces_that_hand_a_state_on_are_the_whole_and_no_state_is_zeros(name):
    case = OPS[name]
    tokens, weights, state, starts = draw(case, 1)
    ends = np.cumsum(PIECES)

    @jax.jit
    def both(tokens, starts):
        whole = case.call(tokens, weights, state=jnp.zeros_like(state), starts=starts)
        held, parts = None, []
        for end, size in zip(ends, PIECES, strict=True):
            own, begins = jax.tree.map(lambda x: x[:, end - size : end], (tokens, starts))  # noqa: B023
            y, held = case.call(own, weights, state=held, starts=begins)
            parts.append(y)
        return whole, (jnp.concatenate(parts, axis=1), held)

    whole, pieces = both(tokens, starts)
    close(pieces, whole)
    assert whole[1].dtype == jnp.float32


@each_op("linear attention", "kimi delta", "selective", "conv")
def test_a_document_sees_nothing_of_another_to_the_last_bit(name):
    """What is not told where documents begin leaks: the check can fail."""
    case = OPS[name]
    tokens, weights, state, _ = draw(case, 2)
    begin = 7
    starts = np.broadcast_to(np.arange(TOKENS) == begin, (ROWS, TOKENS))
    noise, *_ = draw(case, 3)

    def swapped(noise, x):
        return np.concatenate([noise[:, :begin], x[:, begin:]], axis=1)

    @jax.jit
    def run(tokens, state, starts):
        return case.call(tokens, weights, state=state, starts=starts)

    other = jax.tree.map(swapped, noise, tokens)
    for told, kept in ((starts, True), (np.zeros_like(starts), False)):
        a, b = (run(t, s, told) for t, s in ((tokens, state), (other, state + 1)))
        same = [np.array_equal(x, y) for x, y in ((a[0][:, begin:], b[0][:, begin:]), (a[1], b[1]))]
        assert same[0] == kept
        assert same[1] or not kept


@each_op("kimi delta", "selective", "conv")
def test_a_vmap_is_a_loop(name):
    case = OPS[name]
    tokens, weights, state, starts = draw(case, 4, rows=3 * ROWS)

    def by_three(x):
        return x.reshape(3, ROWS, *x.shape[1:])

    def call(tokens, begin, state, starts):
        return case.call(tokens, {**weights, "begin": begin}, state=state, starts=starts)

    args = (tokens, weights["begin"], state, starts)
    found = jax.jit(jax.vmap(call))(*jax.tree.map(by_three, args))
    close(found, jax.tree.map(by_three, jax.jit(call)(*args)))


@each_op("kimi delta", "conv, dense and dilated")
def test_over_two_devices_values_and_gradients_are_those_of_the_whole(name):
    case = OPS[name]
    *args, starts = draw(case, 5)

    def call(tokens, weights, state, starts, axis=None):
        return case.call(tokens, weights, state=state, starts=starts, axis=axis)

    shards = jax.shard_map(
        functools.partial(call, axis="seq"),
        mesh=make_mesh(seq=2),
        in_specs=(SPLIT, WHOLE, WHOLE, SPLIT),
        out_specs=(SPLIT, WHOLE),
    )

    @jax.jit
    def both(args):
        def of(function):
            def score(args):
                outputs = function(*args, starts)
                return scored(outputs), outputs

            return jax.value_and_grad(score, has_aux=True)(args)

        return of(shards), of(call)

    close(*both(args))


@pytest.mark.parametrize("name", ["attend", "causal_conv", "memory_scan", "selective_scan"])
def test_each_says_what_it_takes(name):
    """State, axis and starts by keyword; a line for every argument; outputs and errors."""
    op = getattr(ops, name)
    parameters = inspect.signature(op).parameters
    for word in ("state", "axis", "starts"):
        assert parameters[word].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[word].default is None
    for part in (*(f"      {word}: " for word in parameters), "Returns:", "Raises:"):
        assert part in op.__doc__
