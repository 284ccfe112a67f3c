"""Files of Hugging Face model folders that are damaged or hostile: each is refused in one line."""

import functools
import json
import pathlib
import re
import shutil

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from gam_jax.convert import from_hf
from gam_jax.convert.folder import CONFIG, INDEX, SINGLE, read_tensors
from tests.gam_jax.convert.test_reader import GOLDEN, outcome, refusal

LLAMA = GOLDEN / "hf_llama"


@functools.cache
def whole():
    """The model of the folder that is damaged here."""
    return from_hf(LLAMA)[0]


@pytest.fixture
def folder(tmp_path):
    """A copy of a whole folder, in one file."""
    path = tmp_path / "inner" / "llama"
    shutil.copytree(LLAMA, path)
    return path


def in_shards(folder, **places):
    """The same folder in two files, and an index with other places for some arrays."""
    tensors = read_tensors(folder)
    files = {"a.safetensors": {}, "b.safetensors": {}}
    for i, (name, array) in enumerate(tensors.items()):
        files["ab"[i % 2] + ".safetensors"][name] = array
    for file, arrays in files.items():
        safetensors.numpy.save_file(arrays, folder / file)
    found = {name: file for file, arrays in files.items() for name in arrays}
    (folder / SINGLE).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": found | places}))
    return files


def config_is(text):
    def damage(folder):
        (folder / CONFIG).write_bytes(text if isinstance(text, bytes) else text.encode())

    return damage


def index_is(value):
    def damage(folder):
        in_shards(folder)
        (folder / INDEX).write_text(value if isinstance(value, str) else json.dumps(value))

    return damage


def placed_in(place):
    def damage(folder):
        in_shards(folder, **{"lm_head.weight": place})
        outside = folder.parent / "outside.safetensors"
        safetensors.numpy.save_file({"lm_head.weight": np.zeros((48, 24), np.float32)}, outside)

    return damage


def arrays_are(change):
    def damage(folder):
        data = (folder / SINGLE).read_bytes()
        (folder / SINGLE).write_bytes(change(data))

    return damage


def header_is(header):
    text = json.dumps(header).encode()
    return arrays_are(lambda data: len(text).to_bytes(8, "little") + text + b"\0" * 64)


def linked(name):
    def damage(folder):
        shutil.move(folder / name, folder.parent / name)
        (folder / name).symlink_to(folder.parent / name)

    return damage


def twice(folder):
    files = in_shards(folder)
    both = {**files["a.safetensors"], **files["b.safetensors"]}
    safetensors.numpy.save_file(both, folder / "b.safetensors")


