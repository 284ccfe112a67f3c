"""Parameters stored in bfloat16 are the roundings of a float32 master, and train as it does."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gam_jax.layers import GAM, Block, RMSNorm
from gam_jax.master import Mastered, begun, put_first, updated
from gam_jax.models import LanguageModel
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.params import Param, ones, stored_as, zeros
from gam_jax.traffic import state_bytes
from gam_jax.training.folder import RunFolder
from gam_jax.training.state import abstract_state, init_state, state_shardings
from gam_jax.training.step import make_train_step
from gam_jax.training.warm_start import Source
from sharding.checkpoint import Checkpoints
from sharding.errors import UserError
from tests.arrays import put
from tests.meshes import layout_of

WIDE = {
    "matrix": Param((4, 6), ("embed", "ffn"), ones),
    "bias": Param((6,), (None,), ones, decay=False),
    "router": Param((4,), (None,), ones, precise=True),
    "counted": Param((3,), (None,), zeros, decay=False, sign_step=2**-12),
}
TABLE = stored_as(WIDE, "bfloat16")
CONFIG = OptimizerConfig(learning_rate=0.01, warmup=0, schedule="constant", clip=1.0)


def draw(seed, scale=1.0):
    random = np.random.default_rng(seed)
    return {
        name: put(scale * random.normal(size=param.shape), jnp.float32)
        for name, param in WIDE.items()
    }


def start(optimizer, table, wide):
    """`begun`, in one program."""
    return jax.jit(functools.partial(begun, optimizer, table))(wide)


def rounded(x):
    return np.asarray(x).astype(jnp.bfloat16)


def steps(optimizer, params, state, count, scale=1.0):
    update = jax.jit(functools.partial(updated, optimizer))
    for seed in range(count):
        params, state = update(draw(seed + 1, scale), state, params)
    return params, state


@pytest.mark.parametrize("only", ["", "matrix,counted"])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_master_takes_the_steps_of_float32_and_parameters_are_its_rounding(kind, only):
    config = dataclasses.replace(CONFIG, kind=kind, only=only)
    optimizer = make_optimizer(config, 100, TABLE)
    stored, state = start(optimizer, TABLE, draw(0))
    assert isinstance(state, Mastered)
    kept = {"matrix", "counted"} if only else {"matrix", "bias", "counted"}
    assert {name for name, own in state.master.items() if own is not None} == kept
    plain = make_optimizer(config, 100, WIDE)
    want, inner = start(plain, WIDE, draw(0))
    assert not isinstance(inner, Mastered)
    before = jax.tree.map(np.asarray, stored)
    stored, state = steps(optimizer, stored, state, 3)
    want, _ = steps(plain, want, inner, 3)
    for name, param in TABLE.items():
        assert stored[name].dtype == param.dtype == ("float32" if param.precise else "bfloat16")
        if name in kept:
            np.testing.assert_array_equal(state.master[name], want[name])
            np.testing.assert_array_equal(rounded(stored[name]), rounded(state.master[name]))
        elif only:
            np.testing.assert_array_equal(
                np.asarray(stored[name]).view(np.uint8), before[name].view(np.uint8)
            )
        else:
            np.testing.assert_array_equal(stored[name], want[name])


def test_changes_too_small_for_a_bfloat16_add_up():
    config = dataclasses.replace(CONFIG, learning_rate=1e-4, weight_decay=0.0)
    optimizer = make_optimizer(config, 1000, TABLE)
    wide = {name: put(np.ones(param.shape, np.float32)) for name, param in WIDE.items()}
    stored, state = start(optimizer, TABLE, wide)

    def with_master(_, held):
        params, state = held
        return updated(optimizer, wide, state, params)

    def without(_, held):
        params, state = held
        changes, state = optimizer.update(wide, state, params)
        return optax.apply_updates(params, changes), state

    moved, _ = jax.jit(lambda held: jax.lax.fori_loop(0, 100, with_master, held))((stored, state))
    held = (stored, state.inner)
    stuck, _ = jax.jit(lambda held: jax.lax.fori_loop(0, 100, without, held))(held)
    np.testing.assert_array_equal(rounded(stuck["matrix"]), 1)  # 1 - 1e-4 rounds to 1
    np.testing.assert_allclose(np.asarray(moved["matrix"], np.float32), 0.99, atol=2**-9)


def test_a_master_begins_with_what_was_not_yet_rounded():
    optimizer = make_optimizer(CONFIG, 100, TABLE)
    stored, state = put_first(*start(optimizer, TABLE, draw(0)), draw(7))
    for name, want in draw(7).items():
        own = state.master[name]
        np.testing.assert_array_equal(stored[name] if own is None else own, want)
        np.testing.assert_array_equal(rounded(stored[name]), rounded(want))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_moments_are_computed_in_float32_and_stored_in_bfloat16(kind):
    config = dataclasses.replace(CONFIG, kind=kind, moments="bfloat16", clip=0.0, momentum=0.8)
    optimizer = make_optimizer(config, 100, WIDE)
    params, state = start(optimizer, WIDE, draw(0))
    first = {name: 0 * np.asarray(x) for name, x in params.items()}
    second = {name: 0 * np.asarray(x) for name, x in params.items()}
    for seed in range(1, 4):
        for name, g in draw(seed).items():
            if name == "counted":
                continue
            beta1 = 0.8 if kind == "muon" and name == "matrix" else config.beta1
            wide = beta1 * first[name] + (1 - beta1) * np.asarray(g)
            first[name] = rounded(wide).astype(np.float64)
            wide = config.beta2 * second[name] + (1 - config.beta2) * np.asarray(g) ** 2
            second[name] = rounded(wide).astype(np.float64)
    _, state = steps(optimizer, params, state, 3)
    leaves = jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "mu"))
    adam = next(s for s in leaves if hasattr(s, "mu"))
    for name in ("matrix", "bias", "router"):
        for found, want in ((adam.mu, first), (adam.nu, second)):
            assert found[name].dtype == jnp.bfloat16
            close = np.asarray(found[name], np.float64)
            np.testing.assert_allclose(close, want[name], rtol=2**-7)  # a tie may fall either way
            assert np.mean(close == want[name]) > 0.9


MODEL = LanguageModel(
    Block(GAM(slots=8), norm=RMSNorm()), 8, 2, vocab=16, dtype="bfloat16", norm=RMSNorm()
)
STORED = dataclasses.replace(MODEL, param_dtype="bfloat16")


def trained(model, shape, preset, config, count=3):
    layout = layout_of(shape, preset)
    optimizer = make_optimizer(config, 9, model.stored_table())
    state = init_state(model, optimizer, layout, seed=0)
    step = make_train_step(model, optimizer, layout)
    tokens = np.random.default_rng(0).integers(0, 16, (4, 17)).astype(np.int32)
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": np.ones((4, 16), "f4")}
    found = []
    for _ in range(count):
        state, measures = step(state, batch)
        found.append([float(measures[name]) for name in ("loss", "grad_norm")])
    return found, state


@pytest.mark.parametrize(
    ("shape", "preset"),
    [((1, 1, 1), "data"), ((2, 1, 2), "fully_sharded+tensor")],
    ids=["one device", "in shards"],
)
def test_a_run_in_bfloat16_is_the_same_run_wherever_the_parameters_are_stored(shape, preset):
    """To the last bit: the forward pass rounds them anyway, and what it does not is precise."""
    config = OptimizerConfig(warmup=1)
    wide, stored = (trained(model, shape, preset, config) for model in (MODEL, STORED))
    assert wide[0] == stored[0]
    master, params = stored[1].opt_state.master, stored[1].params
    for (path, want), own, value in zip(
        jax.tree_util.tree_leaves_with_path(wide[1].params),
        jax.tree.leaves(master, is_leaf=lambda x: x is None),
        jax.tree.leaves(params),
        strict=True,
    ):
        assert (own is None) == (value.dtype == jnp.float32) == ("final_norm" in str(path))
        np.testing.assert_array_equal(value if own is None else own, want)
        np.testing.assert_array_equal(rounded(value), rounded(want))


def placed(model, config, layout):
    """A state whose values do not matter, on a mesh, but for its key."""
    optimizer = make_optimizer(config, 1000, model.stored_table())
    where = state_shardings(model, optimizer, layout)

    def put(leaf, sharding):
        return jax.device_put(np.full(leaf.shape, 0.3, leaf.dtype), sharding)

    abstract = abstract_state(model, optimizer)
    trees = ((x.step, x.params, x.opt_state) for x in (abstract, where))
    step, params, opt_state = jax.tree.map(put, *trees)
    return {"step": step, "params": params, "opt_state": opt_state}


def bytes_of(tree):
    """Of the first device."""
    device = jax.devices()[0]
    shards = [s for x in jax.tree.leaves(tree) for s in x.addressable_shards if s.device == device]
    return sum(shard.data.nbytes for shard in shards)


@pytest.mark.parametrize(
    ("shape", "preset", "fields"),
    [
        ((2, 1, 2), "fully_sharded+tensor", {"moments": "bfloat16"}),
        ((4, 1, 1), "zero1", {"only": "embedding,blocks/mixer/*", "kind": "muon"}),
    ],
)
def test_bytes_held_are_the_formula_s(shape, preset, fields):
    config, layout = OptimizerConfig(**fields), layout_of(shape, preset)
    for model in (MODEL, STORED):
        state, formula = placed(model, config, layout), state_bytes(model, config, layout)
        assert bytes_of(state["params"]) == formula.parameters
        assert bytes_of(state["opt_state"]) == formula.optimizer
        assert bytes_of(getattr(state["opt_state"], "master", ())) == formula.master
    wide, narrow = (state_bytes(model, config) for model in (MODEL, STORED))
    assert narrow.parameters < 0.52 * wide.parameters


def test_a_checkpoint_opens_on_another_mesh_and_not_as_another_dtype(tmp_path):
    config = OptimizerConfig(moments="bfloat16")
    state = placed(STORED, config, layout_of((2, 1, 2), "fully_sharded+tensor"))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.wait()
        told = checkpoints.manifest(1).arrays
        for name in ("params", "opt_state/master", "opt_state/inner/1/0/mu"):
            dtype = "float32" if "master" in name else "bfloat16"
            assert told[f"{name}/blocks/ffn/w_in"].fact.dtype == dtype
        assert told["params/final_norm/scale"].fact.dtype == "float32"
        assert "opt_state/master/final_norm/scale" not in told
        for model, others in ((STORED, {}), (MODEL, {"opt_state"})):
            wanted = placed(model, config, layout_of((4, 1, 1), "zero1"))
            wanted = {name: tree for name, tree in wanted.items() if name not in others}
            if model is STORED:
                found = checkpoints.restore(1, wanted)
                jax.tree.map(np.testing.assert_array_equal, found, state)
                assert found["opt_state"].master["embedding"].sharding.spec != ()
            else:
                with pytest.raises(UserError, match=r"params/.*bfloat16.*float32"):
                    checkpoints.restore(1, wanted, partial=True)


@pytest.mark.parametrize(("source", "model"), [(MODEL, STORED), (STORED, MODEL)])
def test_parameters_of_another_dtype_are_cast_and_named(source, model, tmp_path):
    config, layout = OptimizerConfig(), layout_of((1, 1, 1))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, {"params": placed(source, config, layout)["params"]}, {})
        checkpoints.wait()
    abstract = jax.eval_shape(model.init_params, jax.random.key(0))
    fresh = jax.tree.map(lambda x: put(np.zeros(x.shape, x.dtype)), abstract)
    wide, report = Source(RunFolder(tmp_path)).start(model.stored_table(), fresh)
    assert "embedding" in report.cast
    assert {*report.taken} == {*report.cast, "final_norm/scale"}
    assert any(line.startswith("  cast: ") for line in report.lines())
    for x in jax.tree.leaves(wide):
        assert x.dtype == jnp.float32
        np.testing.assert_allclose(x, 0.3, rtol=2**-8)


def test_another_dtype_is_refused_by_name():
    with pytest.raises(ValueError, match="param_dtype 'float16' is not one of float32, bfloat16"):
        dataclasses.replace(MODEL, param_dtype="float16")
