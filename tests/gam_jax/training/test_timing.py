"""A run tells where its time goes, and how much of its devices it uses, by convention."""

from __future__ import annotations

import contextlib
import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax.layers import GAM, Attention, Block
from gam_jax.models.language import LanguageModel
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.planning import profiles
from gam_jax.training.state import abstract_state, init_state
from gam_jax.training.step import make_train_step, put_batch
from gam_jax.training.timing import Clock, Lap, Work, work_of
from sharding.layout import Layout
from sharding.mesh import make_mesh
from sharding.parallel import Parallel
from tests.gam_jax.training import line

LANGUAGE = LanguageModel(Block(GAM(slots=8)), width=8, depth=2, vocab=16)


def language_work(model=LANGUAGE, layout=None, kind="adamw", rows=8, tokens=16):
    """Of a step of a language model, traced alone."""
    layout = Layout(make_mesh()) if layout is None else layout
    optimizer = make_optimizer(OptimizerConfig(kind=kind), 1000, model.table())
    shapes = {"inputs": jnp.int32, "targets": jnp.int32, "weights": jnp.float32}
    batch = {name: jax.ShapeDtypeStruct((rows, tokens), dtype) for name, dtype in shapes.items()}
    step = make_train_step(model, optimizer, layout)
    return work_of(step, layout, abstract_state(model, optimizer), batch)


def test_the_products_of_a_step_are_those_of_forward_and_backward_and_it_is_traced_once():
    model, layout = line.Line(), Layout(make_mesh())
    optimizer = make_optimizer(OptimizerConfig(), 1000, model.table())
    step, state = make_train_step(model, optimizer, layout), init_state(model, optimizer, layout, 0)
    shapes = {"x": (8, 4), "y": (8, 2), "weights": (8,)}
    rows = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    batch = put_batch(model, layout, rows)
    before = len(line.TRACED)
    assert work_of(step, layout, state, batch) == Work(line.FLOPS, 1, None)
    step(state, batch)
    assert len(line.TRACED) == before + 1


def test_neither_recomputation_nor_the_optimizer_counts():
    plain = language_work()
    assert language_work(dataclasses.replace(LANGUAGE, remat=True)) == plain
    assert language_work(kind="muon") == plain


@pytest.mark.parametrize(
    ("mesh", "preset"), [({"data": 4}, "data"), ({"data": 4}, "fully_sharded")]
)
def test_devices_share_the_work_of_one(mesh, preset):
    found = language_work(layout=Layout(make_mesh(**mesh), Parallel(preset)))
    assert (found.devices, 4 * found.model_flops) == (4, language_work().model_flops)


def test_attention_over_several_blocks_is_counted_too():
    """Its loop over keys is one whose turns depend on the place."""
    model = LanguageModel(Block(Attention(heads=2)), width=8, depth=1, vocab=16)
    short, long = (language_work(model, rows=1, tokens=tokens) for tokens in (512, 1024))
    assert short.model_flops is not None
    assert 2 < long.model_flops / short.model_flops < 4  # the square of the tokens, and the rest


def test_use_of_the_peak_is_the_share_of_one_device():
    (profile,) = (one for one in profiles() if "NVIDIA H200" in one.kinds)
    work = Work(model_flops=10**12, devices=8, peak_flops=profile.peak_flops)
    found = work.scalars(Lap(steps=5, seconds=10.0, data=0.0, saves=0.0))
    assert found["model_flops_per_second"] == pytest.approx(8 * 0.5e12)
    assert found["mfu"] == pytest.approx(0.5e12 / 989.5e12)
    assert Work(None).scalars(Lap(5, 10.0, 0.0, 0.0)) == {}
    assert Work(1, 1, None).scalars(Lap(1, 1.0, 0.0, 0.0)).keys() == {"model_flops_per_second"}


def test_the_clock_leaves_out_the_step_that_compiles_and_what_is_between():
    clock = Clock(10)
    assert clock.lap(11).scalars() == {}
    with clock.waiting_for_data():
        time.sleep(0.01)
    with contextlib.suppress(BlockingIOError), clock.saving():
        time.sleep(0.02)
        raise BlockingIOError
    lap = clock.lap(13)
    assert lap.steps == 2
    assert 0.03 <= lap.data + lap.saves <= lap.seconds
    assert lap.scalars()["data_wait_seconds"] >= 0.005
    assert lap.scalars()["save_seconds"] >= 0.01
    time.sleep(0.02)
    clock.pause(13)
    assert clock.lap(14).seconds < 0.02
