"""`benchmark length` and `decode` time any mixer by name; `memory` counts the bytes of ops."""

import pytest

from experiments.benchmark import decode, length, memory
from gam_jax.layers import LinearMemory
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import make_mesh


def test_a_mixer_is_named_with_its_variant():
    assert length.mixer_of("LinearMemory.gla", 16) == LinearMemory(variant="gla")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("LinearMemry", "did you mean 'LinearMemory'"),
        ("LinearMemory.rwkv", "variant 'rwkv' is not one of"),
        ("Block", "missing 1 required positional argument: 'mixer'"),
    ],
)
def test_what_is_no_mixer_is_named(name, message):
    with pytest.raises(UserError, match=message):
        length.mixer_of(name, 16)


def test_it_gives_time_and_memory_of_each_length(monkeypatch):
    monkeypatch.setattr(length, "WIDTH", 16)
    layout = Layout(make_mesh())
    result = length.run(1, layout, mixers=("MinimalRNN",), lengths=(16, 32))
    kinds = ("whole", "chunked")
    assert list(result) == [f"MinimalRNN {kind}, {n} tokens" for kind in kinds for n in (16, 32)]
    assert all(row["time"].median > 0 < row["temporary"].median for row in result.values())


def test_writing_is_timed_after_each_context(monkeypatch):
    for name, small in (("WIDTH", 16), ("DEPTH", 1), ("WRITTEN", 4)):
        monkeypatch.setattr(decode, name, small)
    result = decode.run(1, Layout(make_mesh()), ("MinimalRNN", "GAM"), (8, 16))
    for mixer in ("MinimalRNN", "GAM"):
        rows = [result[f"{mixer} after {context} tokens"] for context in (8, 16)]
        assert rows[0]["carry"] == rows[1]["carry"]
        assert all(row["speed"].median > 0 < row["carry"].median for row in rows)


def test_caches_have_room_for_what_is_read_and_written(monkeypatch):
    for name, small in (("WIDTH", 16), ("DEPTH", 1), ("WRITTEN", 4)):
        monkeypatch.setattr(decode, name, small)
    result = decode.run(1, Layout(make_mesh()), ("Attention",), (8, 16))
    few, many = (result[f"Attention after {n} tokens"]["carry"].median for n in (8, 16))
    assert many - few == 8 * 2 * 16 * 4  # tokens, a key and a value, width, float32


def test_bytes_of_an_op_are_counted_at_two_lengths():
    row = memory.row(memory.cases()["convolution"], 64, 256)
    assert row["a token"].median >= memory.WIDTH * 4  # what it gives, float32
    assert row["temporary"].median * 2**20 == pytest.approx(256 * row["a token"].median)
    assert row["over 64 tokens"].median == pytest.approx(4, rel=0.05)
