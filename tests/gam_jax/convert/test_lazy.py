"""Arrays that are not read yet are, part by part, what NumPy makes of the whole."""

import numpy as np
import pytest
import safetensors.numpy

from gam_jax.convert import tensor_file
from gam_jax.convert.lazy import InMemory, Lazy, as_lazy
from gam_jax.convert.tensor_file import open_tensors
from sharding.errors import UserError

MOVES = {
    "transpose": lambda a: a.T,
    "heads": lambda a: a.T.reshape(20, 3, 4),
    "heads in another order": lambda a: a.T.reshape(20, 3, 4)[..., [0, 2, 1, 3]],
    "heads and back": lambda a: a.T.reshape(20, 3, 4).reshape(20, -1).T,
    "flat": lambda a: a.reshape(-1),
    "cut elsewhere": lambda a: a.reshape(8, 30),
    "stacked": lambda a: np.stack([a, a.T.T + 1]),
    "stacked behind": lambda a: np.stack([a[:, 0], a[:, 1]], axis=-1),
    "joined": lambda a: np.concatenate([a[:3], a[5:]]).T,
    "joined parts of heads": lambda a: np.concatenate(
        [a.reshape(3, 4, 20)[:, 2:], a.reshape(3, 4, 20)[:, [1, 0]]], axis=-2
    ),
    "split": lambda a: np.split(a, (3, 7), axis=1)[1],
    "equal parts": lambda a: np.split(a, 3)[2],
    "new axes": lambda a: np.stack([a, a])[None][:, 1, None],
    "a row": lambda a: a[3],
    "the last column": lambda a: a[:, -1],
    "moved": lambda a: np.moveaxis(a.reshape(3, 4, 20), 0, -1),
    "swapped": lambda a: np.swapaxes(a.reshape(3, 4, 20), 0, 1).reshape(12, 20),
    "transposed by hand": lambda a: np.transpose(a.reshape(3, 4, 5, 4), (1, 0, 3, 2)),
    "backwards": lambda a: a[::-1, ::2],
    "chosen": lambda a: a[np.arange(12) % 2 == 0],
    "expanded": lambda a: np.expand_dims(a, 1),
    "iterated": lambda a: np.stack([row[::-1] for row in a]),
}
READ = {
    "a sum": lambda a: 1 - 2 * a,
    "a mean": lambda a: np.mean(a, axis=0),
    "places": lambda a: a[[0, 1], [2, 3]],
    "exponentials": lambda a: -np.exp(a),
}


@pytest.fixture
def array():
    return np.random.default_rng(0).standard_normal((12, 20)).astype(np.float32)


@pytest.mark.parametrize("name", MOVES)
def test_any_part_of_what_is_moved_is_that_of_numpy(name, array):
    rng = np.random.default_rng(1)
    wanted, found = MOVES[name](array), MOVES[name](InMemory(array))
    assert isinstance(found, Lazy)
    assert (found.shape, found.ndim, found.size) == (wanted.shape, wanted.ndim, wanted.size)
    np.testing.assert_array_equal(found, wanted)
    for _ in range(12):
        index = tuple(
            np.arange(*sorted(rng.choice(size + 1, 2, replace=False)))
            if rng.random() < 0.5
            else rng.choice(size, rng.integers(1, size + 1), replace=False)
            for size in wanted.shape
        )
        np.testing.assert_array_equal(found.part(index, np.float64), wanted[np.ix_(*index)])


@pytest.mark.parametrize("name", READ)
def test_what_changes_numbers_reads_them(name, array):
    found = READ[name](InMemory(array))
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, READ[name](array))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda a: a.reshape(7, -1),
        lambda a: np.stack([a, a.T]),
        lambda a: np.split(a, 5),
        lambda a: a[0, 0, 0],
        lambda a: a[12],
    ],
)
def test_what_numpy_refuses_is_refused(wrong, array):
    for each in (array, InMemory(array)):
        with pytest.raises((ValueError, IndexError)):
            wrong(each)


def test_plain_arrays_join_with_those_not_read(array):
    found = np.stack([np.zeros((12, 20), np.float32), InMemory(array)])
    np.testing.assert_array_equal(found[1], array)
    np.testing.assert_array_equal(found[0], np.zeros_like(array))
    assert as_lazy(found) is found


@pytest.fixture
def counted(monkeypatch):
    """The ranges of bytes that are read."""
    read, ranges = tensor_file.read_into, []

    def note(file, place, into, path):
        ranges.append((place, len(into)))
        read(file, place, into, path)

    monkeypatch.setattr(tensor_file, "read_into", note)
    return ranges


def test_a_part_reads_its_ranges_of_bytes_alone(tmp_path, counted):
    """Gaps of less than a page are read over."""
    array = np.arange(8 * 6000, dtype=np.float32).reshape(8, 6000)
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({"b": array, "a": array[:1, :3]}, path)
    found = open_tensors(path)["b"].array
    start = path.read_bytes().index(array.tobytes())

    def reads(part):
        counted.clear()
        np.asarray(part)
        return counted

    assert reads(found[2:5]) == [(start + 2 * 24_000, 3 * 24_000)]
    np.testing.assert_array_equal(found[2:5], array[2:5])
    assert reads(found.T[3000:].T) == [(start + 24_000 * i + 12_000, 12_000) for i in range(8)]
    np.testing.assert_array_equal(found.T[3000:], array.T[3000:])
    assert reads(found[:, 500:]) == [(start, array.nbytes)]
    np.testing.assert_array_equal(found[:, 500:], array[:, 500:])
    assert reads(found[5][[0, 1, 3000, 9]]) == [
        (start + 5 * 24_000, 40),
        (start + 5 * 24_000 + 12_000, 4),
    ]
    np.testing.assert_array_equal(found[[6, 1]][:, [5, 5999]], array[[6, 1]][:, [5, 5999]])


def test_a_file_that_has_become_shorter_is_one_line(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({"a": np.ones((9, 9), np.float32)}, path)
    found = open_tensors(path)["a"].array
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="has become shorter"):
        np.asarray(found)
    path.unlink()
    with pytest.raises(UserError, match=r"cannot read .*a.safetensors: No such file"):
        np.asarray(found)
