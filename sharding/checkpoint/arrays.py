"""The arrays of a checkpoint on disk: Orbax writes them, TensorStore reads them block by block.

On disk each array is a grid of blocks (Zarr in an OCDBT database). How it is cut follows from the
shards it had when it was saved, and no reader needs to know: each block is read once by each
process that needs any of it, and its numbers go to the shards that they belong to.
"""

from __future__ import annotations

import collections
import itertools
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts

from sharding import processes
from sharding.checkpoint import names
from sharding.checkpoint.digest import add, digest, shown
from sharding.shards import Range, from_host, own_ranges, range_of

FOLDER = "arrays"
BLOCK_BYTES = 16 << 20
"""Larger shards are cut: a reader that needs a part of one reads little else."""
SLICE_BYTES = 1 << 20
"""Of an array that several devices hold alike, each writes a slice, if slices are that large: for
each slice's shape a program is compiled, which takes longer than to write a small array whole."""
_IN_FLIGHT = 8
_INDEX_CACHE_BYTES = 64 << 20


class Writer:
    """Writes trees of arrays in the background, each process its own shards.

    Orbax is imported here alone: who only reads does not wait for it.
    """

    def __init__(self) -> None:
        import orbax.checkpoint as ocp

        arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=SLICE_BYTES)
        types = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
        self._orbax = ocp.AsyncCheckpointer(
            ocp.PyTreeCheckpointHandler(type_handler_registry=types)
        )

    def start(self, folder: pathlib.Path, leaves: Mapping[str, jax.Array]) -> None:
        """Copies the arrays; when this returns their buffers may be overwritten."""
        import orbax.checkpoint as ocp

        tree = names.nested(leaves)
        cut = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=BLOCK_BYTES), tree)
        self._orbax.save(folder / FOLDER, args=ocp.args.PyTreeSave(tree, save_args=cut))

    def wait(self) -> None:
        """Until all processes have written; raises what went wrong while writing."""
        self._orbax.wait_until_finished()

    def close(self) -> None:
        """Lets go of its threads."""
        self._orbax.close()


def own_files(files: list[pathlib.Path], rank: int) -> list[pathlib.Path]:
    """The files that a process has written: its own database, and of the first all the rest."""

    def owner(path: pathlib.Path) -> int:
        parts = [part for part in path.parts if part.startswith("ocdbt.process_")]
        number = parts[0].removeprefix("ocdbt.process_") if parts else ""
        return int(number) if number.isdecimal() else 0

    return [path for path in files if owner(path) == rank]


def own_digests(leaves: Mapping[str, jax.Array]) -> tuple[dict[str, int], str]:
    """This process's part of the digest of each array; the parts of all add up to the whole.

    Returns:
      The parts, and the name of the first array whose part here is not finite, empty if all are.
    """
    digests, strange = {}, ""
    for name, leaf in leaves.items():
        digests[name] = 0
        for shard in leaf.addressable_shards:
            if shard.replica_id == 0:
                values = np.asarray(shard.data)
                digests[name] += digest(values, _starts(shard.index))
                strange = strange or ("" if _is_finite(values) else name)
    return digests, strange


def _is_finite(values: np.ndarray) -> bool:
    return not jnp.issubdtype(values.dtype, jnp.inexact) or bool(np.isfinite(values).all())


class Reader:
    """Reads the arrays of one checkpoint.

    Args:
      folder: of the checkpoint.
      holder: the folder of the checkpoint in which an array stands; None where all stand here.
    """

    def __init__(
        self, folder: pathlib.Path, holder: Callable[[str], pathlib.Path] | None = None
    ) -> None:
        self._holder = holder or (lambda _: folder)
        self._context = ts.Context({"cache_pool": {"total_bytes_limit": _INDEX_CACHE_BYTES}})

    def blocks(self, name: str, fact: names.Fact) -> Iterator[tuple[Range, np.ndarray]]:
        """Every block of an array with its place, each read once.

        Args:
          name: of the array.
          fact: what the manifest says that it is; compared before anything is read.

        Raises:
          ValueError: it is something else, or cannot be opened.
        """
        store = self._open([name])[name]
        found = names.Fact(tuple(store.shape), str(store.dtype.numpy_dtype), fact.key)
        if found != fact:
            raise ValueError(f"it is {found} on disk, and {fact} in the manifest")
        whole = tuple((0, size) for size in store.shape)
        return _read_ahead((block, store) for block in _overlapping(store, [whole]))

    def whole(self, name: str, fact: names.Fact) -> np.ndarray:
        """An array in this process's memory; see `blocks`."""
        blocks = self.blocks(name, fact)
        array = np.empty(fact.shape, np.dtype(fact.dtype))
        for block, values in blocks:
            array[_slices(block)] = values
        return array

    def restore(self, wanted: Mapping[str, Any]) -> tuple[dict[str, jax.Array], dict[str, int]]:
        """Arrays on devices.

        No device is ever given more than its own shard. Host memory holds the shards of the
        arrays that are being read, and a few blocks.

        Args:
          wanted: for each name a shape, a dtype and a sharding.

        Returns:
          The arrays, and this process's part of the digest of each as it was read.
        """
        stores = self._open(list(wanted))
        # The largest first: their copies on the host are then beside little that is kept.
        first = sorted(wanted, key=lambda name: -math.prod(wanted[name].shape))
        targets = {name: _Target(wanted[name]) for name in first}
        reads = (
            ((block, name), stores[name])
            for name, target in targets.items()
            for block in _overlapping(stores[name], target.ranges)
        )
        arrays, digests = {}, {}
        for name, found in itertools.groupby(
            _read_ahead(reads, lambda tag: tag[0]), lambda pair: pair[0][1]
        ):
            target = targets[name]
            target.allocate()
            for (block, _), values in found:
                target.put(block, values)
            digests[name] = target.digest()
            arrays[name] = target.array()
        return arrays, digests

    def _open(self, wanted: list[str]) -> dict[str, Any]:
        futures = {
            name: ts.open(
                {
                    "driver": "zarr",
                    "kvstore": {
                        "driver": "ocdbt",
                        "base": f"file://{(self._holder(name) / FOLDER).absolute()}/",
                        "path": name.replace("/", ".") + "/",
                    },
                    "recheck_cached_data": False,
                },
                open=True,
                read=True,
                context=self._context,
            )
            for name in wanted
        }
        return {name: future.result() for name, future in futures.items()}


