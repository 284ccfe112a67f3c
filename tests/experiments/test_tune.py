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

from experiments import tune as tune_command
from experiments import tuning
from experiments.papers import cuda_llm
from experiments.study.declare import SHORT, Setting
from experiments.tuning import (
    ALONE,
    BUILDS,
    COMPILES,
    EQUAL,
    REFUSED,
    SPREAD,
    Case,
    Tuned,
    blocks_case,
    broken,
    difference,
    does_not_compile,
    is_wrong,
    op_case,
    plain_blocks,
    tune,
)
from gam_jax.planning.targets import topology
from gam_jax.training.folder import RunFolder
from gam_jax.tuned import read_tuned
from gam_jax.tuning import scans
from gam_jax.tuning.ops import Op, Sizes
from gam_jax.tuning.table import TUNABLE
from sharding.errors import UserError
from tests.gam_jax.test_tuned import entry

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


def example(word, **sizes):
    """The op of a word of --ops, at sizes that are small where none are given."""
    of = next(one for one in TUNABLE.values() if word in one.examples)
    own = Sizes(**{"rows": 1, "tokens": 8, "heads": 1, "size": 8, "values": 8, **sizes})
    return Op(of.name, of.examples[word](own), "float32")


def test_faulty_ways_are_refused_and_never_timed(clock):
    case = broken(SMALL[0], is_wrong, does_not_compile)
    clock(((1, 1, 1), (2, 2, 2)), ((1, 1, 1), (2, 2, 2)))
    found = tune(case, 3)
    by = {way.verdict.refused: [] for way in found.ways}
    for way in found.ways:
        by[way.verdict.refused].append(way.settings.get("fault", ""))
    assert by == {"": ["", ""], EQUAL: ["wrong", "wrong"], BUILDS: ["fails", "fails"]}
    assert all(bool(way.seconds) != bool(way.verdict.refused) for way in found.ways)
    assert all(way.verdict.figures["off"] < 1e-5 for way in found.ways if way.seconds)


@pytest.mark.parametrize(
    ("rounds", "best", "kept"),
    [
        ((((2, 2, 2), (1, 1, 1)), ((2, 2.1, 2.2), (1, 1.1, 1.2))), 8, ""),  # default first
        ((((2, 2, 2), (1, 1, 1)), ((1, 2, 3), (1, 1.5, 3))), 0, SPREAD),  # within the spread
        ((((2, 2, 2), (1, 1, 1)), ((1, 1, 1), (2, 2, 2))), 0, SPREAD),  # by chance the first time
        ((((1, 1, 1), (2, 2, 2)),), 0, SPREAD),  # the default is the best
    ],
)
def test_the_least_median_is_taken_where_it_stays_below_the_default(clock, rounds, best, kept):
    clock(*rounds)
    found = tune(SMALL[0], 3)
    assert (found.best, found.kept) == ({"block_size": best}, kept)


def test_three_have_a_second_chance_and_the_best_of_these_is_taken(clock):
    """The first of them was lucky, the second wavers; the slowest is not timed again."""
    clock(
        [(9, 9, 9), (1, 1, 1), (2, 2, 2), (3, 3, 3), (4, 4, 4)],
        [(9, 9, 9), (8, 9, 10), (1, 6, 12), (5, 5, 6)],
    )
    ways = tuple({"block_size": size} for size in (0, 5, 6, 7, 8))
    found = tune(dataclasses.replace(SMALL[0], ways=ways), 3)
    assert found.best == {"block_size": 7}
    assert [way.seconds.median for way in found.ways] == [9, 9, 6, 5, 4]


def test_a_default_stays_where_there_is_no_other_way_or_it_is_refused_itself(clock):
    clock(((1, 1, 1),))
    case = dataclasses.replace(SMALL[0], ways=(SMALL[0].default,))
    assert tune(case, 3).kept == ALONE
    wrong = dataclasses.replace(case, make=lambda way: lambda *x: is_wrong(SMALL[0].make(way), *x))
    found = tune(wrong, 3)
    assert (found.kept, found.ways[0].seconds) == (REFUSED, None)


