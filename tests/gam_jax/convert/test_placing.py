"""A folder is read straight onto the devices of a mesh, and written from there."""

import functools
import json
import pathlib
import shlex
import sys
import tracemalloc

import jax
import numpy as np
import pytest

from gam_jax.convert import from_hf, placing, tensor_file, to_hf
from gam_jax.convert.folder import open_arrays, read_config, read_tensors
from gam_jax.convert.hf import architecture, open_hf, write
from gam_jax.convert.lazy import Lazy
from gam_jax.convert.placing import placed, where
from sharding.checkpoint import names
from sharding.layout import Layout
from sharding.mesh import make_mesh
from sharding.parallel import Parallel
from tests import loading_memory
from tests.gam_jax.convert.test_hf import NAMES, PARSCALE

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
WORDS = "fully_sharded+sequence+tensor"
ODD = (
    "hf_mamba2_biased",
    "hf_granite4_dense",
)
"""Folders with heads that two devices do not divide."""


@functools.cache
def layout(preset="data+sequence+tensor"):
    sizes = {"data": 2, "tensor": 2} if "tensor" in preset else {"data": 4}
    return Layout(make_mesh(**sizes, devices=jax.devices()[:4]), Parallel(preset))


def check_same(found, wanted):
    found, wanted = names.flat(found), names.flat(wanted)
    assert found.keys() == wanted.keys()
    for name, leaf in wanted.items():
        assert found[name].dtype == leaf.dtype
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)


@pytest.mark.parametrize("name", [*NAMES, PARSCALE])
def test_on_a_mesh_are_the_numbers_of_one_device(name):
    model, wanted = from_hf(GOLDEN / name)
    words = "fully_sharded+sequence" if name in ODD else WORDS
    on_mesh, found = from_hf(GOLDEN / name, layout(words))
    assert on_mesh == model
    check_same(found, wanted)
    like = where(model.table(), layout(words))
    for path, leaf in names.flat(found).items():
        assert leaf.sharding == names.flat(like)[path].sharding


@pytest.mark.parametrize("name", [*NAMES, PARSCALE])
def test_no_family_reads_a_number_before_it_is_asked_for(name, monkeypatch):
    """Neither in reading nor in writing."""
    model, params = from_hf(GOLDEN / name)
    official = architecture(read_config(GOLDEN / name))

    def read(self, *args, **kwargs):
        raise AssertionError("it is read")

    monkeypatch.setattr(Lazy, "__array__", read)
    assert open_hf(GOLDEN / name)[0] == model
    write(model, params, official)


