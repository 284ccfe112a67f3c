"""A state saved on any mesh is restored on any other: every leaf, bit for bit, in its shards."""

from __future__ import annotations

import contextlib
import functools
import itertools
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore as ts
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from gam_jax.layers import GAM, MLP, Block, MoE
from gam_jax.models.language import LanguageModel
from gam_jax.ops.routing import Router
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.training.state import TrainState, abstract_state, state_shardings
from sharding.checkpoint import Checkpoints, names
from sharding.checkpoint.manifest import files_of
from tests.arrays import put
from tests.meshes import EVERY_AXIS, EXPERT_SHAPES, SHAPES, WORDS, layout_of, pairs

EXPERTS = MoE(ffn=MLP(expansion=1), router=Router(bias_step=0.1))
MODEL = LanguageModel(
    Block(GAM(slots=16, kernel=3), EXPERTS), width=16, depth=2, vocab=64, streams=2
)
OPTIMIZER = make_optimizer(OptimizerConfig(warmup=1), 10, MODEL.table())
PRESETS = (
    "data+sequence+tensor",
    "zero1+sequence+tensor",
    "fully_sharded+sequence+tensor",
    "fully_sharded+sequence+tensor_tokens",
)
STREAM_SHAPES = ((1, 1, 1, 2), (2, 1, 2, 2), (1, 2, 1, 2, 2))
PIPE_SHAPES = ((1, 2, 1, 1, 1, 2), (2, 1, 2, 1, 1, 2))
ALL_SHAPES = SHAPES + EXPERT_SHAPES + STREAM_SHAPES + PIPE_SHAPES
LAYOUTS = st.tuples(st.sampled_from(ALL_SHAPES), st.sampled_from(PRESETS))


@functools.cache
def values() -> TrainState:
    """A whole state on the host, random in every leaf; keys as their integers."""
    random = np.random.default_rng(0)

    def draw(leaf: Any) -> np.ndarray:
        words = names.stored(leaf)
        if words.dtype.kind == "f":
            return random.normal(size=words.shape).astype(words.dtype)
        return random.integers(0, 2**31, words.shape).astype(words.dtype)

    return jax.tree.map(draw, abstract_state(MODEL, OPTIMIZER))


def placed(layout) -> TrainState:
    """`values` on a mesh."""

    def place(value: np.ndarray, want: Any, sharding: NamedSharding) -> jax.Array:
        array = jax.device_put(value, sharding)
        return jax.random.wrap_key_data(array) if names.is_key(want) else array

    abstract = abstract_state(MODEL, OPTIMIZER)
    return jax.tree.map(place, values(), abstract, state_shardings(MODEL, OPTIMIZER, layout))