FEW = {
    "hebb:head": {"method": "chunked", "chunk": 8},
    "delta:channel": {"method": "chunked", "chunk": 4},
    "selective": {"method": "associative", "chunk": 8},
    "diagonal": {"method": "associative", "chunk": 64},
    "attention": {"block_size": 4},
    "latent": {"block_size": 4},
    "loss": {"loss_block": 4},
    "experts": {"method": "ragged"},
    "blocks": {"remat": True, "unroll": 1},
}
"""A word of --ops -> a way beside the default."""


@pytest.mark.parametrize(
    "word",
    [
        pytest.param(word, marks=pytest.mark.slow) if word.startswith("delta") else word
        for word in FEW
    ],
)
def test_every_op_has_ways_that_are_equal_to_the_plainest(word, clock):
    if word == "blocks":
        case = blocks_case(*plain_blocks(1, 8, 8, 2, "float32"))
    else:
        case = op_case(example(word), "cpu")
    case = dataclasses.replace(case, ways=(case.default, FEW[word]))
    clock(*[((1, 1, 1), (2, 2, 2))] * 2)
    found = tune(case, 3)
    assert [way.verdict.refused for way in found.ways] == ["", ""], found.ways


def test_ways_fit_the_sequence_and_the_machine():
    def ways(word, backend, **sizes):
        op = example(word, **sizes)
        return [next(iter(way.values())) for way in TUNABLE[op.name].ways(op, backend)]

    assert ways("attention", "cpu", tokens=300) == [32, 64, 128, 256]
    assert ways("attention", "tpu", tokens=1024) == [128, 256, 512, 1024]  # of kernels there
    assert ways("attention", "tpu", tokens=1000) == ways("attention", "cpu", tokens=1000)
    half = dataclasses.replace(example("attention", tokens=1024), dtype="bfloat16")
    assert TUNABLE["attention"].ways(half, "gpu") == []  # cuDNN has its own
    assert ways("experts", "cpu") == ["ragged"]
    assert ways("experts", "tpu") == ["blocks", "ragged"]
    assert ways("experts", "gpu") == ["blocks"]
    assert set(ways("hebb:head", "tpu")) - set(ways("hebb:head", "cpu")) == set()
    assert "pallas" in ways("hebb:head", "tpu", tokens=64)
    own = op_case(dataclasses.replace(example("selective"), own={"method": "chunked", "chunk": 5}))
    assert own.default == own.ways[0] == {"method": "chunked", "chunk": 5}
    assert {"method": "chunked", "chunk": 8} in own.ways  # what nobody has set takes part


def test_a_difference_is_of_the_largest_value_and_no_number_is_infinitely_far():
    one = [jnp.array([1.0, 10.0]), jnp.array([0.0])]
    other = [jnp.array([1.5, 10.0]), jnp.array([0.0])]
    assert difference(one, other) == pytest.approx(0.05)
    assert difference([jnp.array([math.nan])], [jnp.array([1.0])]) == math.inf


CONFIG = """
import pathlib
from experiments.config_flags import config
from gam_jax.data import Text
from gam_jax.layers import MLP, Block, LinearMemory
from gam_jax.models import LanguageModel
from gam_jax.training import Experiment, TrainConfig
from gam_jax.tuned import with_tuned

FILE = pathlib.Path("{file}")
MEMORY = LinearMemory(heads=2, variant="linear")
MODEL = LanguageModel(Block(MEMORY, MLP(hidden=16)), width=16, depth=1)
TEXT = Text(name="text:{text}", tokenizer="bytes", window=16)
RUN = Experiment(MODEL, TEXT, TrainConfig(steps=2, batch=4, validation_tokens=64))


def get_config():
    return config(with_tuned(RUN, FILE, mesh="tensor=2"))
"""


