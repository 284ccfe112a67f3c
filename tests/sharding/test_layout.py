"""What each word of a preset does with its mesh axis; what does not fit is named."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from sharding.axes import Axes
from sharding.errors import UserError
from sharding.layout import WORDS, Layout, Parallel
from sharding.mesh import make_mesh


def layout(preset, rules="", **sizes):
    return Layout(make_mesh(**sizes), Parallel(preset, rules))


def test_an_overlap_without_split_tokens_or_an_unknown_one_is_refused():
    with pytest.raises(UserError, match=r"parallel\.overlap=rings: unknown.*did you mean 'ring'"):
        Parallel("data+tensor_tokens", overlap="rings")
    with pytest.raises(UserError, match=r"parallel\.overlap=ring.*tensor_tokens"):
        Parallel("data+tensor", overlap="ring")


def test_an_axis_of_one_device_splits_nothing():
    assert Layout(make_mesh()).axes == Axes(backend="cpu")
    assert Layout(make_mesh(seq=8)).axes == Axes(seq="seq", backend="cpu")
    assert layout("tensor_tokens").axes == Axes(backend="cpu")


def test_the_axes_of_a_program_say_what_is_split():
    axes = layout("data+sequence+tensor_tokens", data=2, seq=2, tensor=2).axes
    assert (axes.data, axes.seq, axes.residual) == ("data", "seq", "tensor")
    assert axes.batch == ("data", "seq")
    assert axes.tokens == ("seq", "tensor")
    assert set(axes.all) == {"data", "seq", "tensor"}
    assert axes.of("ffn") == axes.of("vocab") == "tensor"
    assert axes.of("embed") is None


def test_a_rule_can_be_taken_back():
    axes = layout("tensor", "ffn=none,slot=none", tensor=4).axes
    assert axes.of("ffn") is axes.of("slot") is None
    assert axes.of("channel") == "tensor"


@pytest.mark.parametrize(
    ("preset", "rules", "words"),
    [
        ("fully_shard", "", "did you mean 'fully_sharded'"),
        ("data+zero1", "", "'data' and 'zero1' both decide what the data axis does"),
        ("data", "fnf=none", "did you mean 'ffn'"),
        ("data", "ffn=seq", "'ffn' can go to 'tensor' or 'none', not to 'seq'"),
    ],
)
def test_words_that_mean_nothing_are_refused(preset, rules, words):
    with pytest.raises(UserError, match=words):
        Parallel(preset, rules)


@pytest.mark.parametrize(("axis", "word"), [("seq", "sequence"), ("tensor", "tensor")])
def test_an_axis_without_work_is_refused(axis, word):
    with pytest.raises(UserError, match=rf"mesh axis {axis}=2 has no work .* add '\+{word}'"):
        layout("data", **{axis: 2})


def test_state_is_split_over_data_where_the_preset_says_so():
    assert layout("data", data=8).state_axes == ()
    assert layout("zero1", data=8).state_axes == ("data",)
    assert layout("zero1", data=8).gradient_axes == layout("zero1", data=8).weight_axes == ()
    assert layout("zero2", data=8).gradient_axes == ("data",)
    assert layout("fully_sharded", data=8).weight_axes == ("data",)
    assert layout("fully_sharded").state_axes == ()


def test_the_largest_dimension_that_no_rule_splits_is_split():
    both = layout("fully_sharded+tensor", data=2, tensor=4)
    assert both.stored_spec("w", (8, 6, 64), ("layer", "embed", "ffn")) == P(None, "data", "tensor")
    assert both.stored_spec("w", (6, 10), ("embed", None)) == P(None, "data")


def test_a_dimension_is_split_twice_where_there_is_no_other():
    both = layout("fully_sharded+tensor", data=2, tensor=4)
    assert both.stored_spec("b", (4, 16), ("layer", "ffn")) == P(None, ("tensor", "data"))


def test_what_is_too_small_to_split_stays_whole():
    assert layout("zero1", data=8).stored_spec("b", (4, 12), ("layer", "embed")) == P(None, None)


@given(
    shape=st.lists(st.sampled_from([1, 2, 3, 4, 8, 16, 24]), min_size=1, max_size=3),
    split=st.integers(0, 3),
    sizes=st.sampled_from([(2, 4), (4, 2), (8, 1), (1, 8)]),
)
def test_a_stored_part_is_the_rule_s_part_over_the_data_axis(shape, split, sizes):
    data, tensor = sizes
    axes = [
        "ffn" if dim == split and size % tensor == 0 else "embed" for dim, size in enumerate(shape)
    ]
    both = layout("fully_sharded+tensor", data=data, tensor=tensor)
    parts = {"data": data, "tensor": tensor}

    def elements(spec):
        names = itertools.chain.from_iterable(
            (entry if isinstance(entry, tuple) else (entry,)) for entry in spec if entry
        )
        return math.prod(shape) // math.prod(parts[name] for name in names)

    ruled, stored = both.spec("w", shape, axes), both.stored_spec("w", shape, axes)
    if both.shard_dim("w", shape, axes):
        assert elements(stored) * data == elements(ruled)
    else:
        assert stored == ruled


def test_decoding_keeps_the_rules_alone():
    plain = layout("fully_sharded+sequence+tensor_tokens", data=2, seq=2, tensor=2).whole
    assert plain.parallel.preset == "data+sequence+tensor"
    assert plain.state_axes == ()
    assert plain.axes.residual is None


@pytest.mark.parametrize(
    ("rows", "tokens", "words"),
    [
        (3, 8, "3 rows is not divisible by mesh axis data=2"),
        (4, 7, "7 tokens is not divisible by mesh axis seq=2"),
        (4, 6, "6 tokens is not divisible by mesh axis seq=2 x tensor=2"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(rows, tokens, words):
    with pytest.raises(UserError, match=words):
        layout("data+sequence+tensor_tokens", data=2, seq=2, tensor=2).check_batch(rows, tokens)


def test_every_word_belongs_to_an_axis_of_the_mesh():
    assert set(WORDS.values()) <= set(make_mesh().axis_names)
