"""What is restored is what was saved, bit for bit, or it is refused by name."""

from __future__ import annotations

import dataclasses
import functools
import resource
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sharding.checkpoint import CannotSave, CheckpointConfig, Checkpoints, Damaged, manifest
from sharding.errors import UserError
from sharding.mesh import make_mesh
from tests.arrays import put

EXTRA = {"position": 12, "corpus": "a fingerprint"}


def state(seed=0):
    """A state with all that a run's has: nested names, integers, halves, a typed random key."""
    random = np.random.default_rng(seed)
    return {
        "step": jnp.int32(seed),
        "params": {
            "w": put(random.normal(size=(16, 8)), jnp.float32),
            "b": put(random.normal(size=(8,)), jnp.bfloat16),
        },
        "key": jax.random.key(seed),
    }


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


@functools.partial(jax.jit, donate_argnums=0)
def next_step(tree):
    """A step that overwrites the buffers it is given."""
    new = jax.tree.map(lambda x: x * 2 + 1, {k: v for k, v in tree.items() if k != "key"})
    return {**new, "key": jax.random.fold_in(tree["key"], 1)}


def plain(tree):
    """NumPy values, of keys their data."""
    return jax.tree.map(
        lambda x: np.asarray(
            jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        ),
        tree,
    )


def assert_same(one, two):
    chex.assert_trees_all_equal(plain(one), plain(two))
    chex.assert_trees_all_equal_dtypes(one, two)


def write(folder, losses, keep=2):
    """One checkpoint for each {step: loss}."""
    with Checkpoints(folder, CheckpointConfig(keep=keep)) as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(step, state(step), EXTRA, loss)
            checkpoints.wait()


def test_what_is_restored_is_what_was_saved_though_its_buffers_are_overwritten(tmp_path):
    current, saved = next_step(state()), {}
    with Checkpoints(tmp_path / "c", CheckpointConfig(keep=10)) as checkpoints:
        for step in range(3):
            saved[step] = plain(current)
            checkpoints.save(step, current, {**EXTRA, "position": step})
            current = next_step(current)
    with Checkpoints(tmp_path / "c") as checkpoints:
        for step, values in saved.items():
            restored = checkpoints.restore(step, abstract(current))
            chex.assert_trees_all_equal(plain(restored), values)
            chex.assert_trees_all_equal_dtypes(restored, current)
            assert checkpoints.extra(step) == {**EXTRA, "position": step}


def test_what_is_restored_may_be_donated(tmp_path):
    write(tmp_path, {0: None})
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(0, abstract(state()))
    expected = next_step(state())
    assert_same(next_step(restored), expected)
    assert restored["params"]["w"].is_deleted()


def test_another_mesh_restores_the_same_values(tmp_path):
    write(tmp_path, {0: None})
    mesh = make_mesh(data=2, tensor=4)
    specs = {"w": PartitionSpec("data", "tensor"), "b": PartitionSpec("tensor")}
    whole = NamedSharding(mesh, PartitionSpec())
    shardings = {
        "step": whole,
        "params": {name: NamedSharding(mesh, spec) for name, spec in specs.items()},
        "key": whole,
    }
    wanted = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state(), shardings
    )
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(0, wanted)
    assert_same(restored, state())
    assert restored["params"]["w"].sharding == shardings["params"]["w"]


def test_the_newest_and_the_best_are_kept(tmp_path):
    write(tmp_path, {1: 0.5, 2: 0.1, 3: 0.4, 4: 0.3, 5: None})
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [2, 4, 5]
        assert checkpoints.best_loss() == 0.1


def test_they_are_kept_after_the_folder_is_opened_again(tmp_path):
    for step, loss in {1: 0.5, 2: 0.1, 3: 0.4, 4: 0.3, 5: 0.2}.items():
        write(tmp_path, {step: loss})
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [2, 4, 5]
    write(tmp_path, {6: 0.05, 7: None, 8: None})
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [6, 7, 8]


def test_a_step_that_is_saved_is_not_saved_again(tmp_path):
    write(tmp_path, {1: 0.5})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(7), EXTRA, 0.1)
        assert_same(checkpoints.restore(1, abstract(state())), state(1))


def test_a_checkpoint_is_chosen_by_latest_best_or_number(tmp_path):
    write(tmp_path, {10: 0.2, 20: 0.1, 30: 0.3})
    with Checkpoints(tmp_path) as checkpoints:
        choices = {which: checkpoints.choose(which) for which in ("latest", "best", "30")}
        assert choices == {"latest": 30, "best": 20, "30": 30}
        assert checkpoints.latest() == 30
        for which in ("15", "newest", "-20", ""):
            with pytest.raises(UserError, match=rf"no checkpoint '{which}'.*\[20, 30\]"):
                checkpoints.choose(which)


def test_without_losses_the_best_is_the_latest(tmp_path):
    write(tmp_path, {1: None, 2: None})
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.choose("best") == 2
        assert checkpoints.best_loss() == float("inf")