def swapped(folder):
    in_shards(folder)
    index = json.loads((folder / INDEX).read_text())
    other = {"a.safetensors": "b.safetensors", "b.safetensors": "a.safetensors"}
    index["weight_map"] = {name: other[file] for name, file in index["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps(index))


def both(folder):
    data = (folder / SINGLE).read_bytes()
    in_shards(folder)
    (folder / SINGLE).write_bytes(data)


def a_folder_instead(name):
    def damage(folder):
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


DAMAGE = [
    ("config not JSON", config_is("{"), "config.json is not JSON"),
    ("config empty", config_is(""), "config.json is not JSON"),
    ("config not text", config_is(b"\xff\xfe\x00"), "config.json is not UTF-8"),
    ("config a list", config_is("[]"), "config.json holds .*not an object"),
    ("config a number", config_is("1"), "config.json holds .*not an object"),
    ("config null", config_is("null"), "config.json holds .*not an object"),
    ("config deep", config_is("[" * 100_000 + "]" * 100_000), "nested deeper"),
    ("config of deep objects", config_is('{"a":' * 100_000), "nested deeper"),
    ("config with a huge integer", config_is('{"a": ' + "9" * 5000 + "}"), "not JSON"),
    ("config with a field twice", config_is('{"a": 1, "a": 2}'), "'a' twice"),
    ("config of no fields", config_is("{}"), "unknown architecture"),
    ("config a folder", a_folder_instead(CONFIG), "is no file"),
    ("config elsewhere", linked(CONFIG), "leads outside of that folder"),
    ("arrays elsewhere", linked(SINGLE), "leads outside of that folder"),
    ("arrays a folder", a_folder_instead(SINGLE), "is no file"),
    ("arrays empty", arrays_are(lambda data: b""), "cannot read .*model.safetensors"),
    ("arrays cut", arrays_are(lambda data: data[:-7]), "cannot read .*model.safetensors"),
    ("arrays cut early", arrays_are(lambda data: data[:40]), "cannot read .*model.safetensors"),
    ("arrays too long", arrays_are(lambda data: data + b"\0" * 9), "cannot read .*safetensors"),
    ("header too long", arrays_are(lambda data: b"\xff" * 8 + data[8:]), "cannot read"),
    ("header no JSON", arrays_are(lambda data: data[:8] + b"x" + data[9:]), "cannot read"),
    ("header a list", header_is([1]), "cannot read"),
    ("header of no dtype", header_is({"x": {"dtype": "F3"}}), "cannot read"),
    (
        "header beyond the file",
        header_is({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
        "cannot read",
    ),
    (
        "header of negative sizes",
        header_is({"x": {"dtype": "F32", "shape": [-4, -4], "data_offsets": [0, 64]}}),
        "cannot read",
    ),
    (
        "arrays of eight bits",
        header_is({"x": {"dtype": "F8_E4M3", "shape": [64], "data_offsets": [0, 64]}}),
        "'x' is of dtype F8_E4M3",
    ),
    ("index no JSON", index_is("{"), "index.json is not JSON"),
    ("index a list", index_is([]), "index.json holds .*not an object"),
    ("index without a map", index_is({}), "has no weight_map"),
    ("index of a list", index_is({"weight_map": ["a"]}), "has no weight_map"),
    ("index of numbers", index_is({"weight_map": {"x": 1}}), "not the name of a safetensors file"),
    ("index of nothing", index_is({"weight_map": {}}), "has no weight_map"),
    ("shard above", placed_in("../outside.safetensors"), "not the name of a safetensors file"),
    ("shard absolute", placed_in("/tmp/outside.safetensors"), "not the name of a safetensors"),
    ("shard below", placed_in("x/../a.safetensors"), "not the name of a safetensors file"),
    ("shard of Windows", placed_in("..\\outside.safetensors"), "not the name of a safetensors"),
    ("shard with NUL", placed_in("a\0.safetensors"), "not the name of a safetensors file"),
    ("shard no text", placed_in("\ud800.safetensors"), "is not UTF-8"),
    ("shard of a long name", placed_in("a" * 5000 + ".safetensors"), "not the name of a"),
    ("shard of another kind", placed_in("config.json"), "not the name of a safetensors file"),
    ("shard missing", placed_in("c.safetensors"), "cannot read .*c.safetensors"),
    ("index of other places", swapped, "which b.safetensors does not hold"),
    ("an array twice", twice, "both a.safetensors and b.safetensors hold"),
    ("both forms", both, "holds both model.safetensors and"),
]


@pytest.mark.parametrize(
    ("damage", "message"), [case[1:] for case in DAMAGE], ids=[case[0] for case in DAMAGE]
)
def test_a_damaged_folder_is_refused_in_one_line(damage, message, folder):
    damage(folder)
    assert re.search(message, refusal(from_hf, folder))


def test_a_folder_in_shards_is_the_folder_in_one_file(folder):
    in_shards(folder)
    assert from_hf(folder)[0] == whole()


def test_the_links_of_a_download_cache_are_followed(folder, tmp_path):
    snapshot, blobs = tmp_path / "repo" / "snapshots" / "abc", tmp_path / "repo" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in (CONFIG, SINGLE):
        shutil.copy(folder / name, blobs / name)
        (snapshot / name).symlink_to(pathlib.Path("../../blobs") / name)
    assert from_hf(snapshot)[0] == whole()


def check_damaged_bytes(folder, data):
    """Any damage to the header or to config.json: the same model, or one line."""
    name = data.draw(st.sampled_from([CONFIG, SINGLE]))
    content = bytearray((LLAMA / name).read_bytes())
    start = data.draw(st.integers(0, min(len(content), 3000) - 1))
    size = data.draw(st.integers(0, 8))
    content[start : start + size] = data.draw(st.binary(max_size=8))
    (folder / name).write_bytes(content)
    outcome(from_hf, folder)
    shutil.copy(LLAMA / name, folder / name)


@settings(max_examples=80)
@given(data=st.data())
def test_any_damage_of_bytes_is_one_line(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("bytes") / "llama"
    shutil.copytree(LLAMA, path)
    check_damaged_bytes(path, data)


@pytest.mark.slow
@settings(max_examples=3000)
@given(data=st.data())
def test_any_damage_of_bytes_is_one_line_at_length(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("bytes") / "llama"
    shutil.copytree(LLAMA, path)
    check_damaged_bytes(path, data)
