"""Ways to compute an op: faulty ones are out before timing, the fastest right one is taken."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from experiments import tuning
from experiments.papers import cuda_llm
from experiments.study.declare import SHORT, Setting
from experiments.tuning import (
    BUILDS,
    COMPILES,
    EQUAL,
    HOW,
    Case,
    Tuned,
    blocks_case,
    broken,
    difference,
    does_not_compile,
    is_wrong,
    scan_case,
    tune,
)
from gam_jax.data import Text
from gam_jax.layers import Block, LinearMemory, Pattern
from gam_jax.models import LanguageModel
from gam_jax.planning.targets import topology
from gam_jax.search import Space
from gam_jax.training import Experiment, TrainConfig
from gam_jax.tuned import Entry, device_name, scan_shape, with_tuned
from sharding.errors import UserError

SMALL = cuda_llm.cases(SHORT)


@pytest.fixture
def clock(monkeypatch):
    """Seconds by the place of a way among those that are timed; the first round, then others."""

    def given(*rounds):
        left = list(rounds)

        def samples(calls, repeats):
            own = left.pop(0)
            assert len(own) == len(calls)
            return {point: list(times) for point, times in zip(calls, own, strict=True)}

        monkeypatch.setattr(tuning, "samples", samples)

    return given


def test_faulty_ways_are_refused_and_never_timed(clock):
    case = broken(SMALL[0], is_wrong, does_not_compile)
    clock(((1, 1, 1), (2, 2, 2)), ((1, 1, 1), (2, 2, 2)))
    found = tune(case, 3)
    by = {verdict.refused: [] for verdict in found.verdicts.values()}
    for point, verdict in found.verdicts.items():
        by[verdict.refused].append(case.space.values(point)["fault"])
    assert by == {"": ["", ""], EQUAL: ["wrong", "wrong"], BUILDS: ["fails", "fails"]}
    assert set(found.seconds) == {p for p, v in found.verdicts.items() if not v.refused}
    assert all(v.figures["off"] < 1e-5 for v in found.verdicts.values() if not v.refused)


@pytest.mark.parametrize(
    ("rounds", "best"),
    [
        ((((1, 1, 1), (2, 2, 2)), ((2, 2.1, 2.2), (1, 1.1, 1.2))), 8),  # default first
        ((((1, 1, 1), (2, 2, 2)), ((1, 2, 3), (1, 1.5, 3))), 512),  # within the spread
        ((((1, 1, 1), (2, 2, 2)), ((1, 1, 1), (2, 2, 2))), 512),  # by chance the first time
        ((((2, 2, 2), (1, 1, 1)),), 512),  # the default is the best
    ],
)
def test_the_least_median_is_taken_where_it_stays_below_the_default(clock, rounds, best):
    clock(*rounds)
    assert tune(SMALL[0], 3).best == {"block": best}


@pytest.mark.parametrize("name", ["scan", pytest.param("delta", marks=pytest.mark.slow), "blocks"])
def test_every_op_has_ways_that_are_equal_to_the_plainest(name, clock):
    makers = {
        "scan": lambda: SMALL[1],
        "delta": lambda: scan_case("delta:head", 1, 16, 1, 8, "float32"),
        "blocks": lambda: blocks_case(1, 8, 8, 2, "float32"),
    }
    case = makers[name]()
    if name == "delta":
        ways = [{"method": "chunked", "chunk": chunk} for chunk in (8, 64)]
        case = dataclasses.replace(case, space=Space.of({HOW: ways}))
    if name == "blocks":
        case = dataclasses.replace(case, space=Space.of({"remat": [False, True], "unroll": [1]}))
    clock(*[((1, 1, 1), (2, 2, 2))] * 2)
    found = tune(case, 3)
    assert [verdict.refused for verdict in found.verdicts.values()] == ["", ""]


def test_a_difference_is_of_the_largest_value_and_no_number_is_infinitely_far():
    one = [jnp.array([1.0, 10.0]), jnp.array([0.0])]
    other = [jnp.array([1.5, 10.0]), jnp.array([0.0])]
    assert difference(one, other) == pytest.approx(0.05)
    assert difference([jnp.array([math.nan])], [jnp.array([1.0])]) == math.inf


def experiment():
    memory = LinearMemory(heads=2, variant="gated_deltanet", chunk=64)
    other = dataclasses.replace(memory, heads=4)
    blocks = Pattern((Block(memory), Block(other)), (0, 1))
    return Experiment(
        LanguageModel(blocks, width=16, depth=1, vocab=8), Text(window=32), TrainConfig(batch=4)
    )


def entry(**changes):
    layer = experiment().model.block.layers[0].mixer
    found = Entry(
        "memory_scan",
        scan_shape(layer, 4, 32),
        "float32",
        device_name(),
        {"method": "associative", "chunk": 16},
        {"method": "chunked", "chunk": 64},
        1.0,
        2.0,
    )
    return dataclasses.asdict(dataclasses.replace(found, **changes))


def test_layers_of_that_shape_take_what_was_found_and_others_stay(tmp_path):
    file, before = tmp_path / "tuned.json", experiment()
    file.write_text(json.dumps({"entries": [entry()]}))
    first, second = (block.mixer for block in with_tuned(before, file).model.block.layers)
    assert (first.method, first.chunk) == ("associative", 16)
    assert second == before.model.block.layers[1].mixer
    for other in ({"device": "another"}, {"dtype": "bfloat16"}, {"op": "attention"}):
        file.write_text(json.dumps({"entries": [entry(**other)]}))
        assert with_tuned(before, file) == before
    for text, message in (("{}", "no file that gam tune wrote"), ('{"entries": [{}]}', "no file")):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            with_tuned(before, file)
    with pytest.raises(UserError, match="write it by gam tune"):
        with_tuned(before, tmp_path / "none.json")


def test_the_command_writes_entries_and_keeps_others(command, tmp_path, clock):
    file = tmp_path / "tuned.json"
    file.write_text(json.dumps({"entries": [entry()]}))
    words = ("--ops=blocks", "--tokens=8", "--heads=1", "--size=8", "--depth=1", "--json")
    clock(((2, 2, 2), (1, 1, 1)), ((2, 2, 2), (1, 1, 1)))
    result = command("tune", *words, f"--out={file}")
    assert result.code == 0, result.err
    assert json.loads(result.out)[0]["best"] == {"remat": True, "unroll": 1}
    old, new = json.loads(file.read_text())["entries"]
    assert old == entry()
    assert (new["op"], new["seconds"], new["default_seconds"]) == ("blocks", 1, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--ops=atention",), "unknown op 'atention'; did you mean 'attention'?"),
        (("--topology=v5e:2x2", "--out=x.json"), "leave --out out"),
        (("--topology=v5f:2x2",), "unknown 'v5f'; did you mean 'v5"),
        (("--topology=h100:1",), "give HOSTSxGPUS, as h100:1x8"),
        (("--out=README.md",), "README.md is not JSON"),
    ],
)
def test_bad_input_is_one_line(words, message, command):
    result = command("tune", *words)
    assert (result.code, len(result.err.splitlines())) == (2, 1), result.err
    assert message in result.err


@pytest.mark.slow
def test_the_study_refuses_faulty_ways_and_times_the_others():
    found = cuda_llm.gates(Setting(SHORT), 0)
    assert found == {"faulty": 4, "timed": 0, "refused": 4, "default": 1}
    case = SMALL[0]
    quantities = cuda_llm.afresh(case, {"block": 8}, 3)
    assert all(0 < each.low <= each.high for each in quantities)


@pytest.mark.parametrize(
    ("best", "times", "gain", "slower"),
    [
        (8, ((2, 2, 2), (1, 1, 1)), 2.0, 0.0),
        (8, ((1, 1, 1), (2, 2, 2)), 0.5, 1.0),  # taken by chance
        (512, (), 1.0, 0.0),  # the default itself
    ],
)
def test_the_study_times_anew_what_was_taken(monkeypatch, best, times, gain, slower):
    found = Tuned({}, {}, {"block": best})

    def samples(calls, repeats):
        return dict(zip(calls, times, strict=True))

    monkeypatch.setattr(cuda_llm, "cases", lambda scale: SMALL[:1])
    monkeypatch.setattr(cuda_llm, "tuned", lambda scale, seed: [found])
    monkeypatch.setattr(cuda_llm, "samples", samples)
    assert cuda_llm.choice(Setting(SHORT), 0) == {"gain": gain, "slower": slower}


def doubled(settings):
    """A kernel that holds so many rows of a square at once."""
    spec = pl.BlockSpec((settings["block"], SIDE), lambda row: (row, 0))

    def kernel(x, y):
        y[...] = x[...] * 2

    def call(x):
        shape, grid = jax.ShapeDtypeStruct(x.shape, x.dtype), (SIDE // settings["block"],)
        return pl.pallas_call(kernel, shape, grid=grid, in_specs=[spec], out_specs=spec)(x)

    return call


SIDE = 4096


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="no compiler of TPUs")
def test_a_tpus_compiler_refuses_a_block_that_needs_too_much_memory():
    space = Space.of({"block": [128, SIDE]})
    shapes = [jax.ShapeDtypeStruct((SIDE, SIDE), jnp.float32)]
    default = {"block": 128}
    case = Case(
        "double", {}, "float32", space, default, doubled, doubled(default), lambda _: shapes
    )
    found = tune(case, 3, topology("v5e:2x2"))
    small, large = found.verdicts.values()
    assert not small.refused
    assert large.refused == COMPILES
    assert "vmem" in large.why.lower()
    assert found.seconds == {}
