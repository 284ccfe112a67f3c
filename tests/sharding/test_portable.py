"""What goes out of a checkpoint is as it was saved; what comes in is checked before."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from sharding.checkpoint import Checkpoints, manifest
from sharding.checkpoint.__main__ import main
from sharding.checkpoint.portable import load
from sharding.errors import UserError
from tests.arrays import put

W = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run of one checkpoint, which no test changes."""
    run = tmp_path_factory.mktemp("saved") / "run"
    state = {"params": {"w": put(W), "b": put([1.5], jnp.bfloat16)}}
    with Checkpoints(run / "checkpoints") as checkpoints:
        checkpoints.save(3, state, {"position": 1}, axes={"params/w": ("embed", None)})
        checkpoints.wait()
    (run / "config.json").write_text("{}")
    return run


@pytest.fixture
def run(saved, tmp_path):
    """A copy of it."""
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def with_manifest(run, change):
    """Rewrites the manifest, its own checksum too: files are as it says, arrays are not."""
    folder = run / "checkpoints" / "3"
    found = manifest.read(folder)
    arrays = {**found.arrays, "params/w": change(found.arrays["params/w"])}
    manifest.write(folder, dataclasses.replace(found, arrays=arrays))


def with_fact(**fields):
    return lambda stored: dataclasses.replace(
        stored, fact=dataclasses.replace(stored.fact, **fields)
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda stored: dataclasses.replace(stored, digest="0" * 16), "other values than were"),
        (with_fact(shape=(3, 2)), "cannot be read"),
        (with_fact(shape=(2, 4)), "cannot be read"),
        (with_fact(shape=(6,)), "is no array of a checkpoint"),
        (with_fact(dtype="int32"), "cannot be read"),
    ],
    ids=["digest", "shape", "larger", "axes", "dtype"],
)
def test_what_is_not_as_it_was_saved_does_not_go_out(run, tmp_path, capsys, change, words):
    with_manifest(run, change)
    file = tmp_path / "w.safetensors"
    assert main(["export", str(run), "--to", str(file)]) == 2
    said = capsys.readouterr().err
    assert "'params/w'" in said
    assert "checkpoint 3" in said
    assert words in said
    assert said.count("\n") == 1
    assert not file.exists()


def test_a_json_file_that_is_no_text_is_named(run, tmp_path, capsys):
    (run / "config.json").write_bytes(b"\xff\xfe")
    assert main(["export", str(run), "--to", str(tmp_path / "w.safetensors")]) == 2
    assert "cannot read the JSON files" in capsys.readouterr().err


def test_every_dtype_of_a_checkpoint_goes_out_as_it_is(run, tmp_path):
    file = tmp_path / "w.safetensors"
    assert main(["export", str(run), "--to", str(file)]) == 0
    found = load_file(file)
    np.testing.assert_array_equal(found["w"], W)
    assert (found["w"].dtype, found["b"].dtype) == (np.float32, ml_dtypes.bfloat16)
    with safe_open(file, "np") as opened:
        assert json.loads(opened.metadata()["checkpoint"])["step"] == 3


def notes(**values):
    return {"checkpoint": json.dumps(values)}


BAD = [
    ("step below 0", {"w": W}, notes(step=-1), "step='-1'"),
    ("step no whole number", {"w": W}, notes(step=1.5), "step='1.5'"),
    ("step a truth value", {"w": W}, notes(step=True), "step='True'"),
    ("step text", {"w": W}, notes(step="7"), "step='7'"),
    ("step huge", {"w": W}, notes(step=10**40), "step='1000"),
    ("step null", {"w": W}, notes(step=None), "step='None'"),
    ("notes no JSON", {"w": W}, {"checkpoint": "{"}, "is not JSON"),
    ("notes deep", {"w": W}, {"checkpoint": "[" * 100_000}, "is not JSON"),
    ("notes a list", {"w": W}, {"checkpoint": "[]"}, "is no object"),
    ("notes of something else", {"w": W}, notes(code="x"), "has 'code'"),
    ("extra a list", {"w": W}, notes(extra=[]), "'extra' that is no object"),
    ("axes a list", {"w": W}, notes(axes=[]), "axes or files that are no object"),
    ("axes of nothing", {"w": W}, notes(axes={"params/x": ["a"]}), "'params/x' that do not fit"),
    ("too few axes", {"w": W}, notes(axes={"params/w": ["a"]}), "'params/w' that do not fit"),
    ("axes no text", {"w": W}, notes(axes={"params/w": [1, 2]}), "'params/w' that do not fit"),
    ("file outside", {"w": W}, notes(files={"../x.json": "{}"}), "'../x.json'"),
    ("file of a path", {"w": W}, notes(files={"/tmp/x.json": "{}"}), "'/tmp/x.json'"),
    ("file no JSON", {"w": W}, notes(files={"config.json": "x"}), "'config.json'"),
    ("file no text", {"w": W}, notes(files={"config.json": 1}), "'config.json'"),
    ("file of half letters", {"w": W}, notes(files={"config.json": '"\ud800"'}), "'config.json'"),
    ("name of no part", {"a//b": W}, {}, "'a//b' cannot be the name"),
    ("name of dots", {"../b": W}, {}, "'../b' cannot be the name"),
    ("name with a root", {"/b": W}, {}, "'/b' cannot be the name"),
    ("name empty", {"": W}, {}, "'' cannot be the name"),
    ("name of two lines", {"a\nb": W}, {}, r"'a\nb' cannot be the name"),
    ("name too long", {"a" * 5000: W}, {}, "cannot be the name"),
    ("an array in an array", {"a": W, "a/b": W}, {}, "'a' is an array, and 'a/b' lies in it"),
    ("two of one place", {"a.b": W, "a/b": W}, {}, "would be one array"),
    ("64 bits", {"w": W.astype(np.float64)}, {}, "'w' is of dtype F64"),
    ("eight bits", {"w": W.astype(ml_dtypes.float8_e4m3fn)}, {}, "'w' is of dtype F8_E4M3"),
    ("no numbers", {"w": W[:0]}, {}, "'w' has no numbers"),
    ("no arrays", {}, {}, "holds no arrays"),
]


@pytest.mark.parametrize(
    ("arrays", "metadata", "words"), [case[1:] for case in BAD], ids=[case[0] for case in BAD]
)
def test_what_no_checkpoint_could_hold_does_not_come_in(arrays, metadata, words, tmp_path, capsys):
    file, run = tmp_path / "x.safetensors", tmp_path / "new"
    save_file(arrays, file, metadata=metadata or None)
    assert main(["import", str(file), "--run", str(run)]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not run.exists()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


@settings(max_examples=150)
@given(
    field=st.sampled_from(["step", "extra", "axes", "files", "other", None]),
    value=JSON.filter(lambda value: value not in (0, {}) and not isinstance(value, int)),
)
def test_any_notes_are_refused_in_one_line(tmp_path_factory, field, value):
    folder = tmp_path_factory.mktemp("notes")
    if field == "extra":
        value = [value]
    found = {field: value} if field else [value]
    save_file({"w": W}, folder / "x.safetensors", metadata={"checkpoint": json.dumps(found)})
    with pytest.raises(UserError) as raised:
        load(folder / "x.safetensors", folder / "new")
    assert "\n" not in str(raised.value)
    assert not (folder / "new").exists()