def test_a_run_is_tuned_and_trained_with_what_was_found(
    command, workshop, tmp_path, clock, monkeypatch
):
    """From its own default sizes to the configuration that its folder keeps; and tuned again.

    The config names a file that is not there yet, and then one whose settings are not to be the
    default of the second time.
    """
    monkeypatch.setattr(scans, "CHUNKS", ())
    file, own, run = tmp_path / "tuned.json", tmp_path / "own.py", tmp_path / "run"
    own.write_text(CONFIG.format(file=file, text=workshop.path / "corpus.txt"))
    clock(*[[(5, 5, 5), (1, 1, 1)]] * 4)
    words = ("tune", f"--config={own}", "--mesh=tensor=2", f"--out={file}", "--json")
    for _ in range(2):
        result = command(*words)
        assert result.code == 0, result.err
        (found,) = json.loads(result.out)
        assert found["best"] == {"method": "associative", "chunk": 64}
        (kept,) = read_tuned(file)
        assert kept.default == {"method": "chunked", "chunk": 64}
    assert (found["shape"]["heads"], found["shape"]["values"]) == (1, 9)
    result = command("train", f"--config={own}", f"--run={run}", "--mesh=tensor=2")
    assert result.code == 0, result.err
    assert "1 of 1 ops take what was found" in result.err
    assert RunFolder(run).experiment().model.block.mixer.method == "associative"


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


def test_what_was_found_stays_when_the_next_op_is_stopped(command, tmp_path, monkeypatch):
    file, rounds = tmp_path / "tuned.json", [1]

    def samples(calls, repeats):
        if not rounds:
            raise UserError("stopped")
        return {number: [rounds[0] + number] * 3 for number in calls}

    def tuned(*arguments):
        found = tune(*arguments)
        rounds.clear()
        return found

    monkeypatch.setattr(tuning, "samples", samples)
    monkeypatch.setattr(tune_command, "tune", tuned)
    words = ("--ops=diagonal,loss", "--tokens=8", "--heads=1", "--size=8", f"--out={file}")
    result = command("tune", *words)
    assert (result.code, result.err.splitlines()[-1].endswith("stopped")) == (2, True), result.err
    (kept,) = read_tuned(file)
    assert (kept.op, kept.settings) == ("diagonal_scan", {"method": "chunked", "chunk": 64})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--ops=atention",), "unknown op 'atention'; did you mean 'attention'?"),
        (("--ops=attention,attention",), "'attention' is there twice"),
        (("--ops=",), "--ops is empty"),
        (("--topology=v5e:2x2", "--out=x.json"), "leave --out out"),
        (("--topology=v5f:2x2",), "unknown 'v5f'; did you mean 'v5"),
        (("--topology=h100:1",), "give HOSTSxGPUS, as h100:1x8"),
        (("--out=README.md",), "README.md is not JSON"),
        (("--mesh=data=2",), "--mesh is that of a run"),
        (("--config=gam_small", "--tokens=8"), "--tokens is what the run says already"),
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
    quantities = cuda_llm.afresh(case, {"block_size": 8}, 3)
    assert all(0 < each.low <= each.high for each in quantities)


@pytest.mark.parametrize(
    ("best", "times", "gain", "slower"),
    [
        (8, ((2, 2, 2), (1, 1, 1)), 2.0, 0.0),
        (8, ((1, 1, 1), (2, 2, 2)), 0.5, 1.0),  # taken by chance
        (0, (), 1.0, 0.0),  # the default itself
    ],
)
def test_the_study_times_anew_what_was_taken(monkeypatch, best, times, gain, slower):
    found = Tuned((), {"block_size": best})

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
    shapes = [jax.ShapeDtypeStruct((SIDE, SIDE), jnp.float32)]
    ways = {"block": 128}, {"block": SIDE}
    op = Op("double", {}, "float32")
    case = Case(op, ways, ways[0], doubled, doubled(ways[0]), lambda _: shapes)
    found = tune(case, 3, topology("v5e:2x2"))
    small, large = (way.verdict for way in found.ways)
    assert not small.refused
    assert large.refused == COMPILES
    assert "vmem" in large.why.lower()
    assert all(way.seconds is None for way in found.ways)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="no compiler of TPUs")
def test_so_it_does_a_block_of_attention():
    op = dataclasses.replace(example("attention", tokens=4096, size=128), dtype="bfloat16")
    ways = {"block_size": 0}, {"block_size": 2048}
    case = dataclasses.replace(op_case(op, "tpu"), ways=ways)
    usual, large = (way.verdict for way in tune(case, 3, topology("v5e:2x2")).ways)
    assert not usual.refused
    assert large.refused == COMPILES
    assert "vmem" in large.why.lower()
