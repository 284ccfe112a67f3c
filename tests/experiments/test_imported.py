"""A run that begins with a model folder: what of it is taken, and what of it may be another."""

from __future__ import annotations

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from experiments.imported import RATE, Imported
from gam_jax.convert import from_hf
from gam_jax.convert.hf import model_of
from gam_jax.data.text import Text
from gam_jax.master import first_values
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.training.state import begun_from, init_state
from gam_jax.training.step import make_train_step, put_batch
from sharding.checkpoint import names
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import make_mesh
from sharding.parallel import Parallel
from tests.gam_jax.convert.test_hf import NAMES, PARSCALE
from tests.model_folder import GOLDEN, model_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of 33 ids where the model has 48."""
    return model_folder(tmp_path_factory.mktemp("hf") / "llama")


@pytest.mark.parametrize("name", [*NAMES, PARSCALE])
def test_a_folder_is_known_to_be_whole_before_an_array_is_read(name, tmp_path):
    path = shutil.copytree(GOLDEN / name, tmp_path / "model")
    file = path / "model.safetensors"
    data = file.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    file.write_bytes(data[:header] + b"\xff" * (len(data) - header))  # numbers that are none
    assert model_of(path) == from_hf(GOLDEN / name)[0]
    file.write_bytes(data.replace(b"norm.weight", b"morn.weight", 1))
    with pytest.raises(UserError, match=r"norm\.weight"):
        model_of(path)


def test_the_experiment_is_the_model_on_text_of_its_tokenizer(folder):
    experiment = Imported.open(folder).experiment
    assert experiment.model == from_hf(folder)[0]
    assert isinstance(experiment.data, Text)
    assert experiment.data.tokenizer == str(folder / "tokenizer.json")
    assert (experiment.data.window, experiment.data.separators) == (64, False)
    assert experiment.optimizer.learning_rate == RATE


@pytest.mark.parametrize("tokens", [(), ("<|new|>",)])
@pytest.mark.parametrize("preset", ["data", "fully_sharded"])
def test_parameters_lie_as_new_ones_do_with_the_folders_numbers(folder, tokens, preset):
    imported = Imported.open(folder, tokens)
    experiment = imported.experiment
    table = experiment.model.table()
    layout = Layout(make_mesh(data=4, devices=jax.devices()[:4]), Parallel(preset=preset))
    optimizer = make_optimizer(experiment.optimizer, 9, table)
    fresh = init_state(experiment.model, optimizer, layout, 0).params
    found, report = imported.start(table, fresh)
    wanted, old = names.flat(imported.read()), names.flat(from_hf(folder)[1])
    for name, array in names.flat(found).items():
        np.testing.assert_array_equal(array, wanted[name], err_msg=name)
        assert array.sharding == names.flat(fresh)[name].sharding
        kept = slice(0, 33) if name in ("embedding", "head") else slice(None)
        np.testing.assert_array_equal(array[kept], np.asarray(old[name])[kept], err_msg=name)
    assert set(report.taken) | set(report.resized) == wanted.keys()
    assert set(report.resized) == ({"embedding", "head"} if tokens else set())


def test_a_vocabulary_grows_where_spare_rows_do_not_suffice(folder):
    imported = Imported.open(folder, [f"<|{i}|>" for i in range(17)])
    assert (imported.model.vocab, imported.added[0], imported.added[-1]) == (50, 33, 49)
    assert imported.read()["embedding"].shape == (50, 24)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"width": 48}, "model.width=48 but the model of .* has 24"),
        ({"depth": 3}, "model.depth=3"),
        ({"vocab": 64}, "model.vocab=64 .*: add tokens by --add_tokens"),
        ({"tied": True}, "model.tied=True"),
        ({"logit_scale": 2.0}, "model.logit_scale=2.0"),
    ],
)
def test_another_model_is_refused_by_the_name_of_its_field(folder, changes, told):
    imported = Imported.open(folder)
    with pytest.raises(UserError, match=told):
        imported.check_model(dataclasses.replace(imported.model, **changes))


def test_how_it_is_computed_may_be_another(folder):
    imported = Imported.open(folder)
    free = {"dropout": 0.1, "remat": True, "dtype": "bfloat16", "unroll": 2}
    imported.check_model(dataclasses.replace(imported.model, **free))


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    folder = model_folder(tmp_path / "llama", special=tuple(f"<|{i}|>" for i in range(20)))
    with pytest.raises(UserError, match="has 51 ids, the model 48: it is not this model's"):
        Imported.open(folder)


def test_tokens_are_added_to_the_tokenizer_that_is_read_with(folder):
    imported = Imported.open(folder, ["<|new|>"])
    data = imported.experiment.data
    assert imported.files(data) == {"tokenizer.json": imported.tokenizer.to_text()}
    with pytest.raises(UserError, match=r"--add_tokens adds to .*leave data.tokenizer out"):
        imported.files(dataclasses.replace(data, tokenizer="bytes"))
    assert Imported.open(folder).files(dataclasses.replace(data, tokenizer="bytes")) is None


def test_a_folder_that_changes_while_it_is_read_is_refused(tmp_path):
    imported = Imported.open(model_folder(tmp_path / "llama"))
    shutil.copy(GOLDEN / "hf_qwen2" / "config.json", tmp_path / "llama")
    shutil.copy(GOLDEN / "hf_qwen2" / "model.safetensors", tmp_path / "llama")
    with pytest.raises(UserError, match="has changed while it was read"):
        imported.read()


def test_what_is_not_trained_is_read_as_it_is_stored(folder):
    """float32 is a master's alone."""
    imported = Imported.open(folder)
    model = dataclasses.replace(imported.model, param_dtype="bfloat16")
    optimizer = make_optimizer(OptimizerConfig(only="head"), 9, model.table())
    state = init_state(model, optimizer, Layout(make_mesh(devices=jax.devices()[:1])), 0)
    first = first_values(state.params, state.opt_state)
    found, _ = imported.start(model.stored_table(), first)
    wide = {name for name, leaf in names.flat(found).items() if leaf.dtype == np.float32}
    assert wide == {"head", "final_norm/scale"}
    begun = begun_from(state, found)
    assert {name: leaf.dtype for name, leaf in names.flat(begun.params).items()} == {
        name: param.dtype for name, param in names.flat(model.stored_table()).items()
    }
    np.testing.assert_array_equal(begun.opt_state.master["head"], from_hf(folder)[1]["head"])


