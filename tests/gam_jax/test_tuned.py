"""What was found for an op is used for its shape, on its device, and where a config asks for it."""

from __future__ import annotations

import dataclasses
import json

import jax
import pytest

from experiments.tuning import (
    cases_of,
)
from gam_jax.data import Text
from gam_jax.layers import (
    MLP,
    Attention,
    Block,
    FusedDelta,
    LatentAttention,
    LinearMemory,
    Mamba,
    Mamba2,
    MinimalRNN,
    MoE,
    Pattern,
)
from gam_jax.layers.base import as_usual
from gam_jax.layers.linear_memory import RECIPES
from gam_jax.models import LanguageModel
from gam_jax.ops.routing import Capacity
from gam_jax.training import Experiment, TrainConfig
from gam_jax.tuned import as_it_is, device_name, read_tuned, with_tuned
from gam_jax.tuning.ops import Part
from gam_jax.tuning.table import BY_CLASS, DEFAULTS, TUNABLE, op_of, ops_of, part_of
from sharding.errors import UserError


def experiment():
    memory = LinearMemory(heads=2, variant="gated_deltanet", chunk=64)
    other = dataclasses.replace(memory, heads=4)
    attention = Attention(heads=4, kv_heads=2)
    blocks = Pattern((Block(memory), Block(other), Block(attention)), (0, 1, 2))
    return Experiment(
        LanguageModel(blocks, width=16, depth=1), Text(window=32), TrainConfig(batch=4)
    )


def entry(number=0, mesh="", leave=(), **changes):
    run = experiment()
    op = list(ops_of(run, part_of(run, mesh)))[number]
    found = {
        "op": op.name,
        "shape": op.shape,
        "dtype": op.dtype,
        "device": device_name(),
        "settings": DEFAULTS[op.name] if number else {"method": "associative", "chunk": 16},
        "default": DEFAULTS[op.name],
        "seconds": 1.0,
        "default_seconds": 2.0,
    }
    return {name: value for name, value in {**found, **changes}.items() if name not in leave}


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
    with pytest.raises(UserError, match="write it by gam tune"):
        with_tuned(before, tmp_path / "none.json")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (None, "no file that gam tune wrote"),
        ([{}], "no file"),
        ([1], "no file"),
        ([entry(leave=("op",))], "no file"),
        ([entry(settings={"heads": 1})], "sets heads, which gam tune does not find for memory"),
        ([entry(default={"heads": 1})], "sets heads"),
        ([entry(op="memory")], "unknown op 'memory'"),
        ([entry(settings={"chunk": "64"})], "number 0, whose chunk is not a whole number"),
        ([entry(settings={"chunk": True})], "chunk is not a whole number"),
        ([entry(settings={"chunk": -1})], "chunk is below 0"),
        ([entry(settings={"method": "chunky"})], "did you mean 'chunked'"),
        ([entry(3, settings={"remat": 1})], "remat is not true or false"),
        ([entry(shape=[])], "shape is of another type"),
        ([entry(shape={"rows": [1]})], "shape is of another type"),
        ([entry(seconds="1")], "seconds is no time"),
        ([entry(default_seconds=0)], "default_seconds is no time"),
        (
            [entry(), entry(2, settings={}), entry()],
            "two entries, numbers 0 and 2, for memory_scan",
        ),
    ],
)
def test_a_file_that_gam_tune_has_not_written_is_refused(entries, message, tmp_path):
    file = tmp_path / "tuned.json"
    file.write_text(json.dumps({} if entries is None else {"entries": entries}))
    with pytest.raises(UserError, match=message):
        read_tuned(file)


def test_50_and_50_0_are_one_number(tmp_path):
    """A JSON file may have written the one for the other."""
    run, file = experiment(), tmp_path / "tuned.json"
    capped = Pattern((Block(Attention(heads=4, soft_cap=50.0)),), (0,))
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, block=capped))
    shape = dict(next(iter(ops_of(run, part_of(run)))).shape)
    one = entry(op="attention", shape=shape | {"soft_cap": 50}, settings={"block_size": 8})
    file.write_text(json.dumps({"entries": [{**one, "default": {}}]}))
    assert with_tuned(run, file).model.block.layers[0].mixer.block_size == 8
    other = {**one, "shape": shape, "default": {}}
    file.write_text(json.dumps({"entries": [{**one, "default": {}}, other]}))
    with pytest.raises(UserError, match="two entries"):
        read_tuned(file)


def test_a_config_is_read_as_it_is_without_what_was_found(tmp_path, capsys):
    run = experiment()
    with as_it_is():
        assert with_tuned(run, tmp_path / "none.json") is run
    assert "tuned as it is without" in capsys.readouterr().err
    with pytest.raises(UserError, match="no such file"):
        with_tuned(run, tmp_path / "none.json")


