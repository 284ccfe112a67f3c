"""A vocabulary that `tensor` does not divide is the same one: no padding is seen anywhere."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gam_jax import decode
from gam_jax.layers import GAM, Block
from gam_jax.models.language import LanguageModel
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.params import rule_specs, shardings, stored_specs
from gam_jax.traffic import state_bytes
from gam_jax.training.state import abstract_state, state_shardings
from gam_jax.training.step import make_eval_step, make_gradients
from sharding.checkpoint import Checkpoints
from sharding.errors import UserError
from sharding.layout import bytes_held
from tests.arrays import on_host
from tests.examples import random_like
from tests.meshes import ONE, assert_leaves_close, layout_of

VOCAB, TOKENS = 257, 8
TIED = LanguageModel(Block(GAM(slots=8, kernel=2)), 8, 1, vocab=VOCAB)
UNTIED = LanguageModel(Block(GAM(slots=8, kernel=2)), 8, 1, vocab=VOCAB, tied=False)
IDS = np.random.default_rng(0).integers(0, VOCAB, (4, TOKENS + 1)).astype(np.int32)
IDS[0, :4] = (0, 128, 129, VOCAB - 1)  # the rows where shards end


@functools.cache
def found(model, shape, preset):
    """Loss, gradients, scores and whole logits of one batch."""
    layout = layout_of(shape, preset)
    batch = {"inputs": IDS[:, :-1], "targets": IDS[:, 1:], "weights": np.ones((4, TOKENS), "f4")}
    axes, where = layout.whole.axes, rule_specs(model.table(), layout)
    rows = PartitionSpec(axes.rows or None)

    def logits(params, tokens):
        return model(params, tokens, axes=axes)[0]

    everywhere = jax.shard_map(logits, mesh=layout.mesh, in_specs=(where, rows), out_specs=rows)

    @jax.jit
    def all_of_it(params, batch):
        measures, grads = make_gradients(model, layout)(params, batch, jax.random.key(0))
        scores = make_eval_step(model, layout)(params, batch)
        return measures["loss"], grads, scores, everywhere(params, batch["inputs"])

    return jax.tree.map(np.asarray, all_of_it(on_host(random_like(model.table())), batch))


@pytest.mark.parametrize(
    ("model", "shape", "preset"),
    [
        (TIED, (1, 1, 2), "tensor"),
        (UNTIED, (2, 1, 4), "fully_sharded+tensor_tokens"),
    ],
    ids=["over 2", "over 4, in shards"],
)
def test_loss_gradients_scores_and_logits_are_those_of_one_device(model, shape, preset):
    loss, grads, scores, logits = found(model, shape, preset)
    alone, wanted, their, whole = found(model, *ONE)
    np.testing.assert_allclose(loss, alone, rtol=1e-6)
    assert_leaves_close(grads, wanted)
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(scores[name], their[name], rtol=1e-6)
    assert logits.shape == (4, TOKENS, VOCAB)
    np.testing.assert_allclose(logits, whole, atol=1e-5)


def test_the_same_text_is_written():
    params = on_host(random_like(TIED.table()))
    four, one = (
        np.concatenate(
            list(decode.generate(TIED, params, IDS, 8, jax.random.key(1), layout=layout_of(shape))),
            axis=1,
        )
        for shape in ((1, 1, 4), (1, 1, 1))
    )
    np.testing.assert_array_equal(four, one)


def test_checkpoints_and_what_devices_hold_have_no_padding(tmp_path):
    optimizer = make_optimizer(OptimizerConfig(), 1000, TIED.table())
    table = TIED.table()
    values = jax.tree.map(np.asarray, random_like(table))

    def on(shape, preset):
        layout = layout_of(shape, preset)
        return jax.device_put(values, shardings(stored_specs(table, layout), layout))

    split, alone = ((2, 1, 2), "fully_sharded+tensor"), ONE
    for step, (first, then) in enumerate(((split, alone), (alone, split))):
        with Checkpoints(tmp_path / str(step)) as checkpoints:
            checkpoints.save(1, {"params": on(*first)}, {})
            checkpoints.wait()
            assert checkpoints.manifest(1).arrays["params/embedding"].fact.shape == (VOCAB, 8)
            restored = checkpoints.restore(1, {"params": on(*then)})["params"]
        jax.tree.map(np.testing.assert_array_equal, restored, values)
    layout = layout_of(*split)
    placed, abstract = state_shardings(TIED, optimizer, layout), abstract_state(TIED, optimizer)
    formula = state_bytes(TIED, OptimizerConfig(), layout)
    assert bytes_held(abstract.params, placed.params) == formula.parameters
    assert bytes_held(abstract.opt_state, placed.opt_state) == formula.optimizer
    assert placed.params["embedding"].spec == PartitionSpec(None, "data")  # whole over tensor


def test_no_other_axis_is_padded():
    model = LanguageModel(Block(GAM(slots=9)), 8, 1, vocab=VOCAB)
    with pytest.raises(UserError, match=r"blocks/mixer/memory.*'slot' = 9 is not divisible"):
        rule_specs(model.table(), layout_of((1, 1, 2)))
