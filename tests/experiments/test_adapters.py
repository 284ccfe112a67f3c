"""Adapters trained by commands, written for PEFT and for transformers, and read back."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from gam_jax.convert import from_hf, from_peft
from gam_jax.convert.folder import open_file, read_tensors
from gam_jax.params import path_name
from gam_jax.training.folder import RunFolder, load_params
from sharding.layout import Layout
from sharding.mesh import make_mesh
from tests.model_folder import GOLDEN, conversations, model_folder
from tests.workshop import metrics_of

ADAPT = ("--adapt=mixer/*,ffn/*", "--rank=2", "--alpha=4", "--rooted")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model folder, and conversations."""
    path = tmp_path_factory.mktemp("adapters")
    model_folder(path / "llama")
    conversations(path / "my.jsonl")
    return path


@pytest.fixture
def tuned(place, command):
    """A run of two steps on four devices in shards, and two more on one device."""
    run = place / "run"
    if not run.exists():
        fields = {
            "data.name": f"text:{place / 'my.jsonl'}",
            "data.format": "chat",
            "data.dir": place / "data",
            "data.window": 48,
            "train.batch": 4,
            "train.steps": 4,
            "train.log_every": 1,
            "checkpoint.keep": 9,
            "optimizer.learning_rate": 1e-2,
        }
        common = (f"--run={run}", *ADAPT, *(f"--config.{k}={v}" for k, v in fields.items()))
        sharded = ("--mesh=data=4", "--config.parallel.preset=fully_sharded")
        folder = f"--init=hf:{place / 'llama'}"
        first = command("train", *common, folder, *sharded, "--config.train.stop_at=2")
        assert first.code == 0, first.err
        assert "missing: 14 (blocks/adapters/ffn/w_gate/a" in first.err
        second = command("train", *common, "--resume", "--mesh=data=1")
        assert second.code == 0, second.err
    return run


def params_of(run):
    folder = RunFolder(run)
    experiment = folder.experiment()
    layout = Layout(make_mesh(devices=jax.devices()[:1]))
    return experiment, load_params(folder, experiment, layout)[1]


def test_adapters_alone_are_trained(place, tuned):
    """No bit of what was there is another, on a mesh in shards and after it."""
    experiment, params = params_of(tuned)
    assert experiment.optimizer.only == "*/adapters/*"
    _, before = from_hf(place / "llama")
    old = {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(before)}
    new = {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}
    own = {name for name in new if "/adapters/" in name}
    assert new.keys() - own == old.keys()
    for name, x in old.items():
        bits = (np.asarray(one).view(np.int32) for one in (x, new[name]))
        np.testing.assert_array_equal(*bits, err_msg=name)
    assert all(np.abs(new[name]).max() > 1e-3 for name in own)
    losses = [row["loss"] for row in metrics_of(tuned) if "loss" in row]
    assert losses[-1] < losses[0]


def test_it_is_written_for_peft_and_merged_for_transformers_and_read_back(tuned, place, command):
    peft, whole, again = place / "peft", place / "whole", place / "again"
    for args in (
        (f"--run={tuned}", f"--to-peft={peft}", "--base=my/llama"),
        (f"--run={tuned}", f"--to-hf={whole}"),
        (f"--from-hf={place / 'llama'}", f"--from-peft={peft}", f"--run={again}"),
    ):
        done = command("convert", *args)
        assert done.code == 0, done.err
    config = json.loads((peft / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (2, 4, True)
    assert config["base_model_name_or_path"] == "my/llama"
    assert (whole / "tokenizer.json").is_file()
    before, after = read_tensors(place / "llama"), read_tensors(whole)
    a, b = (f"base_model.model.model.layers.1.mlp.up_proj.lora_{x}.weight" for x in "AB")
    arrays = {
        name: np.asarray(x.array)
        for name, x in open_file(peft, "adapter_model.safetensors").items()
    }
    name = "model.layers.1.mlp.up_proj.weight"
    wanted = before[name] + 4 / 2**0.5 * arrays[b] @ arrays[a]
    np.testing.assert_allclose(after[name], wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(after["lm_head.weight"], before["lm_head.weight"])
    (experiment, params), (other, same) = params_of(tuned), params_of(again)
    assert other.optimizer.only == experiment.optimizer.only
    jax.tree.map(np.testing.assert_array_equal, same, params)
    sampled = command("sample", f"--run={again}", "--prompt=ab", "--tokens=4", "--json")
    assert sampled.code == 0, sampled.err


def test_adapters_of_peft_are_added_to_a_run(place, command):
    base, run = place / "base", place / "added"
    source, adapters = f"--from-hf={place / 'llama'}", f"--from-peft={GOLDEN / 'peft_llama'}"
    assert command("convert", source, f"--run={base}").code == 0
    done = command("convert", adapters, f"--base={base}", f"--run={run}")
    assert done.code == 0, done.err
    model, params = from_peft(*from_hf(place / "llama"), GOLDEN / "peft_llama")
    experiment, found = params_of(run)
    assert experiment.model.block == model.block
    jax.tree.map(np.testing.assert_array_equal, found, params)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("train", ["--rank=4"], "--rank is for adapters: say which matrices"),
        ("train", ["--adapt=mixer/gaet"], "the nearest are mixer/gate"),
        ("train", ["--adapt=mixer/*", "--alpha=0"], "alpha"),
        ("convert", ["--from-peft=/nowhere"], "--from-peft with --from-hf or --base"),
        ("convert", ["--to-peft=/x", "--to-hf=/y"], "give --run, and one of"),
    ],
)
def test_bad_input_is_one_line(name, args, message, command, tmp_path):
    result = command(name, f"--run={tmp_path / 'run'}", *args)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert message in result.err


def test_other_adapters_than_a_run_has_are_refused(tuned, command):
    result = command("train", f"--run={tuned}", "--resume", "--adapt=mixer/*", "--rank=2")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "adapters of rank=2, alpha=4 on 'mixer/*,ffn/*' already" in result.err


def test_an_audit_has_no_formula_where_some_parameters_are_frozen(command):
    small = ("--config.model.width=16", "--config.model.depth=1", "--config.data.window=32")
    found = command("audit", "--adapt=ffn/*", "--mesh=data=2", "--nocompile", "--json", *small)
    assert found.code == 0, found.err
    result = json.loads(found.out)
    assert result["agree"] is None
    assert result["memory"]["optimizer state"] < result["memory"]["parameters"]
