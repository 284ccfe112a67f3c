"""A score is a number; where a loss is none, scoring stops and says where."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax.data import arrays
from gam_jax.layers import GAM, Block
from gam_jax.models import ImageClassifier, Model
from gam_jax.models.language import LanguageModel
from gam_jax.params import Param, param_specs, shardings, zeros
from gam_jax.training.scoring import score
from gam_jax.training.step import make_eval_step
from sharding.errors import UserError
from tests.arrays import put, single
from tests.examples import random_like
from tests.meshes import layout_of

LANGUAGE = LanguageModel(Block(GAM(slots=8)), width=8, depth=1, vocab=16, tied=False)


def scored(model, params, data, layout):
    placed = jax.device_put(params, shardings(param_specs(model.table(), layout), layout))
    return score(make_eval_step(model, layout), placed, data, model, 4, layout)


@pytest.mark.parametrize(
    ("preset", "rules"),
    [
        ("data+sequence+tensor", ""),
        ("fully_sharded+sequence+tensor_tokens", "vocab=none"),
    ],
)
def test_the_first_token_whose_loss_is_no_number_is_named_on_every_mesh(preset, rules):
    """One row of the embedding is NaN; of two tokens whose row it is, the first is named."""
    ids = np.random.default_rng(0).integers(0, 15, (8, 8)).astype(np.int32)
    ids[6, 5] = ids[7, 1] = 15
    rows = {"inputs": ids, "targets": ids, "weights": np.ones((8, 8), np.float32)}
    params = random_like(LANGUAGE.table())
    embedding = np.array(params["embedding"])
    embedding[15] = np.nan
    params = {**params, "embedding": put(embedding)}
    with pytest.raises(UserError, match="loss of validation batch 1, row 2, position 5 is not a"):
        scored(LANGUAGE, params, arrays(rows, rows), layout_of((2, 2, 2), preset, rules))


@dataclasses.dataclass(frozen=True)
class Line(Model):
    """w x, scored by its square."""

    def table(self):
        return {"w": Param((), (), zeros)}

    def batch_axes(self):
        return {"x": ("batch",), "weights": ("batch",)}

    def objective(self, params, batch, axes=None, *, key=None):
        losses = (batch["x"] * (1 + params["w"])) ** 2
        return jnp.sum(losses * batch["weights"]), 0.0, {}


def test_of_a_model_that_tells_no_losses_the_batch_is_named():
    x = np.arange(8, dtype=np.float32)
    whole = scored(Line(), {"w": np.float32(0)}, arrays({"x": x}, {"x": x}), layout_of((1, 1, 1)))
    assert whole.loss == np.mean(x**2)
    x[5] = np.nan
    with pytest.raises(UserError, match="the loss of validation batch 1 is not a number"):
        scored(Line(), {"w": np.float32(0)}, arrays({"x": x}, {"x": x}), layout_of((1, 1, 1)))


def test_labels_outside_the_classes_are_nan_in_a_program():
    """Of a batch that was not looked at on the host: the loss is not that of another class."""
    model = ImageClassifier(Block(GAM(slots=8)), width=8, depth=1, side=2, classes=3)
    labels = put([-1, 0, 2, 3])
    images, weights = single((np.zeros((4, 2, 2)), np.ones(4)))
    batch = {"images": images, "labels": labels, "weights": weights}
    losses = jax.jit(model.losses)(random_like(model.table()), batch)
    np.testing.assert_array_equal(np.isnan(losses), [True, False, False, True])
