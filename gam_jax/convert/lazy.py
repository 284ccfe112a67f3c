"""Arrays that are not read yet.

What moves numbers and changes none (a transpose, a slice, a reshape, a stack) is noted, and done
when a part of the result is asked for: then that part of each file is read, and no more. NumPy
hands its functions over to such an array (NEP 13, NEP 18), so what is written for plain arrays does
for these. A function that is not known here reads the whole and gives a plain array.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gam_jax.convert.indices import Index, as_slice, box_around, cuts, groups, picked
from sharding.errors import UserError

FLOAT32 = np.dtype(np.float32)


class Lazy(np.lib.mixins.NDArrayOperatorsMixin):
    """An array that is not read yet. Subclasses say where its numbers come from.

    Attributes:
      shape: of the whole.
      dtype: what the whole is read into, where nothing else is asked for.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    def fill(self, out: np.ndarray, index: Index) -> None:
        """Writes the part at some places into an array of its shape and of any float dtype."""
        raise NotImplementedError

    def part(self, index: Index, dtype: Any = None) -> np.ndarray:
        """The part at some places, in memory."""
        out = np.empty([len(places) for places in index], dtype or self.dtype)
        if out.size:
            self.fill(out, index)
        return out

    @property
    def whole(self) -> Index:
        """All places."""
        return tuple(map(np.arange, self.shape))

    # What NumPy's arrays have.

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole in its dtype."""
        return self.size * self.dtype.itemsize

    @property
    def T(self) -> Lazy:
        """The axes the other way round."""
        return self.transpose()

    def transpose(self, *axes: Any) -> Lazy:
        """As NumPy's."""
        if len(axes) == 1 and not isinstance(axes[0], int):
            axes = tuple(axes[0] or ())
        order = [axis % self.ndim for axis in axes] or list(reversed(range(self.ndim)))
        return Moved(self, tuple(order))

    def swapaxes(self, first: int, second: int) -> Lazy:
        """As NumPy's."""
        order = list(range(self.ndim))
        order[first], order[second] = order[second], order[first]
        return Moved(self, tuple(order))

    def reshape(self, *shape: Any) -> Lazy:
        """As NumPy's, in the order of C."""
        sizes = list(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else list(shape)
        if -1 in sizes:
            known = math.prod(size for size in sizes if size != -1)
            sizes[sizes.index(-1)] = self.size // known if known else 0
        if math.prod(sizes) != self.size:
            raise ValueError(f"cannot reshape {self.shape} into {tuple(sizes)}")
        return self if tuple(sizes) == self.shape else Reshaped(self, tuple(sizes))

    def astype(self, dtype: Any) -> Any:
        """Itself if it has that dtype; else it is read."""
        return self if np.dtype(dtype) == self.dtype else np.asarray(self, dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key: Any) -> Any:
        keys = _whole_key(key, self.ndim)
        lists = [k for k in keys if not isinstance(k, int | np.integer | slice | None)]
        numbers = any(isinstance(k, int | np.integer) for k in keys)
        if len(lists) > 1 or any(np.ndim(k) != 1 for k in lists) or (lists and numbers):
            return np.asarray(self)[key]
        picks, shape = [], []
        for k in keys:
            if k is None:
                shape.append(1)
                continue
            places = np.arange(self.shape[len(picks)])[k]
            if places.ndim:
                shape.append(len(places))
            picks.append(np.atleast_1d(places))
        if [len(places) for places in picks] == list(self.shape) and all(
            isinstance(k, slice | None) and (k is None or k.step in (None, 1)) for k in keys
        ):
            return self.reshape(shape)
        return Picked(self, tuple(picks)).reshape(shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.part(self.whole, dtype)

    def __array_function__(
        self, function: Callable[..., Any], types: Any, args: Any, kwargs: Any
    ) -> Any:
        known = FUNCTIONS.get(function)
        if known is not None:
            return known(*args, **kwargs)
        return function(*_read(args), **_read(kwargs))

    def __array_ufunc__(self, ufunc: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(ufunc, method)(*_read(args), **_read(kwargs))


def _whole_key(key: Any, ndim: int) -> list[Any]:
    """An index as one entry for each axis, and None for each new one."""
    keys = list(key) if isinstance(key, tuple) else [key]
    dots = [i for i, k in enumerate(keys) if k is Ellipsis]
    missing = ndim - sum(k is not None and k is not Ellipsis for k in keys)
    if missing < 0 or len(dots) > 1:
        raise IndexError(f"{key} is no index of an array of {ndim} axes")
    place = dots[0] if dots else len(keys)
    return keys[:place] + [slice(None)] * missing + keys[place + 1 :]


def _read(given: Any) -> Any:
    """Arguments of a function of NumPy, in which what is not read yet is read."""
    if isinstance(given, Lazy):
        return np.asarray(given)
    if isinstance(given, list | tuple):
        return type(given)(map(_read, given))
    if isinstance(given, Mapping):
        return {name: _read(value) for name, value in given.items()}
    return given


class Source(Lazy):
    """An array that takes its numbers from somewhere, a piece at a time.

    Attributes:
      name: for messages.
    """

    name: str

    def piece(self, index: Index) -> np.ndarray:
        """A part in any dtype that NumPy turns into floats."""
        raise NotImplementedError

    def fill(self, out: np.ndarray, index: Index) -> None:
        """As `Lazy.fill`; a UserError if a number is beyond float32."""
        for cut in cuts(out.shape):
            piece = self.piece(tuple(own[i] for own, i in zip(index, cut, strict=True)))
            try:
                with np.errstate(over="raise"):
                    # By way of float32, so that float64 is not rounded otherwise than in two steps.
                    out[cut] = piece.astype(FLOAT32) if piece.dtype == np.float64 else piece
            except FloatingPointError as error:
                raise UserError(f"{self.name!a} has numbers that float32 cannot hold") from error


@dataclasses.dataclass(frozen=True, eq=False)
class InMemory(Source):
    """An array that is in memory already."""

    array: np.ndarray
    name: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        """float32, in which all arrays of a folder are read."""
        return FLOAT32

    def piece(self, index: Index) -> np.ndarray:
        """Of the array."""
        return picked(self.array, index)


@dataclasses.dataclass(frozen=True, eq=False)
class Changed(Lazy):
    """The numbers of another array, elsewhere."""

    array: Lazy

    @property
    def dtype(self) -> np.dtype:
        """Of the array."""
        return self.array.dtype


@dataclasses.dataclass(frozen=True, eq=False)
class Moved(Changed):
    """Axes in another order: axis i is axis `order[i]` of the array."""

    order: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """In the new order."""
        return tuple(self.array.shape[axis] for axis in self.order)

    def fill(self, out: np.ndarray, index: Index) -> None:
        """As `Lazy.fill`."""
        back = [self.order.index(axis) for axis in range(self.ndim)]
        self.array.fill(out.transpose(back), tuple(index[axis] for axis in back))


@dataclasses.dataclass(frozen=True, eq=False)
class Picked(Changed):
    """Some places of each axis."""

    places: Index

    @property
    def shape(self) -> tuple[int, ...]:
        """How many places there are."""
        return tuple(map(len, self.places))

    def fill(self, out: np.ndarray, index: Index) -> None:
        """As `Lazy.fill`."""
        self.array.fill(out, tuple(p[i] for p, i in zip(self.places, index, strict=True)))


@dataclasses.dataclass(frozen=True, eq=False)
class Reshaped(Changed):
    """The same numbers in the same order, in another shape."""

    sizes: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The new one."""
        return self.sizes

    def fill(self, out: np.ndarray, index: Index) -> None:
        """As `Lazy.fill`: of axes that were joined or cut, the smallest box that has all places."""
        inner, picks, boxes = [], [], []
        for before, after in groups(self.array.shape, self.sizes):
            flat = np.zeros(1, np.int64)
            for axis in after:
                flat = (flat[:, None] * self.sizes[axis] + index[axis]).reshape(-1)
            box, pick = box_around(flat, [self.array.shape[axis] for axis in before])
            inner += box
            picks.append(pick)
            boxes.append(math.prod(map(len, box)))
        exact = all(pick is None for pick in picks)
        view = out.reshape([len(places) for places in inner]) if exact else out
        if exact and np.may_share_memory(view, out):
            self.array.fill(view, tuple(inner))
            return
        found = self.array.part(tuple(inner), out.dtype)
        if not exact:
            pairs = zip(picks, boxes, strict=True)
            places = [np.arange(size) if pick is None else pick for pick, size in pairs]
            found = found.reshape(boxes)[np.ix_(*places)]
        out[...] = found.reshape(out.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Joined(Lazy):
    """Arrays one behind the other along an axis."""

    arrays: tuple[Lazy, ...]
    axis: int

    @property
    def shape(self) -> tuple[int, ...]:
        """That of one, and the sum along the axis."""
        sizes = list(self.arrays[0].shape)
        sizes[self.axis] = sum(array.shape[self.axis] for array in self.arrays)
        return tuple(sizes)

    @property
    def dtype(self) -> np.dtype:
        """The one that holds the numbers of all."""
        return np.result_type(*{array.dtype for array in self.arrays})

    def fill(self, out: np.ndarray, index: Index) -> None:
        """As `Lazy.fill`."""
        ends = np.cumsum([array.shape[self.axis] for array in self.arrays])
        wanted = index[self.axis]
        whose = np.searchsorted(ends, wanted, side="right")
        before = (slice(None),) * self.axis
        for number in np.unique(whose).tolist():
            at = np.flatnonzero(whose == number)
            own = wanted[at] - (ends[number - 1] if number else 0)
            inner = (*index[: self.axis], own, *index[self.axis + 1 :])
            place = as_slice(at)
            if place is not None:
                self.arrays[number].fill(out[(*before, place)], inner)
            else:
                out[(*before, at)] = self.arrays[number].part(inner, out.dtype)


def as_lazy(array: Any) -> Lazy:
    """The array itself, or one around what is in memory."""
    return array if isinstance(array, Lazy) else InMemory(np.asarray(array))


def _joined(arrays: Sequence[Any], axis: int = 0) -> Lazy:
    found = tuple(map(as_lazy, arrays))
    axis %= found[0].ndim
    for one in found:
        if one.shape[:axis] + one.shape[axis + 1 :] != (
            found[0].shape[:axis] + found[0].shape[axis + 1 :]
        ):
            raise ValueError(f"cannot join {found[0].shape} and {one.shape} along axis {axis}")
    return Joined(found, axis)


def _stacked(arrays: Sequence[Any], axis: int = 0) -> Lazy:
    found = [_expanded(as_lazy(array), axis) for array in arrays]
    return _joined(found, axis % found[0].ndim)


def _expanded(array: Lazy, axis: int) -> Lazy:
    axis %= array.ndim + 1
    return array.reshape(*array.shape[:axis], 1, *array.shape[axis:])


def _split(array: Lazy, sections: Any, axis: int = 0) -> list[Any]:
    size = array.shape[axis]
    if isinstance(sections, int):
        if size % sections:
            raise ValueError(f"{size} places are not {sections} equal parts")
        sections = range(size // sections, size, size // sections)
    ends = [0, *map(int, sections), size]
    before = (slice(None),) * (axis % array.ndim)
    return [array[(*before, slice(a, b))] for a, b in itertools.pairwise(ends)]


def _moved(array: Lazy, source: int, destination: int) -> Lazy:
    order = [axis for axis in range(array.ndim) if axis != source % array.ndim]
    order.insert(destination % array.ndim, source % array.ndim)
    return Moved(array, tuple(order))


FUNCTIONS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    np.concatenate: _joined,
    np.stack: _stacked,
    np.split: _split,
    np.transpose: lambda array, axes=None: array.transpose(axes),
    np.moveaxis: _moved,
    np.swapaxes: Lazy.swapaxes,
    np.reshape: lambda array, shape: array.reshape(shape),
    np.expand_dims: _expanded,
}
"""Functions of NumPy that move numbers alone, and what is noted of them."""
