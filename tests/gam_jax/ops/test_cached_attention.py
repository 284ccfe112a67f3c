"""Attention that streams against all scores at once in float64: pieces, documents, rows, shards."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gam_jax.ops import KeyValues, attend
from sharding.mesh import make_mesh
from tests.arrays import put

ROWS, TOKENS, HEADS, GROUPS, SIZE, ROOM = 2, 12, 4, 2, 6, 12
PIECES = (5, 1, 6)
SPLIT, WHOLE = P(None, "seq"), P()
WAYS = {
    "all": {},
    "window": {"window": 4, "soft_cap": 2.0, "scale": 0.7},
}
each_way = pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)


def draw(seed=0):
    """q, k, v, sinks, and where many short documents begin; none in the last row."""
    random = np.random.default_rng(seed)
    shapes = (HEADS, SIZE), (GROUPS, SIZE), (GROUPS, SIZE)
    arrays = [random.normal(size=(ROWS, TOKENS, *shape)) for shape in shapes]
    starts = random.random((ROWS, TOKENS)) < 0.3
    starts[-1] = False
    return [x.astype(np.float32) for x in (*arrays, random.normal(size=HEADS))], starts


def all_scores(q, k, v, sinks, starts, window=0, soft_cap=0.0, scale=None):
    """The softmax of a whole matrix of scores."""
    k, v = (jnp.repeat(x, HEADS // GROUPS, axis=2) for x in (k, v))
    scores = jnp.einsum("bthk,bshk->bhts", q, k) * (SIZE**-0.5 if scale is None else scale)
    if soft_cap:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    place, number = jnp.arange(TOKENS), jnp.cumsum(starts, axis=1)
    see = (number[:, :, None] == number[:, None]) & (place[:, None] >= place)
    if window:
        see &= place[:, None] - place < window
    scores = jnp.where(see[:, None], scores, -jnp.inf)
    extra = jnp.broadcast_to(sinks[:, None, None], (*scores.shape[:-1], 1))
    weights = jax.nn.softmax(jnp.concatenate([scores, extra], axis=-1), axis=-1)[..., :-1]
    return jnp.einsum("bhts,bshk->bthk", weights, v)


def streamed(q, k, v, sinks, starts, **how):
    """Piece after piece."""
    room = how["window"] - 1 if how else ROOM
    state, parts = KeyValues.empty(ROWS, GROUPS, SIZE, room), []
    for end, size in zip(np.cumsum(PIECES), PIECES, strict=True):
        own, begins = ([x[:, end - size : end] for x in (q, k, v)], starts[:, end - size : end])
        y, state = attend(*own, sinks=sinks, state=state, starts=begins, **how)
        parts.append(y)
    return jnp.concatenate(parts, axis=1)


def at_once(q, k, v, sinks, starts, **how):
    return attend(q, k, v, sinks=sinks, starts=starts, **how)[0]


def pulled(function, args, starts, how):
    """Values, and gradients of a score of them."""

    def score(args):
        y = function(*args, starts, **how)
        return jnp.sum(jnp.sin(y + jnp.arange(SIZE))), y

    (_, y), gradients = jax.jit(jax.value_and_grad(score, has_aux=True))(args)
    return y, gradients


def close(found, wanted, tolerance=3e-6):
    """Leaf by leaf, relative to the largest value."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.max(np.abs(a - b)) <= tolerance * (1 + np.max(np.abs(b)))


@each_way
def test_values_and_gradients_are_those_of_all_scores_in_pieces_and_at_once(how):
    args, starts = draw()
    with jax.enable_x64(True):
        wide = [put(x, jnp.float64) for x in args]
        wanted = pulled(all_scores, wide, put(starts), how)
    for function in (at_once, streamed):
        close(pulled(function, args, starts, how), wanted)