def test_every_class_that_is_tuned_says_that_its_settings_change_nothing():
    for cls, of in BY_CLASS.items():
        assert {*of.default} <= {*cls.computed}, cls
        usual = {field.name: field.default for field in dataclasses.fields(cls)}
        assert {name: usual[name] for name in of.default} == dict(of.default), cls
    layer = Block(LinearMemory(chunk=8), MoE(method="ragged", strategy="gather"))
    assert as_usual(layer) == Block(LinearMemory(), MoE())


MODEL = LanguageModel(Block(MLP()), width=16, depth=1, vocab=8, logit_cap=30)
PART = Part(2, 32, {"heads": 2, "channel": 2, "ffn": 2}, frozenset({"tensor"}))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (Mamba2(width=16, head=4, groups=1), {"groups": 1, "heads": 4, "keys": 128, "values": 4}),
        (Mamba2(width=16, head=2, groups=4), {"groups": 2, "heads": 8, "keys": 128, "values": 2}),
        (FusedDelta(width=16, heads=4), {"rule": "delta", "groups": 2, "heads": 2, "keys": 4}),
        (Mamba(width=16), {"channels": 16, "state": 16}),
        (MinimalRNN(width=16), {"channels": 8}),
        (MoE(width=16), {"tokens": 64, "hidden": 32, "experts": 8, "chosen": 2, "bias": False}),
        (MoE(width=16, capacity=Capacity(1.0)), None),
        (Attention(width=16, sinks=True), None),
        (LatentAttention(width=16), {"heads": 2, "keys": 48, "values": 32}),
        (MLP(width=16), None),
        (MODEL, None),  # devices share its head
        (dataclasses.replace(MODEL, vocab=None), None),
    ],
)
def test_an_op_is_what_one_device_has(layer, shape):
    op = op_of(layer, PART, "float32")
    if shape is None:
        assert op is None
    else:
        assert shape.items() <= op.shape.items(), op.shape
        assert op.own.keys() == TUNABLE[op.name].default.keys()


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (Attention(width=16, kv_heads=1), "Attention.kv_heads=1"),
        (LinearMemory(width=15, heads=3), "key heads of LinearMemory=3"),
        (FusedDelta(width=15, heads=3), "FusedDelta.heads=3"),
        (Mamba2(width=6, head=4), "heads of Mamba2=3"),
        (MinimalRNN(width=5), "channels of MinimalRNN=5"),
        (MoE(width=16, ffn=MLP(hidden=3)), "hidden units of MoE.ffn=3"),
    ],
)
def test_what_devices_do_not_divide_is_refused_by_name(layer, name):
    with pytest.raises(UserError, match=f"{name} cannot be split over 2 devices"):
        op_of(layer, PART, "float32")


def test_a_model_takes_the_block_of_logits_that_was_found(tmp_path):
    run, file = dataclasses.replace(experiment(), model=MODEL), tmp_path / "tuned.json"
    op = next(ops_of(run, part_of(run, "data=2")))
    assert dict(op.shape) == {"tokens": 64, "width": 16, "vocab": 8, "soft_cap": 30}
    found = {"op": op.name, "shape": dict(op.shape), "settings": {"loss_block": 16}, "default": {}}
    file.write_text(json.dumps({"entries": [{**entry(), **found}]}))
    model = with_tuned(run, file, mesh="data=2").model
    assert dataclasses.replace(model, loss_block=0) == MODEL
    assert [own.loss_tokens("cpu") for own in (MODEL, model)] == [512, 16]


def test_a_mesh_that_a_run_would_refuse_is_refused():
    run = experiment()
    shared = dataclasses.replace(run.model, block=Block(Attention(heads=4, kv_heads=1)))
    memory = dataclasses.replace(run.model, block=Block(MinimalRNN()), streams=2)
    for model, mesh, message in (
        (shared, "tensor=2", "key"),
        (shared, "stream=2", "stream"),
        (shared, "worker=2", "worker"),
        (shared, "pipe=2", "pipe"),
        (memory, "stream=4", "stream"),
    ):
        with pytest.raises(UserError, match=message):
            part_of(dataclasses.replace(run, model=model), mesh)


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
    run = dataclasses.replace(run, model=LanguageModel(block, width=16, depth=1))
    case, _ = cases_of([*ops_of(run, part_of(run))], run.model)
    arrays = jax.eval_shape(lambda: case.draw(0))
    shapes = [jax.eval_shape(way, *arrays) for way in (case.make(case.default), case.plainest)]
    assert shapes[0] == shapes[1]