def test_an_empty_folder_has_nothing_to_choose(tmp_path):
    with Checkpoints(tmp_path / "new") as checkpoints:
        assert (checkpoints.steps(), checkpoints.latest()) == ([], None)
        with pytest.raises(UserError, match="the run has not saved one yet"):
            checkpoints.choose("latest")
        with pytest.raises(UserError, match="step 3"):
            checkpoints.extra(3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with two checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    write(folder, {1: 0.5, 2: 0.25})
    return folder


def other(change):
    """The state with one thing changed."""
    tree = state()
    change(tree)
    return tree


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (
            other(lambda t: t["params"].update(w=put(np.zeros((16, 9)), np.float32))),
            ["'params/w'", "[16, 9]"],
        ),
        (
            other(lambda t: t["params"].update(w=put(np.zeros((8, 8)), np.float32))),
            ["'params/w'", "[8, 8]"],
        ),
        (
            other(lambda t: t["params"].update(w=put(np.zeros((16, 8)), jnp.bfloat16))),
            ["'params/w'", "bfloat16", "float32"],
        ),
        (other(lambda t: t.update(step=jnp.uint32(0))), ["'step'", "uint32", "int32"]),
        (
            other(lambda t: t["params"].update(extra=put(np.zeros(3), np.float32))),
            ["no 'params/extra'"],
        ),
        (other(lambda t: t["params"].pop("b")), ["'params/b'"]),
        (other(lambda t: t.update(key=put(np.zeros(2), np.uint32))), ["'key'"]),
        (other(lambda t: t.update(key=jax.random.key(0, impl="rbg"))), ["'key'"]),
        (other(lambda t: t.update(key=jax.random.split(t["key"]))), ["'key'"]),
    ],
    ids=["wider", "shorter", "half", "unsigned", "added", "missing", "raw key", "rbg", "two keys"],
)
def test_another_state_is_refused_by_the_name_of_what_differs(whole, tree, words):
    with Checkpoints(whole) as checkpoints, pytest.raises(UserError) as caught:
        checkpoints.restore(2, abstract(tree))
    assert "checkpoint 2" in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def files(folder):
    """The relative paths of all files below a folder."""
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def flipped(content: bytes, place: float) -> bytes:
    """One bit of one byte changed."""
    at = int(place * (len(content) - 1))
    return content[:at] + bytes([content[at] ^ (1 << at % 8)]) + content[at + 1 :]


DAMAGE = {
    "emptied": lambda content: b"",
    "cut in half": lambda content: content[: len(content) // 2],
    "cut by one": lambda content: content[:-1],
    "first byte flipped": lambda content: flipped(content, 0),
    "middle byte flipped": lambda content: flipped(content, 0.5),
    "last byte flipped": lambda content: flipped(content, 1),
    "removed": None,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_every_damage_to_any_file_is_detected_and_the_one_before_is_found(whole, tmp_path, damage):
    """Of the last of two checkpoints, each file in turn."""
    kinds = set()
    for number, name in enumerate(files(whole / "2")):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        file = folder / "2" / name
        change = DAMAGE[damage]
        if change is None:
            file.unlink()
        else:
            file.write_bytes(change(file.read_bytes()))
        kinds.add(name.parent.name if name.parent.name == "d" else name.name)
        with Checkpoints(folder) as checkpoints:
            with pytest.raises(Damaged, match=r"^checkpoint 2 in .*") as caught:
                checkpoints.restore(2, abstract(state()))
            assert "\n" not in str(caught.value)
            assert name.name in str(caught.value)
            step, damaged = checkpoints.latest_good()
            assert (step, [str(e) for e in damaged]) == (1, [str(caught.value)])
            assert_same(checkpoints.restore(1, abstract(state())), state(1))
    assert kinds >= {"manifest.json", "manifest.ocdbt", "d", "_METADATA", "_sharding"}


def test_a_file_too_many_is_detected(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "c")
    (tmp_path / "c" / "2" / "arrays" / "d" / "stray").write_text("?")
    with Checkpoints(tmp_path / "c") as checkpoints, pytest.raises(Damaged, match="d/stray was"):
        checkpoints.check(2)


def test_values_that_changed_before_they_were_written_are_named(whole, tmp_path):
    """Files as they were written, of an array that is not the one that was to be saved."""
    shutil.copytree(whole, tmp_path / "c")
    folder = tmp_path / "c" / "2"
    found = manifest.read(folder)
    other = dataclasses.replace(found.arrays["params/b"], digest=64 * "0")
    arrays = {**found.arrays, "params/b": other}
    manifest.write(folder, dataclasses.replace(found, arrays=arrays))
    with Checkpoints(tmp_path / "c") as checkpoints, pytest.raises(Damaged, match="'params/b'"):
        checkpoints.restore(2, abstract(state()))


def test_a_checkpoint_under_another_step_is_refused(whole, tmp_path):
    shutil.copytree(whole / "2", tmp_path / "c" / "7")
    with Checkpoints(tmp_path / "c") as checkpoints:
        with pytest.raises(Damaged, match="saved as step 2"):
            checkpoints.restore(7, abstract(state()))
        assert checkpoints.latest_good()[0] is None


def test_a_run_goes_on_before_what_is_damaged_and_saves_it_anew(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "c")
    (tmp_path / "c" / "2" / "manifest.json").write_text("{}")
    with Checkpoints(tmp_path / "c") as checkpoints:
        good, _ = checkpoints.latest_good()
        checkpoints.set_aside(good, {2})
        assert (checkpoints.steps(), checkpoints.latest()) == ([1], 1)
        assert (tmp_path / "c" / "2.damaged").is_dir()
        checkpoints.save(2, state(2), EXTRA)
        checkpoints.wait()
        assert_same(checkpoints.restore(2, abstract(state())), state(2))
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["1", "2"]


@pytest.fixture
def half_dead(whole, tmp_path):
    """A folder in which a save, and a removal, died half-way."""
    folder = tmp_path / "c"
    shutil.copytree(whole, folder)
    shutil.copytree(folder / "2", folder / "3.partial")
    shutil.copytree(folder / "2" / "arrays", folder / "4.partial" / "arrays.orbax-checkpoint-tmp")
    shutil.copytree(folder / "2" / "arrays", folder / "0.deleting" / "arrays")
    return folder


def test_what_a_save_that_died_has_left_is_not_seen_and_cleaned_up(half_dead):
    with Checkpoints(half_dead) as checkpoints:
        assert checkpoints.steps() == [1, 2]
        assert_same(checkpoints.restore(2, abstract(state())), state(2))
    assert sorted(path.name for path in half_dead.iterdir()) == ["1", "2"]


def test_a_reader_leaves_alone_what_a_run_is_just_saving(half_dead):
    before = files(half_dead)
    with Checkpoints(half_dead, read_only=True) as checkpoints:
        assert checkpoints.choose("latest") == checkpoints.choose("best") == 2
        assert_same(checkpoints.restore(2, abstract(state())), state(2))
        assert checkpoints.extra(2) == EXTRA
    assert files(half_dead) == before


def test_a_disk_without_room_is_one_clear_line_and_keeps_what_is_saved(tmp_path, monkeypatch):
    state = {"w": put(np.arange(1000), np.float32)}
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.wait()
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3999))
        with pytest.raises(CannotSave, match="4,000 bytes needed, 3,999 free"):
            checkpoints.save(2, state, {})
        assert checkpoints.steps() == [1]


