"""A backbone that is frozen: training what streams add changes no bit of it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax.layers import GAM, Attention, Block
from gam_jax.layers.parscale import OWN
from gam_jax.models.language import LanguageModel
from gam_jax.optimizer import OptimizerConfig, make_optimizer, trained
from gam_jax.params import count_params
from gam_jax.training.state import init_state
from gam_jax.training.step import make_train_step
from sharding.errors import UserError
from tests.meshes import layout_of

MODEL = LanguageModel(
    Block(GAM(slots=8), Attention(heads=2, context=16)), 8, 1, vocab=16, streams=2, prefix=2
)
ONLY = "starts/*,aggregator/*"


def bits(tree):
    return jax.tree.map(lambda x: np.asarray(x).view(np.int32), tree)


def trained_on(shape, preset, kind, steps=3):
    """Parameters before and after, and the optimizer's state; a bias begins at -0."""
    layout = layout_of(shape, preset)
    optimizer = make_optimizer(OptimizerConfig(warmup=1, kind=kind, only=ONLY), 9, MODEL.table())
    state = init_state(MODEL, optimizer, layout, seed=0)
    mixer = state.params["blocks"]["mixer"]
    mixer["conv_bias"] = -jnp.zeros_like(mixer["conv_bias"], device=mixer["conv_bias"].sharding)
    step = make_train_step(MODEL, optimizer, layout)
    tokens = np.random.default_rng(0).integers(0, 16, (4, 17)).astype(np.int32)
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": np.ones((4, 16), "f4")}
    before = jax.tree.map(np.asarray, state.params)
    for _ in range(steps):
        state, _ = step(state, batch)
    return before, jax.tree.map(np.asarray, state.params), state.opt_state


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "preset", "kind"),
    [
        ((1, 1, 1), "data", "muon"),
        ((2, 1, 1, 2), "fully_sharded+sequence+tensor", "adamw"),
    ],
)
def test_only_what_streams_add_is_changed(shape, preset, kind):
    before, after, moments = trained_on(shape, preset, kind)
    for name in before:
        same = jax.tree.map(np.array_equal, bits(before[name]), bits(after[name]))
        assert all(jax.tree.leaves(same)) == (name not in OWN), name
        assert any(jax.tree.leaves(same)) == (name not in OWN), name
    own = sum(count_params(MODEL.table()[name]) for name in OWN)
    assert sum(leaf.size for leaf in jax.tree.leaves(moments) if leaf.ndim) == 2 * own


def test_names_that_are_of_no_parameter_are_refused():
    config = OptimizerConfig(only="prefixes/*")
    with pytest.raises(UserError, match=r"only=prefixes/\* names no parameter: .*aggregator"):
        make_optimizer(config, 1000, MODEL.table())


def test_what_is_trained_is_a_part_of_every_tree():
    optimizer = make_optimizer(OptimizerConfig(only="*/w_in"), 1000, MODEL.table())
    found = trained(optimizer, MODEL.table())
    assert set(found) == {"aggregator"}
    assert set(found["aggregator"]) == {"w_in"}
