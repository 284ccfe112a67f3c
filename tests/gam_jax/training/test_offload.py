"""Moments in the host's memory: the run is the same to the bit, and goes on anywhere."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from gam_jax.layers import MLP, Block
from gam_jax.local import Local
from gam_jax.models import LanguageModel
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.traffic import state_bytes
from gam_jax.training import checks, fit
from gam_jax.training.checks import check_batch
from gam_jax.training.metrics import read_metrics
from gam_jax.training.order import moves
from gam_jax.training.progress import Progress
from gam_jax.training.state import abstract_state, init_state
from gam_jax.training.step import make_train_step
from sharding.errors import UserError
from sharding.host_memory import DEVICE, HOST, copied
from sharding.layout import Layout
from sharding.parallel import Parallel
from tests.gam_jax.traffic_cases import abstract_step
from tests.gam_jax.training import line
from tests.meshes import layout_of

pytestmark = pytest.mark.usefixtures("compiled_once")
MODEL = LanguageModel(Block(MLP()), width=8, depth=4, vocab=16, dropout=0.1)
PARTS, STEPS = 2, 3
CASES = {
    "zero1": ((2, 1, 1), "zero1", {}, {}, {}),
    "alone": ((1, 1, 1), "data", {}, {}, {}),
    "bfloat16": ((2, 1, 2), "zero1+tensor", {"param_dtype": "bfloat16"}, {}, {}),
    "moments in bfloat16": ((1, 1, 2), "data+tensor_tokens", {}, {"moments": "bfloat16"}, {}),
    "shards": ((2, 2, 2), "fully_sharded+sequence+tensor", {}, {}, {}),
    "muon": ((2, 1, 1), "zero1", {}, {"kind": "muon"}, {}),
    "only some": ((2, 1, 1), "zero1", {}, {"only": "blocks/*"}, {}),
    "stages": ((1, 1, 1, 1, 1, 2), "data", {}, {}, {"schedule": "interleaved", "turns": 2}),
    "unlike stages": ((1, 1, 1, 1, 1, 2), "zero1", {}, {}, {"stages": "3,1"}),
}
"""Mesh, preset, and what is not usual of the model, the optimizer and the mesh's use."""
EVERY = [pytest.param(name, marks=pytest.mark.slow if i else ()) for i, name in enumerate(CASES)]


def placed(name, offload):
    shape, preset, model, optimizer, use = CASES[name]
    layout = layout_of(shape, preset, **use)
    layout = Layout(layout.mesh, dataclasses.replace(layout.parallel, offload=offload))
    return dataclasses.replace(MODEL, **model), OptimizerConfig(warmup=1, **optimizer), layout


@functools.cache
def run(name, offload):
    """The state after some steps of clipped updates, as it is read; and what was told of each."""
    model, config, layout = placed(name, offload)
    optimizer = make_optimizer(dataclasses.replace(config, clip=0.1), 10, model.table())
    to_stages, from_stages = moves(model, optimizer, layout)
    state = to_stages(init_state(model, optimizer, layout, seed=0))
    step, told = make_train_step(model, optimizer, layout, PARTS), []
    random = np.random.default_rng(0)
    for _ in range(STEPS):
        ids = random.integers(0, 16, (2, PARTS, 4, 8)).astype(np.int32)
        weights = np.ones((PARTS, 4, 8), np.float32)
        state, metrics = step(state, {"inputs": ids[0], "targets": ids[1], "weights": weights})
        told.append({name: np.asarray(x) for name, x in metrics.items()})
    state = from_stages(state)
    kinds = [x.sharding.memory_kind for x in jax.tree.leaves(state.opt_state) if x.ndim]
    return told, jax.tree.map(np.asarray, (state.params, state.opt_state)), kinds