class _Target:
    """The shards of one array that this process holds, while they are filled."""

    def __init__(self, leaf: Any) -> None:
        self._shape, self._dtype, self._sharding = tuple(leaf.shape), leaf.dtype, leaf.sharding
        where = self._sharding.devices_indices_map(self._shape)
        first: dict[Range, Any] = {}
        for device, index in where.items():
            first.setdefault(range_of(index, self._shape), device)
        local = own_ranges(self._shape, self._sharding)
        self.ranges = list(local)
        self._counted = [place for place, devices in local.items() if first[place] in devices]

    def allocate(self) -> None:
        self._buffers = {
            place: np.empty([hi - lo for lo, hi in place], self._dtype) for place in self.ranges
        }

    def put(self, block: Range, values: np.ndarray) -> None:
        for place, buffer in self._buffers.items():
            common = _intersection(block, place)
            if common is not None:
                buffer[_within(common, place)] = values[_within(common, block)]

    def digest(self) -> int:
        """Each shard is counted by one process, the one that has its first copy."""
        return sum(digest(self._buffers[place], [lo for lo, _ in place]) for place in self._counted)

    def array(self) -> jax.Array:
        return from_host(self._shape, self._sharding, self._buffers.pop)


def _read_ahead(
    reads: Iterator[tuple[Any, Any]], block_of: Callable[[Any], Range] = lambda tag: tag
) -> Iterator[tuple[Any, np.ndarray]]:
    """Reads (tag, store) in order, a few at a time ahead of who takes them."""
    waiting: collections.deque[tuple[Any, Any]] = collections.deque()
    for tag, store in reads:
        waiting.append((tag, store[_slices(block_of(tag))].read()))
        if len(waiting) > _IN_FLIGHT:
            done, future = waiting.popleft()
            yield done, future.result()
    while waiting:
        done, future = waiting.popleft()
        yield done, future.result()


def _overlapping(store: Any, ranges: list[Range]) -> list[Range]:
    """The blocks that hold anything of some ranges, in order, each once."""
    size = store.chunk_layout.read_chunk.shape or ()  # of a scalar there is none
    found: set[tuple[int, ...]] = set()
    for place in ranges:
        if all(lo < hi for lo, hi in place):
            spans = (range(lo // n, -(-hi // n)) for (lo, hi), n in zip(place, size, strict=True))
            found.update(itertools.product(*spans))
    return [
        tuple(
            (i * n, min((i + 1) * n, whole))
            for i, n, whole in zip(cell, size, store.shape, strict=True)
        )
        for cell in sorted(found)
    ]


def _starts(index: tuple[slice, ...]) -> list[int]:
    return [part.start or 0 for part in index]


def _slices(block: Range) -> tuple[slice, ...]:
    return tuple(slice(lo, hi) for lo, hi in block)


def _intersection(a: Range, b: Range) -> Range | None:
    common = tuple((max(p[0], q[0]), min(p[1], q[1])) for p, q in zip(a, b, strict=True))
    return common if all(lo < hi for lo, hi in common) else None


def _within(block: Range, outer: Range) -> tuple[slice, ...]:
    """A block counted from the beginning of another."""
    return tuple(
        slice(lo - start, hi - start) for (lo, hi), (start, _) in zip(block, outer, strict=True)
    )


def count_bytes(leaves: Mapping[str, Any]) -> int:
    """Bytes of whole arrays as they are stored, before compression."""
    facts = map(names.fact, leaves.values())
    return sum(math.prod(fact.shape) * np.dtype(fact.dtype).itemsize for fact in facts)


def totals(digests: Mapping[str, int]) -> dict[str, str]:
    """The digests of whole arrays from what each process has of them."""
    own = np.array([add([value]) for value in digests.values()], np.uint64)
    parts = processes.gather(own.view(np.uint32)).view(np.uint64)  # JAX would cut 64 bits short
    return {name: shown(add(parts[:, i].tolist())) for i, name in enumerate(digests)}
