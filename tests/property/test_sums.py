"""Every token weighs alike, whichever part of a batch and whichever device it is in."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gam_jax.layers import GAM, Block
from gam_jax.models import LanguageModel
from gam_jax.training.step import make_gradients, put_batch
from tests.arrays import on_host, put
from tests.examples import random_like
from tests.meshes import assert_leaves_close, layout_of

MODEL = LanguageModel(Block(GAM(slots=8)), width=8, depth=1, vocab=16)
PARAMS = on_host(random_like(MODEL.table()))
ROWS, TOKENS = 4, 32
LAYOUTS = {
    "one device": ((1, 1, 1), "data"),
    "rows": ((2, 1, 1), "data"),
    "rows, sharded": ((2, 1, 1), "fully_sharded"),
    "rows and tokens": ((2, 2, 1), "data+sequence"),
}
COMPILED = {}


def batch_of(weights):
    tokens = np.random.default_rng(0).integers(0, MODEL.vocab, (ROWS, TOKENS + 1)).astype(np.int32)
    weights = np.asarray(weights, np.float32)
    return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}


def found(name, accumulate, weights):
    """Loss and gradients of a batch that is taken in parts."""
    shape, preset = LAYOUTS[name]
    layout = layout_of(shape, preset)
    if (name, accumulate) not in COMPILED:
        COMPILED[name, accumulate] = jax.jit(make_gradients(MODEL, layout, accumulate))
    batch = batch_of(weights)
    if accumulate > 1:
        batch = {k: x.reshape(accumulate, -1, *x.shape[1:]) for k, x in batch.items()}
    batch = put_batch(MODEL, layout, batch, accumulate)
    measures, gradients = COMPILED[name, accumulate](PARAMS, batch, jax.random.key(0))
    return float(measures["loss"]), jax.tree.map(np.asarray, gradients)


def by_hand(weights):
    """The same in one pass without any mesh: sum of w l / sum of w."""
    batch = batch_of(weights)
    logits = np.asarray(jax.jit(MODEL)(PARAMS, batch["inputs"])[0], np.float64)
    own = logits[np.arange(ROWS)[:, None], np.arange(TOKENS), batch["targets"]]
    losses = np.log(np.sum(np.exp(logits), axis=-1)) - own
    total = float(np.sum(np.asarray(losses, np.float64) * batch["weights"]))
    return total / float(np.sum(batch["weights"]))


def uneven(first, second):
    """Weights of 1 on that many tokens of the first and of the second half of the rows."""
    weights = np.zeros((ROWS, TOKENS), np.float32)
    weights[0, :first], weights[ROWS // 2, :second] = 1, 1
    return weights


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize(("first", "second"), [(32, 4), (32, 0)])
def test_parts_of_unlike_weight_give_the_whole_s_loss_and_gradient(name, first, second):
    weights = uneven(first, second)
    loss, gradients = found("one device", 1, weights)
    assert loss == pytest.approx(by_hand(weights), rel=1e-5)
    other_loss, other_gradients = found(name, 2, weights)
    assert other_loss == pytest.approx(loss, rel=1e-5)
    assert_leaves_close(other_gradients, gradients)


@settings(max_examples=6)
@given(
    scale=st.sampled_from([0.01, 0.3, 5.0]),
    name=st.sampled_from(list(LAYOUTS)),
    seed=st.integers(0, 99),
)
def test_weights_below_one_are_honoured_and_their_unit_does_not_matter(scale, name, seed):
    weights = np.random.default_rng(seed).uniform(size=(ROWS, TOKENS)) * (seed % 3 > 0)
    weights[0, 0] = 0.5
    loss, gradients = found(name, 2, scale * weights)
    assert loss == pytest.approx(by_hand(weights), rel=1e-5)
    assert_leaves_close(gradients, found("one device", 1, weights)[1], tolerance=2e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_batch_of_no_weight_has_loss_0_and_gradient_0(name, accumulate):
    loss, gradients = found(name, accumulate, np.zeros((ROWS, TOKENS)))
    assert loss == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients))


def test_the_loss_of_a_model_in_a_notebook_is_the_same_mean():
    weights = 0.1 * uneven(20, 3)
    batch = batch_of(weights)
    loss_of = jax.jit(MODEL.loss)
    loss = loss_of(PARAMS, batch["inputs"], batch["targets"], put(weights))
    assert float(loss) == pytest.approx(by_hand(weights), rel=1e-5)
    nothing = np.zeros((ROWS, TOKENS), np.float32)
    assert float(loss_of(PARAMS, batch["inputs"], batch["targets"], nothing)) == 0
    whole = float(loss_of(PARAMS, batch["inputs"], batch["targets"]))
    assert whole == pytest.approx(by_hand(np.ones((ROWS, TOKENS))), rel=1e-5)