@pytest.fixture
def small_files():
    """Writing more than a little to any file fails, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# Orbax leaves what it was still writing behind when one of its writes fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_write_that_fails_is_told_and_leaves_the_last_good_one_and_nothing_else(
    tmp_path, small_files
):
    state = {"w": put(np.random.default_rng(0).normal(size=100_000), jnp.float32)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.wait()
        for step in (2, 3):
            small_files(100_000)
            checkpoints.save(step, state, {})
            with pytest.raises(CannotSave, match=r"cannot save in .*earlier checkpoints are whole"):
                checkpoints.wait()
            assert checkpoints.failure() is None
            assert [path.name for path in tmp_path.iterdir()] == ["1"]
            assert checkpoints.latest_good() == (1, [])
        small_files(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
        checkpoints.save(4, state, {})
        checkpoints.wait()
        assert checkpoints.latest_good() == (4, [])


def test_of_steps_that_meet_no_multiple_the_first_past_it_is_kept():
    """Whatever has been removed before, as one save comes after another."""
    config, there = CheckpointConfig(keep=2, keep_best=0, keep_every=1000), set()
    for step in (216, 408, 600, 816, 1008, 1200, 1416, 1608, 1800, 2016, 2208, 3000, 3024):
        there = config.kept(there | {step}, {})
    assert there == {1008, 2016, 3000, 3024}


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        (CheckpointConfig(keep=1, keep_best=0), [6]),
        (CheckpointConfig(keep=3, keep_best=0), [4, 5, 6]),
        (CheckpointConfig(keep=1, keep_best=2), [2, 4, 6]),
        (CheckpointConfig(keep=1, keep_best=0, keep_every=3), [3, 6]),
        (CheckpointConfig(keep=1, keep_best=1, keep_every=5), [2, 5, 6]),
    ],
)
def test_the_newest_the_best_and_every_nth_are_kept(tmp_path, config, kept):
    small = {"w": put(np.zeros(2), np.float32)}
    with Checkpoints(tmp_path, config) as checkpoints:
        for step, loss in enumerate((0.9, 0.2, 0.5, 0.3, 0.6, None), start=1):
            checkpoints.save(step, small, {}, loss)
        checkpoints.wait()
        assert checkpoints.steps() == kept


def test_orbax_itself_reads_what_is_stored(whole):
    """The arrays are Orbax's own format: any program that has Orbax can read them."""
    found = ocp.StandardCheckpointer().restore(whole / "2" / "arrays")
    assert_same(found["params"], state(2)["params"])
    assert int(found["step"]) == 2
