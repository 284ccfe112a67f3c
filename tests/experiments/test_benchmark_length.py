"""`benchmark length` times any mixer by name."""

import pytest

from experiments.benchmark import length
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