def stepped(folder, layout):
    """The loss of a step on the folder's numbers, and the parameters after it."""
    imported = Imported.open(folder)
    model = imported.model
    optimizer = make_optimizer(OptimizerConfig(warmup=0), 9, model.table())
    state = init_state(model, optimizer, layout, 0)
    wide, _ = imported.start(model.stored_table(), first_values(state.params, state.opt_state))
    tokens = np.random.default_rng(0).integers(0, model.vocab, (4, 17)).astype(np.int32)
    weights = np.ones((4, 16), np.float32)
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}
    step = make_train_step(model, optimizer, layout)
    state, metrics = step(begun_from(state, wide), put_batch(model, layout, batch))
    return float(metrics["loss"]), jax.device_get(state.params)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hf_llama", "hf_mamba2", "hf_qwen3_moe", "hf_gemma3"])
def test_an_imported_model_trains_a_step_on_a_mesh_as_on_one_device(name, tmp_path):
    folder = model_folder(tmp_path / "model", name, special=())
    mesh = make_mesh(data=2, tensor=2, devices=jax.devices()[:4])
    loss, params = stepped(folder, Layout(mesh))
    alone, wanted = stepped(folder, Layout(make_mesh(devices=jax.devices()[:1])))
    assert loss == pytest.approx(alone, rel=1e-5)
    before = names.flat(from_hf(folder)[1])
    for path, leaf in names.flat(params).items():
        near = np.isclose(leaf, names.flat(wanted)[path], atol=1e-5)
        assert near.mean() > 0.99, path  # signs of gradients near zero decide a first step
        assert (leaf != np.asarray(before[path])).any()
