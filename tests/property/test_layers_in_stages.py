"""A stack of any layer, its halves on two stages: the gradients of one device."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from gam_jax.layers import Residual
from gam_jax.models import ImageClassifier
from gam_jax.models.language import LanguageModel
from gam_jax.training.step import make_gradients, put_batch
from tests.examples import EXAMPLES, TOKENS, WIDTH, random_like
from tests.meshes import ONE, assert_leaves_close, layout_of

PARTS, VOCAB = 2, 16
SIDE = 8


def model_of(name):
    """A language model; of a layer that sees later tokens a classifier of images."""
    block = Residual(EXAMPLES[name])
    if EXAMPLES[name].causal:
        return LanguageModel(block, width=WIDTH, depth=2, vocab=VOCAB)
    return ImageClassifier(block, width=WIDTH, depth=2, side=SIDE, classes=VOCAB, patch=2)


@functools.cache
def batch(kind):
    random = np.random.default_rng(0)
    if kind is ImageClassifier:
        images = random.uniform(size=(PARTS, 2, SIDE, SIDE)).astype(np.float32)
        labels = random.integers(0, VOCAB, (PARTS, 2)).astype(np.int32)
        return {"images": images, "labels": labels, "weights": np.ones((PARTS, 2), np.float32)}
    tokens = random.integers(0, VOCAB, (PARTS, 2, TOKENS + 1)).astype(np.int32)
    weights = random.uniform(size=(PARTS, 2, TOKENS)).astype(np.float32)
    return {"inputs": tokens[..., :-1], "targets": tokens[..., 1:], "weights": weights}


def gradients(name, shape):
    """Measures and gradients of a batch in parts, with NaN in all buffers at first."""
    model = model_of(name)
    layout = layout_of(shape, ONE[1])
    program = jax.jit(make_gradients(model, layout, PARTS, fill=float("nan")))
    placed = put_batch(model, layout, batch(type(model)), PARTS)
    return jax.tree.map(np.asarray, program(random_like(model.table()), placed, jax.random.key(1)))


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_stack_of_any_layer_has_the_gradients_of_one_device(name):
    """To the rounding that the layer alone has on other meshes."""
    for found, want in zip(
        gradients(name, (1, 1, 1, 1, 1, 2)), gradients(name, (1, 1, 1)), strict=True
    ):
        assert_leaves_close(found, want, 1e-3 if "ParScale" in name else 2e-5)
