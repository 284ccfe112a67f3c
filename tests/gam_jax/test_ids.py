"""Ids that there are not are refused on the host, by name, value and place."""

from __future__ import annotations

import numpy as np
import pytest

from gam_jax.data import arrays
from gam_jax.ids import check_ids
from gam_jax.layers import GAM, Block
from gam_jax.models import ImageClassifier
from gam_jax.models.language import LanguageModel
from gam_jax.training.batches import BatchShape, TrainFeed, validation_feed
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import make_mesh

VOCAB = 300
MODEL = LanguageModel(Block(GAM(slots=8)), width=8, depth=1, vocab=VOCAB)
AXES = ("row", "position")
TYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


@pytest.mark.parametrize("dtype", TYPES)
def test_exactly_the_ids_from_0_to_below_the_count_pass(dtype):
    info = np.iinfo(dtype)
    for value in (-(2**33), -(2**31), -129, -1, 0, 1, 127, 255, 299, 300, 2**31, 2**32, 2**32 + 5):
        if not info.min <= value <= info.max:
            continue
        ids = np.zeros((2, 3), dtype)
        ids[1, 2] = value
        if 0 <= value < VOCAB:
            check_ids("inputs", ids, VOCAB, AXES)
            continue
        words = f"inputs: id {value} at row 1, position 2 is outside of 0 to 299"
        with pytest.raises(ValueError, match=words):
            check_ids("inputs", ids, VOCAB, AXES)


@pytest.mark.parametrize("ids", [np.zeros((1, 2)), np.zeros(2, bool), np.array([None])])
def test_what_is_no_whole_number_is_no_id(ids):
    with pytest.raises(UserError, match="ids must be whole numbers, not"):
        check_ids("inputs", ids, VOCAB, AXES)


def test_no_ids_are_none_too_many_and_the_array_may_be_any_view():
    check_ids("inputs", np.zeros((0, 4), np.int32), VOCAB, AXES)
    turned = np.arange(-1, 11).reshape(3, 4).T[::2]
    with pytest.raises(UserError, match="id -1 at row 0, position 0"):
        check_ids("inputs", turned, VOCAB, AXES)


def rows(**bad):
    """Six rows of four tokens; `targets=(row, position, id)` is put there."""
    found = {name: np.ones((6, 4), np.int32) for name in ("inputs", "targets")}
    for name, (row, position, value) in bad.items():
        found[name][row, position] = value
    weights = np.ones((6, 4), np.float32)
    weights[:, 3] = 0
    return {**found, "weights": weights}


@pytest.mark.parametrize("array", ["inputs", "targets"])
@pytest.mark.parametrize("value", [-1, VOCAB, -100])
@pytest.mark.parametrize("position", [1, 3], ids=["weight 1", "weight 0"])
def test_both_streams_name_the_array_and_the_place(array, value, position):
    data = arrays(rows(**{array: (5, position, value)}), rows(**{array: (5, position, value)}))
    layout = Layout(make_mesh())
    words = f", {array}: id {value} at row {{}}, position {position} is outside"
    with pytest.raises(UserError, match="^validation batch 1" + words.format(2)):
        list(validation_feed(data, "", MODEL, 3, layout))
    shape = BatchShape(6, accumulate=2)
    with (
        TrainFeed(data, MODEL, shape, layout, seed=0, position=0) as feed,
        pytest.raises(UserError, match="^training batch 0" + words.format("[012]")),
    ):
        next(feed)


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_of_classes_are_ids_too(label):
    model = ImageClassifier(Block(GAM(slots=8)), width=8, depth=1, side=2, classes=3)
    given = {"images": np.zeros((2, 2, 2), np.float32), "labels": np.array([0, label], np.int32)}
    with pytest.raises(UserError, match=f"labels: id {label} at row 1 is outside of 0 to 2"):
        list(validation_feed(arrays(given, given), "", model, 2, Layout(make_mesh())))