def test_they_are_stored_as_the_model_says():
    """bfloat16 is float32 rounded; what stays precise is float32."""
    model, found = from_hf(GOLDEN / "hf_mamba2", param_dtype="bfloat16")
    assert model.param_dtype == "bfloat16"
    _, wide = from_hf(GOLDEN / "hf_mamba2")
    dtypes = {name: param.dtype for name, param in names.flat(model.stored_table()).items()}
    assert set(dtypes.values()) == {"float32", "bfloat16"}
    wide = names.flat(wide)
    check_same(names.flat(found), {name: wide[name].astype(dtypes[name]) for name in wide})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Llama of nine blocks in bfloat16: 20 MB."""
    path = tmp_path_factory.mktemp("loading") / "llama"
    loading_memory.make(path, 20)
    return path


@pytest.fixture
def counted(monkeypatch):
    """Bytes that are read."""
    read, sizes = tensor_file.read_into, []

    def note(file, place, into, path):
        sizes.append(len(into))
        read(file, place, into, path)

    monkeypatch.setattr(tensor_file, "read_into", note)
    return sizes


def test_a_process_reads_the_bytes_of_its_own_shards(folder, counted, monkeypatch):
    """One device of a mesh of four, as if it were alone in its process: no byte more, where gaps
    of less than a page are not read over."""
    monkeypatch.setattr(tensor_file, "GAP", 1)
    model, params = open_hf(folder)
    assert not sum(counted)
    like = where(model.table(), layout(WORDS))
    own = jax.tree.map(_of_first_device, params, like)
    wanted = sum(x.nbytes // 2 for x in names.flat(own).values())
    whole = sum(x.array.size * 2 for x in open_arrays(folder).values())
    assert wanted < 0.26 * whole
    assert sum(counted) == wanted
    counted.clear()
    placed(params, where(model.table(), None))
    assert sum(counted) == whole


def _of_first_device(array, like):
    index = like.sharding.addressable_devices_indices_map(like.shape)[jax.devices()[0]]
    return array[tuple(index)].part(array[tuple(index)].whole)


def test_the_host_holds_a_parameter_at_a_time(folder, monkeypatch):
    """What NumPy sets aside while one is read: it, and pieces of a file."""
    model, params = open_hf(folder)
    like = where(model.table(), None)
    placed(params, like)  # imports, and what is set aside once
    most, read = {}, placing.on_devices

    def measured(array, like, tell):
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        found = read(array, like, tell)
        most[id(array)] = tracemalloc.get_traced_memory()[1] - before, found.nbytes
        return found

    monkeypatch.setattr(placing, "on_devices", measured)
    tracemalloc.start()
    placed(params, like)
    tracemalloc.stop()
    largest = max(size for _, size in most.values())
    assert largest < sum(size for _, size in most.values()) / 4
    assert all(peak < size + 2e6 for peak, size in most.values())


@pytest.mark.parametrize("way", ["read float32", "read bfloat16", "write float32", "write stored"])
@pytest.mark.slow
def test_memory_is_hardly_more_than_what_is_kept(way, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "memory" / "llama"
    if not path.exists():
        loading_memory.make(path, 200)
    kept, most = loading_memory.measured(way, path)
    assert kept > 2e8
    assert most < 1.2 * kept


@pytest.mark.parametrize("name", ["hf_llama", "hf_falcon_h1", "hf_deepseek_v3"])
def test_what_lies_on_a_mesh_is_written_as_from_one_device(name, tmp_path):
    to_hf(*from_hf(GOLDEN / name, layout(WORDS)), tmp_path / "mesh", 9_000)
    found, wanted = read_tensors(tmp_path / "mesh"), read_tensors(GOLDEN / name)
    assert found.keys() == wanted.keys()
    for key, array in wanted.items():
        np.testing.assert_array_equal(found[key], array, err_msg=key)


def test_arrays_may_be_written_as_they_are_stored(folder, tmp_path):
    """bfloat16 in, bfloat16 out: the same bytes of each array, in files of a given size."""
    model, params = from_hf(folder, param_dtype="bfloat16")
    to_hf(model, params, tmp_path / "out", 4_000_000, as_stored=True)
    found, wanted = open_arrays(tmp_path / "out"), open_arrays(folder)
    assert found.keys() == wanted.keys()
    for name, (dtype, array) in wanted.items():
        assert dtype == "BF16"
        precise = name == "model.norm.weight"
        assert found[name].dtype == ("F32" if precise else dtype)
        np.testing.assert_array_equal(found[name].array, array)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 1
    assert all(file.stat().st_size < 4_010_000 for file in files)


PROGRAM = """
import pathlib, sys
import numpy as np
from sharding import processes
processes.emulate_from_environment(); processes.join()
from gam_jax.convert import from_hf, placing, tensor_file, to_hf
from sharding.layout import Layout
from sharding.parallel import Parallel
from sharding.mesh import make_mesh
read, sizes = tensor_file.read_into, []
def note(file, place, into, path):
    sizes.append(len(into)); read(file, place, into, path)
tensor_file.read_into, tensor_file.GAP = note, 1
folder, out = map(pathlib.Path, sys.argv[1:])
mesh = make_mesh(data=2, tensor=2)
model, params = from_hf(folder, Layout(mesh, Parallel("fully_sharded+sequence+tensor")))
(out.parent / f"read-{processes.rank()}").write_text(str(sum(sizes)))
to_hf(model, params, out, 4_000_000)
"""


@pytest.mark.slow
def test_two_processes_read_their_ranges_and_write_one_folder(folder, tmp_path, workshop):
    (tmp_path / "program.py").write_text(PROGRAM)
    words = [sys.executable, str(tmp_path / "program.py"), str(folder), str(tmp_path / "out")]
    launch = ("--processes=2", "--devices_per_process=2", "--")
    result = workshop.run("launch", *launch, "sh", "-c", f"exec {shlex.join(words)}")
    assert result.code == 0, result.err
    whole = sum(x.array.size * 2 for x in open_arrays(folder).values())
    for rank in range(2):  # half of the devices each
        assert int((tmp_path / f"read-{rank}").read_text()) == pytest.approx(whole / 2, rel=1e-3)
    found, wanted = read_tensors(tmp_path / "out"), read_tensors(folder)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
