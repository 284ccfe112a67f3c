"""A clip's motion beside a frozen copy: where it begins, what stays, and how parts are united."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from gam_jax.data import MovingSquares
from gam_jax.deltas import united
from gam_jax.models.motion import ALL, FROZEN, LOOKS, MOTION, TUNED, MotionTuned
from gam_jax.models.pictures import PictureDenoiser
from gam_jax.optimizer import OptimizerConfig, make_optimizer, trained
from gam_jax.params import names_of
from gam_jax.training import Experiment
from gam_jax.training.experiment import run_optimizer
from gam_jax.training.state import TrainState, init_state
from gam_jax.training.step import make_gradients, make_train_step, put_batch
from sharding.errors import UserError
from tests.examples import random_like
from tests.meshes import assert_leaves_close, layout_of

DATA = MovingSquares(frames=4, side=8, square=3, motions=("corner",), swapped=True, scored=2)
INNER = PictureDenoiser(width=8, depth=1, heads=2, sees="time", beside=False)
MODEL = MotionTuned(INNER, appearance=2.0).fitted(DATA.open())


def begun():
    """Both copies with the same values, in arrays of their own."""
    one = jax.tree.map(lambda x: 0.5 * x, random_like(MODEL.inner.table()))
    return jax.tree.map(np.asarray, MODEL.begun(one))


BATCH = next(DATA.open().train_stream(4, seed=0))


@functools.cache
def found(shape, preset="data"):
    """Measures and gradients where the tuned copy has gone its own way."""
    layout = layout_of(shape, preset)
    optimizer = make_optimizer(OptimizerConfig(warmup=1), 10, MODEL.table())
    params = init_state(MODEL, optimizer, layout, seed=0).params
    values = random_like(MODEL.table())
    params = jax.tree.map(lambda x, to: jax.device_put(x, to.sharding), values, params)
    placed = put_batch(MODEL, layout, BATCH)
    gradients = jax.jit(make_gradients(MODEL, layout))
    return jax.tree.map(np.asarray, gradients(params, placed, jax.random.key(0)))


@functools.cache
def step_of(only):
    optimizer = make_optimizer(OptimizerConfig(warmup=1, only=only), 10, MODEL.table())
    return optimizer, make_train_step(MODEL, optimizer, layout_of((1, 1, 1)))


def after(only, steps):
    """Parameters after so many steps that train some, and the first and last measures."""
    optimizer, step = step_of(only)
    layout = layout_of((1, 1, 1))
    state: TrainState = init_state(MODEL, optimizer, layout, seed=0)
    placed = jax.tree.map(lambda x, to: jax.device_put(x, to.sharding), begun(), state.params)
    state, told = state.replace(params=placed), []
    for _ in range(steps):
        state, measures = step(state, put_batch(MODEL, layout, BATCH))
        told.append(measures)
    return jax.tree.map(np.asarray, state.params), told


@pytest.fixture(scope="module")
def moved():
    return after(MOTION, 3)


def test_it_begins_as_the_frozen_copy_and_then_strays(moved):
    """The appearance loss is 0 at first, exactly: both are one computation."""
    _, told = moved
    strayed = [float(measures["strayed"]) for measures in told]
    assert strayed[0] == 0
    assert strayed[2] > 0  # the first step of a warm-up is none
    loss, error = (float(told[2][name]) for name in ("loss", "error"))
    assert loss == pytest.approx(error + 2.0 * strayed[2], rel=1e-5)


def test_what_is_frozen_stays_to_the_bit(moved):
    (params, _), start = moved, begun()
    names = names_of(MODEL.table())
    pairs = zip(names, *map(jax.tree.leaves, (start, params)), strict=True)
    changed = {name for name, a, b in pairs if not np.array_equal(a, b)}
    assert changed == {name for name in names if "/between/" in name and TUNED in name}


def test_paths_train_disjoint_parameters_and_all_but_the_words_and_doors():
    table = MODEL.table()
    motion, looks, everything = (
        {*names_of(trained(make_optimizer(OptimizerConfig(warmup=1, only=o), 10, table), table))}
        for o in (MOTION, LOOKS, ALL)
    )
    assert not motion & looks
    blocks = {name for name in everything if "block_" in name}
    assert motion | looks == blocks
    assert everything == {name for name in names_of(table) if not name.startswith(FROZEN)}


def test_a_run_in_which_the_frozen_copy_would_move_is_refused():
    """It has no gradient, but weight decay moves whatever the optimizer has."""
    for only in ("", "*", f"{MOTION},*/norm/*"):
        experiment = Experiment(MODEL, DATA, optimizer=OptimizerConfig(only=only))
        with pytest.raises(UserError, match=r"would move frozen, which .*\.only=tuned/\*, or less"):
            run_optimizer(experiment)
    for only in (ALL, MOTION, LOOKS):
        run_optimizer(Experiment(MODEL, DATA, optimizer=OptimizerConfig(only=only)))


def test_united_is_each_alone(moved):
    """Disjoint parts are put together bit for bit, in any order; shared ones are refused."""
    base, motion = begun()[TUNED], moved[0][TUNED]
    looks = jax.tree.map(np.copy, base)
    looks["block_0"]["within"]["query"] += 0.25
    whole, other = united(base, motion, looks), united(base, looks, motion)
    jax.tree.map(np.testing.assert_array_equal, whole, other)
    for own in ("between", "within"):
        alone = motion if own == "between" else looks
        jax.tree.map(np.testing.assert_array_equal, whole["block_0"][own], alone["block_0"][own])
    jax.tree.map(np.testing.assert_array_equal, united(base, motion), motion)
    with pytest.raises(UserError, match=r"block_0/between/.* was changed by 2 of 2"):
        united(base, motion, jax.tree.map(lambda x: x + 1, base))


@pytest.mark.slow
def test_the_path_of_appearance_alone_is_in_the_union_too(moved):
    looks, _ = after(LOOKS, 2)
    whole = united(begun(), moved[0], looks)[TUNED]["block_0"]
    for own, alone in (("between", moved[0]), ("within", looks), ("mlp", looks)):
        jax.tree.map(np.testing.assert_array_equal, whole[own], alone[TUNED]["block_0"][own])


@pytest.mark.slow
def test_frames_over_devices_are_one_device_s():
    """The mean over frames too, which every device has and one part of it counts."""
    for own, other in zip(found((2, 2, 1), "data+sequence"), found((1, 1, 1)), strict=True):
        assert_leaves_close(own, other, 3e-5)


@pytest.mark.slow
def test_no_gradient_reaches_the_frozen_copy():
    gradients = found((1, 1, 1))[1]
    assert not any(np.any(x) for x in jax.tree.leaves(gradients[FROZEN]))
