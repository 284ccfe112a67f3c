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
    case_of,
    difference,
    does_not_compile,
    is_wrong,
    plain_blocks,
    plain_scan,
    scan_case,
    tune,
)
from gam_jax.data import Text
from gam_jax.layers import Attention, Block, LinearMemory, Pattern
from gam_jax.layers.linear_memory import RECIPES
from gam_jax.models import LanguageModel
from gam_jax.planning.targets import topology
from gam_jax.search import Space
from gam_jax.training import Experiment, TrainConfig
from gam_jax.training.folder import RunFolder
from gam_jax.tuned import device_name, ops_of, part_of, with_tuned
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
        ((((2, 2, 2), (1, 1, 1)), ((2, 2.1, 2.2), (1, 1.1, 1.2))), 8),  # default first
        ((((2, 2, 2), (1, 1, 1)), ((1, 2, 3), (1, 1.5, 3))), 0),  # within the spread
        ((((2, 2, 2), (1, 1, 1)), ((1, 1, 1), (2, 2, 2))), 0),  # by chance the first time
        ((((1, 1, 1), (2, 2, 2)),), 0),  # the default is the best
    ],
)
def test_the_least_median_is_taken_where_it_stays_below_the_default(clock, rounds, best):
    clock(*rounds)
    assert tune(SMALL[0], 3).best == {"block_size": best}


@pytest.mark.parametrize("name", ["scan", pytest.param("delta", marks=pytest.mark.slow), "blocks"])
def test_every_op_has_ways_that_are_equal_to_the_plainest(name, clock):
    makers = {
        "scan": lambda: SMALL[1],
        "delta": lambda: scan_case(plain_scan("delta:channel", 1, 16, 1, 8, 4), "float32"),
        "blocks": lambda: blocks_case(*plain_blocks(1, 8, 8, 2, "float32")),
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
    attention = Attention(heads=4, kv_heads=2)
    blocks = Pattern((Block(memory), Block(other), Block(attention)), (0, 1, 2))
    return Experiment(
        LanguageModel(blocks, width=16, depth=1, vocab=8), Text(window=32), TrainConfig(batch=4)
    )


def entry(number=0, mesh="", **changes):
    run = experiment()
    op = list(ops_of(run, part_of(run, mesh)))[number]
    found = {
        "op": op.name,
        "shape": op.shape,
        "dtype": op.dtype,
        "device": device_name(),
        "settings": {"method": "associative", "chunk": 16},
        "default": {"method": "chunked", "chunk": 64},
        "seconds": 1.0,
        "default_seconds": 2.0,
    }
    return {**found, **changes}


def test_ops_take_what_was_found_for_their_shape_and_others_stay(tmp_path, capsys):
    file, before = tmp_path / "tuned.json", experiment()
    entries = [
        entry(),
        entry(2, settings={"block_size": 64}),
        entry(3, settings={"remat": True, "unroll": 2}),
    ]
    file.write_text(json.dumps({"entries": entries}))
    model = with_tuned(before, file).model
    assert "3 of 4 ops take what was found" in capsys.readouterr().err
    first, second, third = (block.mixer for block in model.block.layers)
    assert (first.method, first.chunk) == ("associative", 16)
    assert second == before.model.block.layers[1].mixer
    assert (third.block_size, third.rule.block, third.rule.fixed) == (64, 64, True)
    assert (model.remat, model.unroll) == (True, 2)
    ops = [list(ops_of(run, part_of(run))) for run in (before, with_tuned(before, file))]
    assert ops[0][:3] == ops[1][:3]  # they are found again, however they are computed
    assert {**ops[1][3].shape, "remat": False} == ops[0][3].shape
    whole = {"train": dataclasses.replace(before.train, batch=8, accumulate=2)}
    assert with_tuned(dataclasses.replace(before, **whole), file).model == model
    for other in ({"device": "another"}, {"dtype": "bfloat16"}, {"shape": {}}):
        file.write_text(json.dumps({"entries": [entry(**other)]}))
        with pytest.raises(UserError, match=r"no entry for this run on .*none of 4 ops, as memory"):
            with_tuned(before, file)
    for text, message in (
        ("{}", "no file that gam tune wrote"),
        ('{"entries": [{}]}', "no file"),
        (json.dumps({"entries": [entry(settings={"heads": 1})]}), "does not find"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            with_tuned(before, file)
    with pytest.raises(UserError, match="write it by gam tune"):
        with_tuned(before, tmp_path / "none.json")


def test_what_is_looked_up_is_what_one_device_has(tmp_path):
    """Of rows, of heads, of tokens; blocks that devices share are none."""
    run, file = experiment(), tmp_path / "tuned.json"
    by = {
        mesh: [op.shape for op in ops_of(run, part_of(run, mesh))]
        for mesh in ("", "data=2", "data=2x2", "tensor=2", "seq=2")
    }
    assert [shape["rows"] for shape in by["data=2"]] == [2, 2, 2, 2]
    assert [shape["rows"] for shape in by["data=2x2"]] == [1, 1, 1, 1]
    assert [(x["heads"], x["groups"]) for x in by["tensor=2"]] == [(1, 1), (2, 2), (2, 1)]
    assert [x["tokens"] for x in by["seq=2"]] == [16, 16]  # attention goes round a ring
    file.write_text(json.dumps({"entries": [entry(mesh="data=2")]}))
    assert with_tuned(run, file, mesh="data=2").model.block.layers[0].mixer.chunk == 16
    for mesh, message in (("", "no entry"), ("data=3", "not divisible"), ("data=-1", "how many")):
        with pytest.raises(UserError, match=message):
            with_tuned(run, file, mesh=mesh)


@pytest.mark.parametrize("variant", RECIPES)
def test_a_memory_of_any_kind_has_ways_that_build(variant):
    """With default sizes: keys are fewer than values in some, and one has no decay."""
    run = experiment()
    block = Block(LinearMemory(variant=variant, heads=2))
    run = dataclasses.replace(run, model=LanguageModel(block, width=16, depth=1, vocab=8))
    (op, _) = ops_of(run, part_of(run))
    case = case_of(op, run.model)
    arrays = jax.eval_shape(lambda: case.draw(0))
    shapes = [jax.eval_shape(way, *arrays) for way in (case.make(case.default), case.plainest)]
    assert shapes[0] == shapes[1]


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
    return config(with_tuned(RUN, FILE, mesh="tensor=2") if FILE.exists() else RUN)
"""


def test_a_run_is_tuned_and_trained_with_what_was_found(
    command, workshop, tmp_path, clock, monkeypatch
):
    """From its own default sizes to the configuration that its folder keeps."""
    monkeypatch.setattr(tuning, "CHUNKS", (64,))
    file, own, run = tmp_path / "tuned.json", tmp_path / "own.py", tmp_path / "run"
    own.write_text(CONFIG.format(file=file, text=workshop.path / "corpus.txt"))
    clock(*[[(5, 5, 5), (1, 1, 1)]] * 2)
    result = command("tune", f"--config={own}", "--mesh=tensor=2", f"--out={file}", "--json")
    assert result.code == 0, result.err
    (found,) = json.loads(result.out)
    assert found["best"] == {"method": "associative", "chunk": 64}
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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--ops=atention",), "unknown op 'atention'; did you mean 'attention'?"),
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
    found = Tuned({}, {}, {"block_size": best})

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
