"""`gam measure` writes a profile that plans read; what it measures it measures rightly."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import measure
from gam_jax.planning import read_profiles
from gam_jax.planning.cluster import cluster
from tests.experiments import commands


@given(st.integers(2, 17))
def test_rounds_pair_every_two_once_and_nobody_twice_in_a_round(count):
    rounds = list(measure.rounds(count))
    pairs = [tuple(sorted(pair)) for pairing in rounds for pair in pairing]
    assert sorted(pairs) == list(itertools.combinations(range(count), 2))
    assert len(rounds) == count - 1 + count % 2
    for pairing in rounds:
        busy = [device for pair in pairing for device in pair]
        assert len(busy) == len(set(busy))


def test_a_measured_profile_is_one_that_plans_read(monkeypatch, capsys, tmp_path):
    out, matrix = tmp_path / "local.toml", tmp_path / "local.json"
    words = (f"--out={out}", f"--matrix={matrix}", "--megabytes=1", "--size=64", "--repeats=1")
    ended = commands.in_process(monkeypatch, capsys, "measure", *words, "--dtypes=float32")
    assert (ended.code, ended.err) == (0, "")
    found = read_profiles(out)["cpu_local"]
    assert {figure.kind for figure in found.figures.values()} == {"measured"}
    assert found.flops("float32") > 0
    links = json.loads(matrix.read_text())["bandwidth"]
    assert found.value("links.node.devices") == len(links)
    assert cluster(f"{out}:{len(links)}").levels[0].bandwidth == min(map(min, links))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "--out is not given"),
        (("--out=x.toml", "--dtypes=float33"), "did you mean 'float32'"),
        (("--out=x.toml", "--name=my laptop"), "give letters, digits and _ alone"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, capsys, words, says):
    ended = commands.in_process(monkeypatch, capsys, "measure", *words)
    assert ended.code == 2
    assert says in ended.err
    assert ended.err.count("\n") == 1
