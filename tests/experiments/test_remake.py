"""Runs made of others: parameters and averages of any dtype become those of the new model."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from experiments import remake
from experiments.grow import grown_run
from gam_jax import units
from gam_jax.bilevel import Bilevel
from gam_jax.data import Text
from gam_jax.extract import extracted_state, extraction
from gam_jax.grow import growth
from gam_jax.layers import MLP, Block, Mixed, MoE
from gam_jax.master import values
from gam_jax.models import LanguageModel
from gam_jax.optimizer import OptimizerConfig
from gam_jax.shrink import shrinking
from gam_jax.training.experiment import Experiment, TrainConfig, run_optimizer
from gam_jax.training.state import abstract_state, new_state

MIXED = Mixed((MLP(hidden=8), MLP(hidden=16)), "two", share=2)
ROUTED = MoE(4, 2, MLP(hidden=8))
"""Its router stays float32, as logits of mixed layers do."""
LEVELS = TrainConfig(batch=8, accumulate=2, bilevel=Bilevel(1e-3))


def run(mixer, ffn, train=TrainConfig(), **optimizer):
    model = LanguageModel(Block(mixer, ffn), 8, 2, vocab=16, param_dtype="bfloat16")
    own = OptimizerConfig(moments="bfloat16", **optimizer)
    return Experiment(model, Text(window=8), train, own)


def begun(experiment):
    """A state whose averages are no zeros."""
    optimizer = run_optimizer(experiment)

    def make(key):
        state = new_state(experiment.model, optimizer, key)
        own = jax.tree.map(lambda x: x + x.ndim if x.ndim else x, state.opt_state)
        return state.replace(opt_state=own)

    return jax.jit(make)(jax.random.key(0))


def extracted(old, state):
    model: LanguageModel = old.model
    found = extraction(model, state.params)
    train = dataclasses.replace(old.train, bilevel=Bilevel())
    new = dataclasses.replace(old, model=found.model, train=train)
    optimizer = run_optimizer(new)
    moments = functools.partial(extracted_state, found, optimizer=optimizer)
    return new, lambda state: remake.remade(state, new, found.pick, moments), found.pick


def shrunk(old, state):
    wide = jax.tree.map(np.asarray, values(state.params, state.opt_state))
    found = shrinking(old.model, wide, {"block.mixer.hidden": 0.5}, units.scale)
    new = dataclasses.replace(old, model=found.model)
    make = functools.partial(remake.remade, new=new, params=found.params, moments=found.state)
    return new, make, found.params


def grown(old, state):
    block = dataclasses.replace(old.model.block, mixer=MLP(hidden=12))
    new = dataclasses.replace(old, model=dataclasses.replace(old.model, block=block, depth=3))
    found = growth(old.model, new.model)
    return new, lambda state: grown_run(found, new, state, 0, 0.0), None


@pytest.mark.parametrize(
    ("made", "old"),
    [
        (extracted, run(MLP(hidden=8), MIXED, LEVELS)),
        (shrunk, run(MLP(hidden=8), ROUTED)),
        (grown, run(MLP(hidden=8), ROUTED, only="blocks/mixer/*")),
    ],
)
def test_a_run_of_mixed_dtypes_is_one_of_the_new_model(made, old):
    state = begun(old)
    new, make, pick = made(old, state)
    found = jax.jit(make)(state)
    kinds = [
        jax.tree.map(lambda x: (x.shape, x.dtype), tree)
        for tree in (found, abstract_state(new.model, run_optimizer(new)))
    ]
    assert kinds[0] == kinds[1]
    assert {str(x.dtype) for x in jax.tree.leaves(found.params)} == {"bfloat16", "float32"}
    wide = jax.jit(values)(found.params, found.opt_state)
    for own, master in zip(*map(jax.tree.leaves, (found.params, wide)), strict=True):
        np.testing.assert_array_equal(own, np.asarray(master).astype(own.dtype))
    if pick is not None:  # all digits of the master
        wanted = jax.jit(lambda params, own: pick(values(params, own)))
        before = wanted(state.params, state.opt_state)
        jax.tree.map(np.testing.assert_array_equal, wide, before)
