"""What is frozen stands once: checkpoints name where, and read it from there or refuse."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sharding.checkpoint import CheckpointConfig, Checkpoints, Damaged, manifest
from sharding.checkpoint.diff import diff
from sharding.checkpoint.inspect import inspect
from sharding.checkpoint.portable import export, load
from sharding.errors import UserError
from sharding.mesh import make_mesh
from tests.arrays import put
from tests.sharding.test_checkpoint import abstract, assert_same

FROZEN = ("params/base", "params/half")


def state(step, base=0):
    own = np.random.default_rng(100 + base)
    return {
        "params": {
            "base": put(own.normal(size=(64, 64)), jnp.float32),
            "half": put(own.normal(size=(8, 4)), jnp.bfloat16),
            "side": put(np.full(4, step), jnp.float32),
        },
        "step": jnp.int32(step),
    }


def save(checkpoints, step, tree, frozen=FROZEN):
    checkpoints.save(step, tree, {"position": step}, frozen=frozen)
    checkpoints.wait()


def arrays(folder, step):
    return manifest.read(folder / str(step)).arrays


@pytest.fixture
def runs(tmp_path):
    """A run, and one that was begun from its checkpoint 7, with checkpoint 3."""
    base, own = tmp_path / "all" / "base" / "checkpoints", tmp_path / "all" / "own" / "checkpoints"
    with Checkpoints(base) as checkpoints:
        save(checkpoints, 7, state(7), ())
    with Checkpoints(own) as checkpoints:
        checkpoints.elsewhere = Checkpoints(base, read_only=True).standing(7)
        save(checkpoints, 3, state(3))
    return base, own


def restored(folder, step):
    tree = state(step)
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert_same(checkpoints.restore(step, abstract(tree)), tree)


def refused(folder, step=3):
    """The one line by which a checkpoint is refused."""
    with Checkpoints(folder, read_only=True) as checkpoints:
        checkpoints.check(step)  # its own files are whole: nobody may put it aside as damaged
        with pytest.raises(UserError) as found:
            checkpoints.restore(step, abstract(state(step)))
    assert not isinstance(found.value, Damaged)
    line = str(found.value)
    assert "bring that checkpoint back" in line
    assert "ln -s" in line
    return line


def test_frozen_arrays_are_not_written_and_are_restored_bit_for_bit(runs):
    base, own = runs
    restored(own, 3)
    places = {name: stored.place for name, stored in arrays(own, 3).items()}
    assert {name for name, place in places.items() if place} == {*FROZEN}
    assert places["params/base"] == manifest.Place(str(base), 7, "../../base/checkpoints")
    sizes = [sum(f.bytes for f in manifest.read(p).files.values()) for p in (base / "7", own / "3")]
    assert sizes[1] < sizes[0] / 2


def test_another_mesh_reads_them(runs):
    mesh = make_mesh(data=2, tensor=2, devices=jax.devices()[:4])
    split = NamedSharding(mesh, PartitionSpec("data", "tensor"))
    tree = abstract(state(3))
    tree["params"]["base"] = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=split)
    with Checkpoints(runs[1], read_only=True) as checkpoints:
        found = checkpoints.restore(3, tree)["params"]["base"]
    assert found.sharding == split
    np.testing.assert_array_equal(found, state(3)["params"]["base"])


def test_folders_that_move_together_are_read_where_they_are(runs, tmp_path):
    shutil.move(tmp_path / "all", tmp_path / "moved")
    restored(tmp_path / "moved" / "own" / "checkpoints", 3)


def test_a_run_that_moves_alone_finds_them_where_they_were(runs, tmp_path):
    shutil.move(runs[1], tmp_path / "far")
    restored(tmp_path / "far", 3)


def test_a_source_that_is_gone_is_refused_and_a_link_mends_it(runs, tmp_path):
    base, own = runs
    shutil.move(base, tmp_path / "elsewhere")
    assert "is not there" in refused(own)
    base.symlink_to(tmp_path / "elsewhere")
    restored(own, 3)


def test_a_source_of_other_values_is_refused(runs):
    base, own = runs
    shutil.rmtree(base)
    with Checkpoints(base) as checkpoints:
        save(checkpoints, 7, state(7, base=1), ())
    assert "other values" in refused(own)


@pytest.mark.parametrize("what", ["manifest.json", "arrays"])
def test_a_source_that_is_damaged_is_refused(runs, what):
    base, own = runs
    path = base / "7" / what
    if path.is_dir():
        path = max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "is damaged" in refused(own)


def test_looking_comparing_and_exporting_read_them_too(runs, tmp_path):
    base, own = runs
    found = inspect(str(own), verify=True)
    assert found["damaged"] == {}
    assert {row["name"] for row in found["arrays"] if "in" in row} == {*FROZEN}
    assert diff(f"{own}@3", str(base), only="params/base")["equal"]
    export(str(own), tmp_path / "a.safetensors")
    load(tmp_path / "a.safetensors", tmp_path / "again")
    assert diff(f"{own}@3", str(tmp_path / "again"), only="params/*")["equal"]
    shutil.rmtree(base)
    assert "is not there" in inspect(str(own), verify=True)["damaged"]["3"][0]
    for read in (inspect, diff, export):
        words = {inspect: (False,), diff: (str(own),), export: (tmp_path / "b",)}[read]
        with pytest.raises(UserError, match="is not there"):
            read(str(own), *words)


def test_who_was_begun_from_them_names_the_first_and_not_each_other(runs, tmp_path):
    base, own = runs
    with Checkpoints(tmp_path / "third") as checkpoints:
        checkpoints.elsewhere = Checkpoints(own, read_only=True).standing(3)
        save(checkpoints, 1, state(1))
    place = arrays(tmp_path / "third", 1)["params/base"].place
    assert place is not None
    assert place.folder == str(base)
    shutil.rmtree(own)
    restored(tmp_path / "third", 1)


def test_what_has_changed_is_written_however_it_is_named(runs):
    own = runs[1]
    with Checkpoints(own) as checkpoints:
        checkpoints.elsewhere = checkpoints.standing(3)
        tree = state(4)
        tree["params"]["base"] = tree["params"]["base"].at[3, 5].add(1e-6)
        save(checkpoints, 4, tree)
        assert_same(checkpoints.restore(4, abstract(tree)), tree)
    assert [arrays(own, 4)[name].place is None for name in FROZEN] == [True, False]


@pytest.mark.parametrize(
    ("frozen", "steps", "named"),
    [("source", (0, 5, 9, 12), 0), ("source", (4, 5, 9), None), ("once", (4, 5, 9), 4)],
)
def test_without_a_source_a_checkpoint_of_the_run_itself_holds_them(tmp_path, frozen, steps, named):
    with Checkpoints(tmp_path / "c", CheckpointConfig(keep=1, frozen=frozen)) as checkpoints:
        for step in steps:
            save(checkpoints, step, state(step))
        assert checkpoints.steps() == [*filter(lambda step: step == named, steps), steps[-1]]
    place = arrays(tmp_path / "c", steps[-1])["params/base"].place
    assert (place and place.step) == named
    shutil.move(tmp_path / "c", tmp_path / "d")
    restored(tmp_path / "d", steps[-1])


def test_each_holds_all_if_that_is_asked_for(runs):
    config = CheckpointConfig(frozen="each")
    with Checkpoints(runs[1], config) as checkpoints:
        checkpoints.elsewhere = checkpoints.standing(3)
        save(checkpoints, 4, state(4))
    shutil.rmtree(runs[0])
    restored(runs[1], 4)


def test_what_others_read_from_is_not_removed(runs):
    base, own = runs
    with Checkpoints(base, read_only=True) as checkpoints:
        assert checkpoints.pin(7)
    with Checkpoints(base, CheckpointConfig(keep=1)) as checkpoints:
        for step in (8, 9):
            save(checkpoints, step, state(step), ())
        assert checkpoints.steps() == [7, 9]
    restored(own, 3)


def test_a_program_that_cannot_read_such_a_checkpoint_says_so(runs):
    """The form is another only where something stands elsewhere."""
    own = json.loads((runs[1] / "3" / manifest.FILE).read_text())["manifest"]
    base = json.loads((runs[0] / "7" / manifest.FILE).read_text())["manifest"]
    assert (own["format"], base["format"]) == (2, 1)
    assert "place" not in str(base["arrays"])
    own["format"] = 3
    (runs[1] / "3" / manifest.FILE).write_text(json.dumps({"sha256": "", "manifest": own}))
    with pytest.raises(Damaged, match="of format 3, this program reads 2"):
        Checkpoints(runs[1], read_only=True).manifest(3)


def test_an_unknown_place_for_what_is_frozen_is_refused():
    with pytest.raises(UserError, match=r"checkpoint.frozen"):
        CheckpointConfig(frozen="sometimes")
