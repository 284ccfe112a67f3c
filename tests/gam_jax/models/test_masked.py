"""Masked weights: one threshold, the same bits on any mesh, no gradient, nothing forgotten."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from gam_jax.config import from_dict, to_dict
from gam_jax.data.text import Text
from gam_jax.layers import GAM, Block
from gam_jax.models import LanguageModel, Masked, Model, SemiDrafter, SideTuned
from gam_jax.models.masked import MASKS, _new_masks, baked, dropped, pruned, share_at
from gam_jax.optimizer import OptimizerConfig
from gam_jax.params import count_params, param_specs, shardings
from gam_jax.training.experiment import Experiment, TrainConfig, run_optimizer
from gam_jax.training.folder import abstract_on_mesh, logical_axes
from gam_jax.training.state import abstract_state, init_state, state_shardings
from gam_jax.training.step import make_eval_step, make_train_step
from sharding.checkpoint import CheckpointConfig, Checkpoints
from sharding.errors import UserError
from tests.arrays import initial
from tests.meshes import ONE, assert_leaves_close, layout_of, mean_loss

INNER = LanguageModel(Block(GAM(slots=8)), width=8, depth=2, vocab=16)
MODEL = Masked(INNER)
EXPERIMENT = Experiment(
    MODEL,
    Text(window=8),
    TrainConfig(steps=10, batch=8),
    OptimizerConfig(warmup=0, weight_decay=0.0, eps=1e-4),
)
SHARDED = ((2, 2, 2), "fully_sharded+sequence+tensor_tokens")


def batch(seed=0):
    ids = np.random.default_rng(seed).integers(0, 16, (8, 9)).astype(np.int32)
    weights = np.ones((8, 8), np.float32)
    return {"inputs": ids[:, :-1], "targets": ids[:, 1:], "weights": weights}


def host(tree):
    return jax.tree.map(np.asarray, tree)


def pairs(params):
    """Weights and their masks, flat."""
    masks = jax.tree_util.tree_leaves_with_path(params[MASKS])
    for path, mask in masks:
        weight = functools.reduce(lambda tree, step: tree[step.key], path, params)
        yield np.asarray(weight), np.asarray(mask)


def magnitudes(params):
    return np.concatenate([np.abs(w).ravel() for w, _ in pairs(params)])


@functools.cache
def run(shape, preset):
    """A pruned start; the state and the gradient norm after two steps."""
    layout = layout_of(shape, preset)
    optimizer = run_optimizer(EXPERIMENT)
    state = init_state(MODEL, optimizer, layout, 0)
    state = state.replace(params=pruned(state.params, 0.3))
    first = host(state.params)
    step = make_train_step(MODEL, optimizer, layout)
    for seed in range(2):
        state, metrics = step(state, batch(seed))
    return first, state, float(metrics["grad_norm"])


def test_the_smallest_weights_are_left_out_by_one_threshold():
    params = initial(MODEL)
    size = magnitudes(params).size
    assert size == sum(np.size(m) for m in jax.tree.leaves(params[MASKS]))
    assert count_params(MODEL.table()) == count_params(INNER.table())
    for share in (0.0, 0.3):
        found = pruned(params, share)
        drop = dropped(size, share)
        kept = np.concatenate([mask.ravel() for _, mask in pairs(found)])
        assert kept.sum() == size - drop
        threshold = np.sort(magnitudes(params))[drop - 1] if drop else -1
        np.testing.assert_array_equal(kept, magnitudes(params) > threshold)
    assert dropped(10, 0.7) == 7  # not 6, as 0.7 * 10 rounded down would have it


def test_masked_weights_have_no_gradient_and_keep_their_values():
    first, state, _ = run(*ONE)
    after, moved = host(state.params), 0
    for (w, mask), (v, same) in zip(pairs(first), pairs(after), strict=True):
        np.testing.assert_array_equal(mask, same)
        np.testing.assert_array_equal(v[~mask], w[~mask])
        assert np.all(w[~mask] != 0)
        moved += np.sum(v[mask] != w[mask])
    assert moved
    again = pruned(state.params, 0.0)
    assert all(mask.all() for _, mask in pairs(again))


@pytest.mark.slow
def test_a_baked_model_gives_the_same_loss():
    _, state, _ = run(*ONE)
    layout = layout_of(*ONE)
    plain, params = baked(MODEL, host(state.params))
    found = mean_loss(make_eval_step(plain, layout)(params, batch()))
    want = mean_loss(make_eval_step(MODEL, layout)(state.params, batch()))
    np.testing.assert_allclose(found, want, rtol=1e-6)


def test_masks_are_the_same_bits_on_a_mesh_and_no_weight_leaves_its_device():
    layout = layout_of(*SHARDED)
    params = initial(MODEL)
    placed = jax.device_put(params, shardings(param_specs(MODEL.table(), layout), layout))
    found, want = pruned(placed, 0.6), pruned(params, 0.6)
    jax.tree.map(np.testing.assert_array_equal, host(found[MASKS]), host(want[MASKS]))
    size = sum(np.size(x) for x in jax.tree.leaves(params[MASKS]))
    text = _new_masks.lower(placed, dropped(size, 0.6)).compile().as_text()
    assert "all-reduce" in text
    for other in ("all-gather", "all-to-all", "collective-permute"):
        assert other not in text


@pytest.mark.slow
def test_it_is_the_same_run_in_shards_and_opens_on_another_mesh(tmp_path):
    first, state, norm = run(*SHARDED)
    want_first, want, want_norm = run(*ONE)
    jax.tree.map(np.testing.assert_array_equal, first[MASKS], want_first[MASKS])
    assert_leaves_close(
        {n: x for n, x in host(state.params).items() if n != MASKS},
        {n: x for n, x in host(want.params).items() if n != MASKS},
        1e-4,
    )
    np.testing.assert_allclose(norm, want_norm, rtol=1e-4)
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(2, state, {}, axes=logical_axes(EXPERIMENT))
        checkpoints.wait()
        back = checkpoints.restore(2, abstract_on_mesh(EXPERIMENT, layout_of(*ONE)))
    jax.tree.map(np.testing.assert_array_equal, host(back.params), host(state.params))


def test_an_optimizer_of_some_weights_has_a_place_for_each_of_its_moments():
    some = OptimizerConfig(warmup=0, only="blocks/ffn/*")
    optimizer = run_optimizer(dataclasses.replace(EXPERIMENT, optimizer=some))
    state = abstract_state(MODEL, optimizer)
    placed = state_shardings(MODEL, optimizer, layout_of(*SHARDED))
    assert jax.tree.structure(state) == jax.tree.structure(placed)
    moments = jax.tree.leaves(state.opt_state)
    assert sum(x.size for x in moments) < 2.1 * count_params(INNER.table()["blocks"]["ffn"])


def test_a_model_and_the_one_inside_store_their_parameters_alike():
    few = dataclasses.replace(INNER, param_dtype="bfloat16")
    for model in (Masked(few), Masked(INNER, param_dtype="bfloat16"), SideTuned(few)):
        assert model == from_dict(Model, to_dict(model))
        assert (model.param_dtype, model.inner.param_dtype) == ("bfloat16", "bfloat16")
        assert model.stored_table()["embedding"].dtype == "bfloat16"
    assert MODEL.param_dtype == MODEL.inner.param_dtype == "float32"
    assert SemiDrafter(few, heads=2).stored_table()["target"]["embedding"].dtype == "bfloat16"


def test_shares_grow_by_tenths():
    found = [share_at(epoch, 25, 0.9) for epoch in range(1, 301)]
    assert found[23] == 0
    assert [found[25 * i - 1] for i in range(1, 13)] == [
        *(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.9, 0.9, 0.9)
    ]


def test_its_configuration_and_what_is_refused():
    assert from_dict(Model, to_dict(MODEL)) == MODEL
    with pytest.raises(UserError, match="no weight has such a name"):
        Masked(INNER, on="blocks/nowhere").table()
    with pytest.raises(UserError, match="give a share below 1"):
        pruned({MASKS: {}}, 1.0)
    with pytest.raises(ValueError, match="masked already"):
        Masked(MODEL)
    with pytest.raises(UserError, match="split as the weights are"):
        MODEL.check_mesh(layout_of((8, 1, 1), "zero2"))
    some = dataclasses.replace(MODEL, on="blocks/ffn/*").table()[MASKS]
    assert jax.tree.leaves(some, is_leaf=lambda x: hasattr(x, "shape"))[0].dtype == "bool"
