"""Documents that are packed into rows train a model as they do with a row for each."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from gam_jax.data.base import Unread
from gam_jax.data.packing import DocumentRows
from gam_jax.data.text import Text
from gam_jax.layers import Attention, Block, FalconH1, Layer, Mamba2
from gam_jax.models import LanguageModel
from gam_jax.training.step import make_gradients, put_batch
from sharding.errors import UserError
from tests.arrays import on_host
from tests.examples import random_like
from tests.meshes import assert_leaves_close, layout_of

SSM = Mamba2(head=2, state=4, norm="none")
MIXER = FalconH1(Attention(heads=2, context=32), SSM)
MODEL = LanguageModel(Block(MIXER), width=8, depth=1, vocab=16, context=16)
PACKED = dataclasses.replace(MODEL, packed=True)
STREAMS = dataclasses.replace(MODEL, streams=2, prefix=2)
WINDOW, LENGTHS = 16, np.array([3, 9, 5, 25, 2, 1, 7])
"""One of them is longer than a row, and cut."""


def batch_of(packed, multiple):
    draw = np.random.default_rng(0)
    tokens = draw.integers(1, 16, LENGTHS.sum() + len(LENGTHS) - 1).astype(np.uint16)
    rows = DocumentRows(tokens, LENGTHS, WINDOW, 0, packed, multiple)
    found = [rows[i] for i in range(len(rows))]
    return {name: np.stack([row[name] for row in found]) for name in found[0]}


@functools.cache
def params_of(model):
    return on_host(random_like(model.table()))


@functools.cache
def found(model, packed, accumulate, shape, preset):
    """Loss and gradients of all documents as one batch."""
    layout = layout_of(shape, preset)
    batch = batch_of(packed, 4 * accumulate)
    if accumulate > 1:
        batch = {k: x.reshape(accumulate, -1, *x.shape[1:]) for k, x in batch.items()}
    step = jax.jit(make_gradients(model, layout, accumulate))
    measures, gradients = step(params_of(model), put_batch(model, layout, batch, accumulate), KEY)
    return float(measures["loss"]), jax.tree.map(np.asarray, gradients)


KEY = jax.random.key(0)
ONE = ((1, 1, 1), "data")


@pytest.mark.parametrize(
    ("accumulate", "shape", "preset"),
    [
        (1, *ONE),
        (2, *ONE),
        (1, (2, 2, 2), "fully_sharded+sequence+tensor_tokens"),
    ],
)
def test_loss_and_gradients_are_those_of_a_row_for_each_document(accumulate, shape, preset):
    loss, gradients = found(PACKED, True, accumulate, shape, preset)
    wanted, wanted_gradients = found(MODEL, False, 1, *ONE)
    assert loss == pytest.approx(wanted, rel=1e-6)
    assert_leaves_close(gradients, wanted_gradients, tolerance=2e-5)


@pytest.mark.slow
def test_streams_learn_the_start_of_every_document():
    """Each begins with what its stream has learned, and has a part in the gradient by that."""
    packed = dataclasses.replace(STREAMS, packed=True)
    loss, gradients = found(packed, True, 1, (1, 2, 2, 2), "fully_sharded+sequence+tensor_tokens")
    wanted, wanted_gradients = found(STREAMS, False, 1, *ONE)
    assert loss == pytest.approx(wanted, rel=1e-6)
    assert_leaves_close(gradients, wanted_gradients, tolerance=1e-4)


def test_a_model_learns_from_its_data_whether_rows_are_packed():
    packed, joined = (Text(documents=form).sizes() for form in ("packed", "joined"))
    assert (packed["packed"], joined["packed"]) == (1, 0)
    assert set(PACKED.batch_axes()) - set(MODEL.batch_axes()) == {"starts"}
    assert set(Text(documents="packed").batch(2)) == set(PACKED.batch_axes())


def test_a_layer_of_one_s_own_that_takes_no_starts_is_named():
    @dataclasses.dataclass(frozen=True)
    class Running(Layer):
        width: int | None = None

        def __call__(self, params, x, carry=None, axes=None, *, key=None):
            return x, ()

    assert dataclasses.replace(MODEL, block=Block(Running())).cannot_pack() == "Running"


def test_a_layer_that_cannot_keep_documents_apart_is_named(monkeypatch):
    assert not STREAMS.cannot_pack()
    monkeypatch.setattr(Mamba2, "documents", False)
    assert MODEL.cannot_pack() == STREAMS.cannot_pack() == "Mamba2"
    starts = np.zeros((1, 4), bool)
    with pytest.raises(ValueError, match="Mamba2 cannot keep the documents of a row apart"):
        MODEL.hidden(params_of(MODEL), np.ones((1, 4), np.int32), starts=starts)


def test_a_fitted_model_refuses_packed_rows_that_it_cannot_read(monkeypatch):
    data = Unread(Text(documents="packed", window=16))
    model = dataclasses.replace(MODEL, vocab=256)
    assert model.fitted(data).packed
    monkeypatch.setattr(Mamba2, "documents", False)
    with pytest.raises(UserError, match=r"data\.documents=packed: Mamba2 cannot keep"):
        model.fitted(data)
