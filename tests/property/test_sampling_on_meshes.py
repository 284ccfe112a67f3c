"""The same text is written on every mesh."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from gam_jax import decode
from gam_jax.layers import GAM, Attention, Block, MoE
from gam_jax.models.language import LanguageModel
from gam_jax.ops.routing import Capacity, Router
from tests.arrays import on_host
from tests.examples import random_like
from tests.meshes import layout_of, slow_unless_chosen

STREAMING = LanguageModel(Block(GAM(slots=16)), width=16, depth=2, vocab=32)
CACHING = LanguageModel(Block(Attention(heads=2, context=600)), width=16, depth=2, vocab=32)
ROUTED = MoE(router=Router(bias_step=0.1), capacity=Capacity(1.0, tokens=100))
EXPERTS = LanguageModel(Block(GAM(slots=16), ROUTED), width=16, depth=1, vocab=32)
PARALLEL = LanguageModel(
    Block(GAM(slots=16), Attention(heads=2, context=600)), 16, 1, vocab=32, streams=4, prefix=3
)


@functools.cache
def sampled(shape, rows, model=STREAMING, tokens=2 * decode.PREFILL_CHUNK + 5, lengths=None):
    """A prompt longer than one chunk, or the first few of each row, and what follows."""
    prompt = np.random.default_rng(0).integers(0, 32, (rows, tokens))
    params, settings = on_host(random_like(model.table())), {}
    if lengths is not None:
        prompt = [row[:length] for row, length in zip(prompt, lengths, strict=True)]
        settings = {"stop": (3, 4, 5), "top_k": range(8, 8 + rows), "repetition_penalty": 1.2}
    pieces = decode.generate(
        model, params, prompt, 12, jax.random.key(1), layout=layout_of(shape), **settings
    )
    return np.concatenate(list(pieces), axis=1)


SHAPES = ((2, 2, 2), (4, 1, 2), (1, 8, 1), (1, 1, 8))
CHOSEN = (((2, 2, 2), 4), ((4, 1, 2), 1), ((1, 8, 1), 4), ((1, 1, 8), 1))
"""Each mesh, with rows that are split over devices or are not."""


@pytest.mark.parametrize(
    ("shape", "rows"), slow_unless_chosen(itertools.product(SHAPES, (1, 4)), CHOSEN)
)
def test_the_same_text_is_written_on_every_mesh(shape, rows):
    np.testing.assert_array_equal(sampled(shape, rows), sampled((1, 1, 1), rows))


def test_stages_of_layers_write_in_turn_what_one_device_writes():
    """Each has the caches of its own layers; prompts of unlike length."""
    lengths, stages = (20, 1), (1, 1, 1, 1, 1, 2)
    found, want = (
        sampled(shape, 2, CACHING, tokens=20, lengths=lengths) for shape in (stages, (1, 1, 1))
    )
    np.testing.assert_array_equal(found, want)


@pytest.mark.slow
def test_parallel_streams_write_on_stages_what_they_write_on_one_device():
    model, tokens = dataclasses.replace(PARALLEL, depth=2), {"tokens": 20, "lengths": (20, 1)}
    stages = (1, 1, 1, 2, 1, 2)
    found, want = (sampled(shape, 2, model, **tokens) for shape in (stages, (1, 1, 1)))
    np.testing.assert_array_equal(found, want)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 1, 2, 1, 1, 2), (1, 4, 1, 1, 1, 2)], ids=str)
def test_stages_with_rows_tokens_and_heads_split_too(shape):
    np.testing.assert_array_equal(sampled(shape, 4), sampled((1, 1, 1), 4))


@pytest.mark.slow
def test_caches_are_written_to_in_shards():
    """Heads and rows are split, the layers' caches lie apart, and each row has its own length."""
    lengths = (513, 20, 290, 1)
    found, want = (sampled(shape, 4, CACHING, lengths=lengths) for shape in ((2, 2, 2), (1, 1, 1)))
    np.testing.assert_array_equal(found, want)
    assert decode.ENDED in found


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "rows"), [((1, 2, 1, 1, 4), 1), ((2, 1, 2, 1, 2), 4)], ids=str)
def test_experts_on_other_devices_write_the_same_text(shape, rows):
    """Where rows do not divide, all devices hold the same tokens and their experts add up."""
    found, want = (sampled(each, rows, EXPERTS, tokens=8) for each in (shape, (1, 1, 1)))
    np.testing.assert_array_equal(found, want)


def test_parallel_streams_write_on_devices_of_their_own_what_they_write_on_one():
    tokens = {"tokens": 20, "lengths": (20, 1)}
    alone = sampled((1, 1, 1), 2, PARALLEL, **tokens)
    np.testing.assert_array_equal(sampled((2, 1, 2, 2), 2, PARALLEL, **tokens), alone)