def wanted(layout) -> TrainState:
    """Shapes, dtypes and shardings on a mesh."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        abstract_state(MODEL, OPTIMIZER),
        state_shardings(MODEL, OPTIMIZER, layout),
    )


@contextlib.contextmanager
def folder() -> Iterator[pathlib.Path]:
    """One of its own for each example."""
    with tempfile.TemporaryDirectory() as path:
        yield pathlib.Path(path)


def saved(path: pathlib.Path, layout) -> Checkpoints:
    """The state of a mesh, saved."""
    checkpoints = Checkpoints(path)
    checkpoints.save(1, placed(layout), {})
    checkpoints.wait()
    return checkpoints


def assert_restored(found: TrainState, layout) -> None:
    """Every leaf has the saved values; every device holds its own shard and no more."""
    lies = names.flat(state_shardings(MODEL, OPTIMIZER, layout))
    for (name, leaf), value in zip(
        names.flat(found).items(), jax.tree.leaves(values()), strict=True
    ):
        sharding = lies[name]
        words = names.stored(leaf)
        np.testing.assert_array_equal(np.asarray(words), value, err_msg=name)
        assert leaf.sharding == sharding, name
        for shard in words.addressable_shards:
            assert shard.data.shape == sharding.shard_shape(words.shape), name


@functools.cache
def said_of_one_device() -> Any:
    """What a manifest says of the arrays when one device stored them."""
    with folder() as path, saved(path, layout_of((1, 1, 1))) as checkpoints:
        return checkpoints.manifest(1).arrays


FROM_AND_TO = (
    (((2, 2, 2), PRESETS[2]), ((8, 1, 1), PRESETS[1])),
    (((1, 2, 2, 1, 2), PRESETS[3]), ((2, 1, 2, 2), PRESETS[0])),
    (((2, 1, 1, 1, 4), PRESETS[1]), ((1, 2, 1, 2, 2), PRESETS[2])),
    (((1, 2, 2, 2), PRESETS[1]), ((4, 2, 1), PRESETS[3])),
    (((2, 1, 2, 2), PRESETS[3]), ((1, 1, 1), PRESETS[0])),
    (((2, 2, 2), PRESETS[0]), ((2, 1, 2, 1, 2), PRESETS[0])),
    (((1, 2, 1, 1, 1, 2), PRESETS[0]), ((2, 1, 2, 1, 1, 2), PRESETS[3])),
    (((2, 1, 2, 1, 1, 2), PRESETS[1]), ((4, 1, 1), PRESETS[2])),
)
"""Layouts that are always tested: each axis is split under each word of a preset."""


def test_each_axis_is_split_under_each_word_of_a_preset():
    layouts = itertools.chain.from_iterable(FROM_AND_TO)
    assert pairs(layouts) == set(itertools.product(EVERY_AXIS, WORDS))


@pytest.mark.parametrize(("source", "target"), FROM_AND_TO, ids=str)
def test_a_layout_restores_what_another_saved(source, target):
    assert_restores(source, target)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((((2, 2, 2), 1, 1), "weights:2,gradients:4,state:8"), (((4, 2), 1, 1), "state:2")),
        pytest.param(
            (((2, 2), 1, 2), "weights:4,secondary:2"),
            (((8, 1), 1, 1), "weights:1,state:8"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_other_degrees_in_other_levels_restore_it(source, target):
    assert_restores(source, target)


@pytest.mark.slow
@settings(max_examples=12)
@given(source=LAYOUTS, target=LAYOUTS)
def test_any_layout_restores_what_any_other_saved(source, target):
    assert_restores(source, target)


def layout_from(case):
    """Of a mesh and a preset, or a mesh with data in levels and degrees."""
    shape, words = case
    return layout_of(shape, shards=words) if ":" in words else layout_of(shape, words)


def assert_restores(source, target):
    """And names, shapes, dtypes and digests on disk do not depend on who stored them."""
    source, layout = map(layout_from, (source, target))
    with folder() as path, saved(path, source) as checkpoints:
        assert_restored(checkpoints.restore(1, wanted(layout)), layout)
        assert checkpoints.manifest(1).arrays == said_of_one_device()


def bytes_read() -> int:
    """What TensorStore has read from files in this process."""
    found = ts.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
    return sum(value["value"] for metric in found for value in metric["values"])


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (PartitionSpec("data", None), PartitionSpec(None, "data")),
        (PartitionSpec("data", None), PartitionSpec(None, None)),
        (PartitionSpec(None, None), PartitionSpec("data", None)),
        (PartitionSpec(None, "data"), PartitionSpec("data", None)),
    ],
    ids=["rows to columns", "rows to whole", "whole to rows", "columns to rows"],
)
def test_each_byte_is_read_at_most_once(tmp_path, source, target):
    """Eight shards cut the other way: each needs a part of every block."""
    mesh = layout_of((8, 1, 1)).mesh
    x = np.random.default_rng(0).normal(size=(512, 512)).astype(np.float32)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jax.device_put(x, NamedSharding(mesh, source))}, {})
        checkpoints.wait()
        held = sum(path.stat().st_size for path in files_of(tmp_path))
        sharding = NamedSharding(mesh, target)
        before = bytes_read()
        found = checkpoints.restore(
            1, {"w": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)}
        )["w"]
        assert bytes_read() - before <= held
    chex.assert_trees_all_equal(np.asarray(found), x)
    shape = sharding.shard_shape(x.shape)
    assert all(shard.data.shape == shape for shard in found.addressable_shards)


def test_only_what_is_asked_for_is_read(tmp_path):
    """Parameters alone, as for serving: not the optimizer's two copies of them."""
    random = np.random.default_rng(0)
    names = ("params", "mu", "nu")
    arrays = {name: put(random.normal(size=(300, 300)), jnp.float32) for name in names}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, arrays, {})
        checkpoints.wait()
        x = arrays["params"]
        before = bytes_read()
        target = {"params": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)}
        found = checkpoints.restore(1, target, partial=True)
        assert bytes_read() - before < 1.2 * x.nbytes
    chex.assert_trees_all_equal(found, {"params": x})
