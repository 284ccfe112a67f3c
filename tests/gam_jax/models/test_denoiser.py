"""Chunks at once: who sees whom, how they are fused, and that devices make no difference."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax.data import Videos
from gam_jax.models.denoiser import FULL, INTERFACE, NONE, VideoDenoiser
from gam_jax.training.step import make_eval_step, make_gradients, put_batch
from sharding.errors import UserError
from sharding.messages import messages_of
from tests.arrays import compiled, initial, put
from tests.examples import random_like
from tests.meshes import assert_leaves_close, laid_out, layout_of

MODEL = VideoDenoiser(
    width=8, depth=1, heads=2, chunk=4, context=2, tokens=3, every=4, frames=16, channels=2
)
FRAMES = Videos(frames=16, scored=4)
CHUNKS = 4


@functools.cache
def jacobian(model):
    """Of each chunk's velocities by each frame: [chunk, frame], what depends on what."""
    params = random_like(model.table())
    x = put(FRAMES.row(0, 0)["frames"])

    def own(x):
        found = model.joined(model(params, x[None], jnp.full(1, 0.3)), False)
        return jnp.tanh(found).reshape(CHUNKS, -1)

    return np.abs(np.asarray(jax.jit(jax.jacrev(own))(x))).max((1, 3)) > 0


def pattern(seen):
    """Chunks that see their own frames, and what else is said of them."""
    own = np.arange(16)[None] // 4 == np.arange(CHUNKS)[:, None]
    return own | seen


def test_chunks_without_tokens_see_themselves_alone():
    """The context of the chunk before is seen and has no gradient."""
    np.testing.assert_array_equal(jacobian(dataclasses.replace(MODEL, reads=NONE)), pattern(False))


def test_chunks_with_tokens_see_their_own_frames_and_all_key_frames():
    keys = np.arange(16)[None] % MODEL.every == 0
    np.testing.assert_array_equal(jacobian(MODEL), pattern(keys))


@pytest.mark.slow
def test_full_attention_sees_all_frames():
    assert jacobian(dataclasses.replace(MODEL, reads=FULL)).all()


@pytest.mark.parametrize("context", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_chunks_without_tokens_are_those_of_separate_runs(context):
    model = dataclasses.replace(MODEL, reads=NONE, context=context)
    params = random_like(model.table())
    x, time = FRAMES.row(0, 1)["frames"][None], np.full(1, 0.6, np.float32)
    whole = np.asarray(compiled(model, params, x, time))
    # The last two chunks, behind one of which the context is all that is known.
    late = np.asarray(compiled(model, params, x[:, 8 - 4 :], time))
    np.testing.assert_allclose(late[:, 1:], whole[:, 2:], atol=1e-6)
    assert (np.abs(late[:, 0] - whole[:, 1]).max() > 1e-4) == (context > 0)


def test_fusion_goes_from_one_chunk_to_the_next():
    model = dataclasses.replace(MODEL, context=3)
    rng = np.random.default_rng(0)
    windows = rng.normal(size=(2, CHUNKS, 7, 2)).astype(np.float32)
    joined = jax.jit(model.joined, static_argnums=1)
    plain, fused = (np.asarray(joined(windows, fuse)) for fuse in (False, True))
    after = windows[:, 1:, :3]
    for chunk in range(CHUNKS - 1):
        end = 4 * chunk + 4
        np.testing.assert_array_equal(fused[:, end - 3], plain[:, end - 3])
        np.testing.assert_allclose(
            fused[:, end - 2], (plain[:, end - 2] + after[:, chunk, 1]) / 2, atol=1e-6
        )
        np.testing.assert_allclose(fused[:, end - 1], after[:, chunk, 2], atol=1e-6)
    np.testing.assert_array_equal(fused[:, -4:], plain[:, -4:])
    agreeing = np.concatenate([np.roll(windows[:, :, -3:], 1, 1), windows[:, :, 3:]], 2)
    np.testing.assert_allclose(joined(agreeing, True), joined(agreeing, False), atol=1e-6)


@functools.cache
def found(reads, shape, preset="data"):
    """Measures and gradients of one batch."""
    model, layout = dataclasses.replace(MODEL, reads=reads), layout_of(shape, preset)
    batch = dict(next(FRAMES.open().train_stream(4, seed=0)))
    batch["weights"] = np.linspace(0.2, 1.0, 4, dtype=np.float32)
    head = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    params = laid_out(model, {**initial(MODEL), "head": head}, layout)
    placed = put_batch(model, layout, batch)
    measures, gradients = jax.jit(make_gradients(model, layout))(params, placed, jax.random.key(0))
    return jax.tree.map(np.asarray, (measures, gradients))


@pytest.mark.parametrize(
    ("reads", "shape", "preset"),
    [
        (INTERFACE, (2, 4, 1), "fully_sharded+sequence"),
        pytest.param(INTERFACE, (1, 4, 2), "data+sequence+tensor", marks=pytest.mark.slow),
        pytest.param(FULL, (1, 2, 1), "data+sequence", marks=pytest.mark.slow),
        pytest.param(NONE, (1, 4, 1), "data+sequence", marks=pytest.mark.slow),
    ],
)
def test_chunks_on_devices_are_those_of_one(reads, shape, preset):
    for own, other in zip(found(reads, shape, preset), found(reads, (1, 1, 1)), strict=True):
        assert_leaves_close(own, other, 3e-5)


def test_a_call_sends_the_context_and_joins_the_tokens_once():
    layout = layout_of((1, 4, 1), "data+sequence")
    deep = dataclasses.replace(MODEL, depth=3)
    evaluate = make_eval_step(deep, layout)
    params = jax.eval_shape(lambda: deep.init_params(jax.random.key(0)))
    sent = [m for m in messages_of(evaluate, params, FRAMES.batch(4)) if m.size > 4 * 4]
    # Frames and what is wanted of them, each with its own flag; then one maximum and two sums.
    context = 4 * 4 * MODEL.context * 3
    per_head = 4 * 4 * MODEL.tokens * MODEL.heads
    sizes = sorted(m.size for m in sent for _ in range(m.count))
    assert sizes == sorted([context, context, per_head, per_head, per_head * 4])


def test_what_does_not_fit_is_refused():
    for change, says in (
        ({"reads": "all"}, "interface, none, full"),
        ({"context": 5}, "at most as many"),
        ({"every": 3}, "divide"),
        ({"frames": 18}, "does not divide 18"),
    ):
        with pytest.raises(UserError, match=says):
            dataclasses.replace(MODEL, **change)
    for change, fuse, says in (
        ({}, "Early", "early, late"),
        ({"reads": FULL}, "late", "share no frames"),
        ({"context": 0}, "early", "share no frames"),
    ):
        with pytest.raises(UserError, match=says):
            dataclasses.replace(MODEL, **change).draw({}, jax.random.key(0), 1, fuse=fuse)
    with pytest.raises(UserError, match="4 chunks of 4 frames"):
        MODEL.check_mesh(layout_of((1, 8, 1), "data+sequence"))
    with pytest.raises(UserError, match=r"model\.frames=16"):
        MODEL.fitted(Videos(frames=32, scored=1).open())