@each_way
def test_a_vmap_is_a_loop(how):
    (q, k, v, _), starts = draw(1)

    def call(q, k, v, starts):
        state = KeyValues.empty(1, GROUPS, SIZE, how["window"] - 1 if how else ROOM)
        y, state = attend(q[None], k[None], v[None], state=state, starts=starts[None], **how)
        return y[0], state

    found = jax.jit(jax.vmap(call))(q, k, v, starts)
    one = jax.jit(call)
    loop = [one(*(x[row] for x in (q, k, v, starts))) for row in range(ROWS)]
    close(found, jax.tree.map(lambda *rows: np.stack(rows), *loop))


@each_way
@pytest.mark.parametrize("goes_on", [False, True], ids=["begins", "goes on"])
def test_over_two_devices_values_and_state_are_those_of_the_whole(how, goes_on):
    (q, k, v, sinks), starts = draw(2)
    state, few = None, [x[:, :3] for x in (q, k, v)]
    if goes_on:

        @jax.jit
        def begun(q, k, v):
            state = KeyValues.empty(ROWS, GROUPS, SIZE, how["window"] - 1 if how else 2 * ROOM)
            return attend(q, k, v, state=state, **how)[1]

        state = begun(*few)

    def call(q, k, v, starts, state, axis=None):
        return attend(q, k, v, sinks=sinks, state=state, starts=starts, axis=axis, **how)

    shards = jax.shard_map(
        functools.partial(call, axis="seq"),
        mesh=make_mesh(seq=2),
        in_specs=(SPLIT, SPLIT, SPLIT, SPLIT, WHOLE),
        out_specs=(SPLIT, WHOLE),
    )
    found, wanted = (jax.jit(f)(q, k, v, starts, state) for f in (shards, call))
    close(found[0], wanted[0])
    np.testing.assert_array_equal(found[1].position, wanted[1].position)
    caches = [[np.asarray(x) for x in state[:2]] for state in (found[1], wanted[1])]
    for row, count in enumerate(np.asarray(wanted[1].position)):  # what lies beyond is not seen
        seen = slice(-min(count, 3), None) if how else slice(count)
        close(*([x[row][:, seen] for x in own] for own in caches))


def test_more_than_there_is_room_for_is_refused_or_is_no_number():
    (q, k, v, _), _ = draw(3)
    _, state = jax.jit(functools.partial(attend, room=TOKENS + 2))(q, k, v)
    step = functools.partial(attend, q[:, :3], k[:, :3], v[:, :3])
    with pytest.raises(ValueError, match=r"15 tokens do not fit a cache of 14: .* larger room"):
        step(state=state)
    y, _ = jax.jit(lambda state: step(state=state))(state)
    assert np.all(np.isnan(y))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": np.ones((2, 3, 4))}, r"attend: q \(2, 3, 4\) is not \[B, T, H, K\]"),
        ({"v": np.ones((2, 3, 2, 5))}, r"v \(2, 3, 2, 5\) is not \(2, 3, 2, 6\)"),
        ({"q": np.ones((2, 3, 3, 6))}, "3 heads, no multiple of the 2 of k and v"),
        ({"window": -1}, "window -1 is not at least 0"),
        ({"window": 2, "room": 8}, "leave it out"),
        ({"room": 2}, "3 tokens do not fit a cache of 2"),
        ({"sinks": np.ones(3)}, r"sinks \(3,\) is not \(4,\)"),
        ({"starts": np.ones((2, 3), np.int32)}, "starts is int32, not bool"),
        (
            {"state": KeyValues.empty(2, 2, 6, 5), "window": 4},
            r"state.key .* is not \(2, 2, 3, 6\)",
        ),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    k = np.ones((2, 3, 2, 6), np.float32)
    args = {"q": np.ones((2, 3, 4, 6), np.float32), "k": k, "v": k, **changes}
    with pytest.raises(ValueError, match=message) as refusal:
        attend(**args)
    assert "\n" not in str(refusal.value)
