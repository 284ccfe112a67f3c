"""`benchmark length` and `decode` time any mixer by name."""

import pytest

from experiments.benchmark import decode, length
from gam_jax.layers import LinearMemory
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import make_mesh


def test_a_mixer_is_named_with_its_variant():
    assert length.mixer_of("LinearMemory.gla") == LinearMemory(variant="gla")


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
        length.mixer_of(name)


def test_it_gives_time_and_memory_of_each_length(monkeypatch):
    monkeypatch.setattr(length, "WIDTH", 16)
    layout = Layout(make_mesh())
    result = length.run(1, layout, mixers=("MinimalRNN",), lengths=(16, 32))
    for rows in (result["whole"], result["chunked"]):
        assert [row["tokens"] for row in rows] == [16, 32]
        assert all(row["seconds"] > 0 and row["bytes_per_token"] > 0 for row in rows)


def test_writing_is_timed_after_each_context(monkeypatch):
    for name, small in (("WIDTH", 16), ("DEPTH", 1), ("WRITTEN", 4)):
        monkeypatch.setattr(decode, name, small)
    result = decode.run(1, Layout(make_mesh()), ("MinimalRNN", "GAM"), (8, 16))
    for mixer in ("MinimalRNN", "GAM"):
        rows = result[f"{mixer}_rows"]
        assert [row["context"] for row in rows] == [8, 16]
        assert rows[0]["carry_bytes"] == rows[1]["carry_bytes"] > 0
        assert all(row["tokens_per_second"] > 0 for row in rows)