@pytest.mark.parametrize("name", EVERY)
def test_the_run_is_the_same_to_the_bit(name):
    told, state, kinds = run(name, "")
    assert HOST not in kinds
    for offload in ("all", "0.5")[: 1 if name == "zero1" else 2]:
        again, other, kinds = run(name, offload)
        jax.tree.map(np.testing.assert_array_equal, (again, other), (told, state))
        assert HOST in kinds
        if offload != "all" or CASES[name][2]:  # some moments, or masters, stay
            assert set(kinds) == {HOST, DEVICE}
        else:
            assert set(kinds) == {HOST}


@pytest.mark.parametrize("name", EVERY)
def test_a_step_copies_what_the_formula_says(name):
    for offload in ("all", "0.5"):
        model, config, layout = placed(name, offload)
        want = state_bytes(model, config, layout)
        if offload == "all":
            assert want.host == want.moments
        else:
            assert want.host < want.moments
        optimizer = make_optimizer(config, 10, model.table())
        step, _, batch = abstract_step(model, layout, 4 * PARTS, 8, PARTS)
        step = make_train_step(model, optimizer, layout, PARTS)
        state = abstract_state(on_places(model, layout), optimizer)
        found = copied(jax.make_jaxpr(step)(state, batch).jaxpr)
        assert found == {HOST: want.host, DEVICE: want.host}


def on_places(model, layout):
    chunks = layout.layers_of_chunks(model.depth)
    return dataclasses.replace(model, depth=len(chunks) * max(chunks, default=0) or model.depth)


def fitted(folder, shape, preset, offload, stop=0, resume=False):
    layout = layout_of(shape, preset)
    experiment = line.experiment(8, stop_at=stop, validate_every=4)
    parallel = dataclasses.replace(layout.parallel, offload=offload)
    experiment = dataclasses.replace(experiment, parallel=parallel)
    layout, quiet = Layout(layout.mesh, parallel), Progress(visible=False)
    fit(experiment, line.data(), run=folder, layout=layout, resume=resume, progress=quiet)
    return [
        row["loss"] for row in read_metrics(folder / "metrics.jsonl") if row["split"] == "train"
    ]


def test_a_run_goes_on_on_another_mesh_with_more_there_or_nothing(tmp_path):
    whole = fitted(tmp_path / "whole", (1, 1, 1), "data", "")
    fitted(tmp_path / "parted", (2, 1, 1), "zero1", "0.5", stop=3)
    fitted(tmp_path / "parted", (4, 1, 1), "data", "all", stop=6, resume=True)
    found = fitted(tmp_path / "parted", (1, 1, 1), "data", "", resume=True)
    np.testing.assert_allclose(found, whole, rtol=1e-5)


@pytest.mark.parametrize("text", ["half", "0", "1.5", "-1", "nan"])
def test_a_share_that_is_none_is_refused(text):
    with pytest.raises(UserError, match=f"parallel.offload={text}: give all, or a share"):
        Parallel(offload=text)


def test_workers_keep_their_moments():
    experiment = line.experiment(8, local=Local(2, 2))
    parallel = Parallel(offload="all")
    layout = Layout(layout_of((1, 1, 1)).mesh, parallel)
    with pytest.raises(UserError, match="need their moments in every step of a round"):
        check_batch(dataclasses.replace(experiment, parallel=parallel), layout)


def test_devices_without_such_a_memory_are_refused(monkeypatch):
    """No backend here is without it, so what its devices have is said in its place."""
    experiment, parallel = line.experiment(8), Parallel(offload="all")
    layout = Layout(layout_of((1, 1, 1)).mesh, parallel)
    check_batch(dataclasses.replace(experiment, parallel=parallel), layout)
    monkeypatch.setattr(checks, "kinds_of", lambda device: {"device", "unpinned_host"})
    says = "parallel.offload=all: devices of 'cpu' have no memory of kind pinned_host, only device"
    with pytest.raises(UserError, match=says):
        check_batch(dataclasses.replace(experiment, parallel=parallel), layout)
    check_batch(experiment, layout_of((1, 1, 1)))
