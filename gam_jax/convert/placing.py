"""Arrays between files and devices: read shard by shard, and brought back piece by piece."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gam_jax.convert.indices import Index, picked
from gam_jax.convert.lazy import Lazy, Source, as_lazy
from gam_jax.params import Params, Table, abstract_params, param_specs, shardings
from sharding import processes
from sharding.layout import Layout
from sharding.shards import Range, from_host, own_ranges, range_of


def where(table: Table, layout: Layout | None) -> Params:
    """For each parameter of a table its shape, its dtype and, on a mesh, its sharding."""
    abstract = abstract_params(table)
    if layout is None:
        return abstract
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings(param_specs(table, layout), layout),
    )


def placed(params: Params, like: Params, instead: bool = False) -> Params:
    """Parameters on devices; each process reads what its own devices hold, and no more.

    The largest come first, so that a shard in the memory of the host beside its copy on a device
    is never much beside what is kept. On a terminal a bar tells how far it is.

    Args:
      params: arrays that are not read yet, see `convert.lazy`, or that are in memory.
      like: for each a shape, a dtype and a sharding, or no sharding for the usual device.
      instead: deletes each array of `like` as soon as the new one is there.

    Raises:
      UserError: a file that cannot be read, or a number that float32 cannot hold.
    """
    from tqdm import tqdm

    arrays, tree = jax.tree.flatten(params)
    wanted = tree.flatten_up_to(like)
    sizes = [_held(leaf) for leaf in wanted]
    found: list[Any] = [None] * len(arrays)
    quiet = None if processes.is_first() else True
    with tqdm(desc="reading", total=sum(sizes), unit="B", unit_scale=True, disable=quiet) as bar:
        for i in sorted(range(len(arrays)), key=lambda i: -sizes[i]):
            found[i] = on_devices(arrays[i], wanted[i], bar.update)
            if instead:
                wanted[i].delete()
    return jax.tree.unflatten(tree, found)


def on_devices(array: Any, like: Any, tell: Callable[[int], Any] = lambda count: None) -> jax.Array:
    """One array of `placed`.

    Args:
      array: what is read.
      like: an array, or shape, dtype and sharding.
      tell: is called with the bytes that were read.
    """
    if isinstance(array, jax.Array):
        array = array.astype(like.dtype)
        return array if like.sharding is None else jax.device_put(array, like.sharding)
    lazy = as_lazy(array)

    def read(place: Range) -> np.ndarray:
        return _read(lazy, tuple(np.arange(*pair) for pair in place), like.dtype, tell)

    return from_host(like.shape, like.sharding, read)


def _read(lazy: Lazy, index: Index, dtype: Any, tell: Callable[[int], Any]) -> np.ndarray:
    """A part in memory, told of as it comes: layer by layer, where layers are stacked."""
    out = np.empty([len(places) for places in index], dtype)
    step = 1 if out.ndim > 2 else max(1, len(out) if out.ndim else 1)
    for start in range(0, len(index[0]) if index else 1, step):
        cut = slice(start, start + step)
        own = out[cut] if index else out
        if out.size:
            lazy.fill(own, (index[0][cut], *index[1:]) if index else index)
        tell(own.nbytes)
    return out


def _held(like: Any) -> int:
    """Bytes that this process reads of an array, as it stores them."""
    places = own_ranges(like.shape, like.sharding)
    numbers = sum(math.prod(end - start for start, end in place) for place in places)
    return numbers * np.dtype(like.dtype).itemsize


@dataclasses.dataclass(frozen=True, eq=False)
class OnDevice(Source):
    """An array on devices, brought to the memory of the host piece by piece.

    Where other processes hold a part of it, all must ask for the same pieces in the same order.

    Attributes:
      array: it.
      name: for messages.
    """

    array: jax.Array
    name: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        """Of the array."""
        return self.array.dtype

    def piece(self, index: Index) -> np.ndarray:
        """A part, in the array's dtype."""
        if not (self.array.is_fully_addressable or self.array.is_fully_replicated):
            return self._gathered(index)
        found = np.empty([len(places) for places in index], self.dtype)
        seen = set()
        for shard in self.array.addressable_shards:
            bounds = range_of(shard.index, self.shape)
            if bounds in seen:
                continue
            seen.add(bounds)
            here = [
                np.flatnonzero((own >= start) & (own < end))
                for own, (start, end) in zip(index, bounds, strict=True)
            ]
            if not all(map(len, here)) and index:
                continue
            own = [i[at] - start for i, at, (start, _) in zip(index, here, bounds, strict=True)]
            found[np.ix_(*here) if here else ()] = _on_host(shard.data, tuple(own))
        return found

    def _gathered(self, index: Index) -> np.ndarray:
        """A box around the part, made whole on each device."""
        starts = [int(own.min()) for own in index]
        sizes = tuple(int(own.max()) + 1 - start for own, start in zip(index, starts, strict=True))
        box = _box(self.array.sharding.mesh)(self.array, starts, sizes)  # type: ignore[attr-defined]
        inner = tuple(own - start for own, start in zip(index, starts, strict=True))
        return picked(np.asarray(box.addressable_data(0)), inner)


@functools.lru_cache(8)
def _box(mesh: Any) -> Callable[..., jax.Array]:
    return jax.jit(
        jax.lax.dynamic_slice,
        static_argnums=2,
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )


def _on_host(array: jax.Array, index: Sequence[np.ndarray]) -> np.ndarray:
    """A part of an array of one device. On CPU the host sees it where it is."""
    if array.platform() == "cpu" or not index:
        return picked(np.asarray(array), tuple(index))
    bounds = [(int(own.min()), int(own.max()) + 1) for own in index]
    box = np.asarray(array[tuple(slice(*pair) for pair in bounds)])
    return picked(box, tuple(own - start for own, (start, _) in zip(index, bounds, strict=True)))


def lazily(params: Params) -> Params:
    """Parameters on devices as arrays that are not read yet; others as they are."""
    return jax.tree.map(lambda x: OnDevice(x) if isinstance(x, jax.Array) else as_lazy(x), params)
