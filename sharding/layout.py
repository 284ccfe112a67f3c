"""How the arrays of a run lie on a mesh: who holds what, by which rules."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from sharding.axes import Axes
from sharding.degrees import IN_LEVELS, Degrees, check_levels
from sharding.errors import UserError
from sharding.mesh import axis_of, in_words, level_names
from sharding.overlap import OVERLAPS
from sharding.parallel import WORDS, Parallel
from sharding.pipeline.balance import balance, parsed, to_turns
from sharding.quantised import Bits
from sharding.quantised import parsed as parsed_bits
from sharding.rules import partition_spec


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh and what its axes are used for.

    Attributes:
      mesh: the devices.
      parallel: what each axis is used for.
      backend: what the devices of an abstract mesh would be, see `Axes.backend`; those of another
        mesh say it themselves.

    Raises:
      UserError: an axis of several devices that the preset leaves without work; degrees of
        `parallel.shards` that are no groups of the data axis.
    """

    mesh: Mesh
    parallel: Parallel = Parallel()
    backend: str | None = None

    def __post_init__(self) -> None:
        for name, size in self.mesh.shape.items():
            if size > 1 and axis_of(name) not in self.parallel.mesh_axes:
                word = next(word for word, axis in WORDS.items() if axis == axis_of(name))
                raise UserError(
                    f"mesh axis {name}={size} has no work under parallel.preset="
                    f"{self.parallel.preset}: add '+{word}', or make the axis 1"
                )
        levels = [self._size(name) for name in self.levels]
        alone = set(IN_LEVELS) & set(self.parallel.words)
        if alone and sum(size > 1 for size in levels) == 1:
            raise UserError(
                f"parallel.preset={self.parallel.preset}: '{alone.pop()}' needs mesh axis "
                f"data={'x'.join(map(str, levels))} in levels, each of several devices, as "
                f"--mesh=data=2x4"
            )
        if self.parallel.shards and math.prod(levels) > 1:
            check_levels(self.degrees, levels, f"parallel.shards={self.parallel.shards}")
        if self.parallel.bits and math.prod(levels) > 1:
            self._check_bits()

    def _check_bits(self) -> None:
        """Refuses bits of messages that are not sent."""
        bits, degrees = self.bits, self.degrees
        for kind, message, degree in (
            ("weights", "gathered", degrees.weights),
            ("gradients", "scattered", degrees.state),
        ):
            if getattr(bits, kind) and degree == 1:
                raise UserError(
                    f"parallel.bits={self.parallel.bits}: no {kind} are {message} where each "
                    f"device of data holds them whole: split them with parallel.preset or "
                    f"parallel.shards, or leave out {kind}"
                )

    @property
    def shown(self) -> str:
        """The mesh in words: "mesh data=2,seq=1,tensor=4"."""
        return f"mesh {in_words(self.mesh.shape)}"

    @property
    def axes(self) -> Axes:
        """What the program of one device knows. An axis of one device splits nothing: None."""
        splits = {k: v for k, v in self.parallel.table.items() if v and self._size(v) > 1}
        tokens = "tensor_tokens" in self.parallel.words
        data = tuple(name for name in self.levels if self._size(name) > 1)
        return Axes(
            data=self._split("data") if self.levels == ("data",) else data or None,
            seq=self._split("seq"),
            residual=self._split("tensor") if tokens else None,
            expert=self._split("expert"),
            splits=tuple(sorted(splits.items())),
            turns=self.parallel.turns if "layer" in splits else 1,
            layers=self._unlike if "layer" in splits else (),
            overlap=None if self.parallel.overlap == OVERLAPS[0] else self.parallel.overlap,
            backend=self._backend,
        )

    @property
    def levels(self) -> tuple[str, ...]:
        """The mesh axes of `data`, the outermost first."""
        return tuple(name for name in self.mesh.shape if axis_of(name) == "data")

    @property
    def degrees(self) -> Degrees:
        """Over how many devices of `data` each kind of state is split."""
        return self.parallel.degrees([self._size(name) for name in self.levels])

    @property
    def bits(self) -> Bits:
        """In how many bits numbers are sent over `data`."""
        return parsed_bits(self.parallel.bits)

    @property
    def weight_axes(self) -> tuple[str, ...]:
        """The mesh axes that parameters are split over between steps, the innermost first."""
        return self._innermost(self.degrees.weights)

    @property
    def layer_axes(self) -> tuple[str, ...]:
        """Those that parameters are split over in a step: what each layer is gathered over."""
        return self._innermost(self.degrees.secondary or self.degrees.weights)

    @property
    def gradient_axes(self) -> tuple[str, ...]:
        """Those that gradients are split over while the parts of a batch are summed."""
        return self._innermost(self.degrees.gradients)

    @property
    def state_axes(self) -> tuple[str, ...]:
        """Those that the optimizer's state is split over."""
        return self._innermost(self.degrees.state)

    @property
    def stages(self) -> int:
        """Stages that the layers of a model are split into."""
        return self._size("pipe")

    @property
    def worker_axis(self) -> str | None:
        """The axis that splits workers which meet now and then; None where each device has all."""
        return self._split("worker")

    @property
    def without_workers(self) -> Layout:
        """The same devices, those of `worker` along `data` too: how workers validate together.

        Beside levels of `data`, or degrees that are groups of it, they are its outermost level.
        """
        if self.worker_axis is None:
            return self
        names, levels = self.mesh.axis_names, self.levels
        worker, data = names.index("worker"), names.index(levels[0])
        beside = np.moveaxis(self.mesh.devices, worker, data - 1)  # just outside of `data`
        if apart := len(levels) > 1 or bool(self.parallel.shards):
            names = (*names[:data], *level_names(len(levels) + 1), *names[data + len(levels) :])
        shape = [1, *beside.shape]
        if not apart:
            shape[data : data + 2] = [math.prod(shape[data : data + 2])]
        types = (self.mesh.axis_types[0],) * len(names)
        mesh = Mesh(beside.reshape(shape), names, axis_types=types)
        return dataclasses.replace(self, mesh=mesh)

    @property
    def in_order(self) -> Layout:
        """The same mesh, each stage with layers that follow one another: as they are read."""
        return dataclasses.replace(self, parallel=self.parallel.in_order)

    def layers_of_chunks(self, depth: int) -> tuple[int, ...]:
        """How many layers each chunk has, of `depth` in all; () where all have as many.

        Chunks are in the order of the layers: the first one of each stage, then the second ones.
        A stage's layers are dealt to its chunks as evenly as can be, the first ones having more.

        Raises:
          UserError: `parallel.stages` or `parallel.speeds` of another number of stages, or layers;
            a chunk without any.
        """
        parallel, stages, turns = self.parallel, self.stages, self.parallel.turns
        given = parallel.stages or parallel.speeds
        if stages == 1 or not given:
            return ()
        field = "stages" if parallel.stages else "speeds"
        numbers = parsed(given, f"parallel.{field}", int if parallel.stages else float)
        each = parallel.stages and len(numbers) == stages * turns
        if len(numbers) != stages and not each:
            raise UserError(
                f"parallel.{field}={given}: {len(numbers)} numbers, and mesh axis pipe={stages}: "
                f"give one for each stage"
            )
        if parallel.stages and sum(numbers) != depth:
            raise UserError(
                f"parallel.stages={given} is {sum(numbers)} layers, and the model has {depth}"
            )
        if not parallel.stages:
            found = balance([1.0] * depth, numbers * turns)
        else:
            own = tuple(map(int, numbers))
            found = own if each else to_turns(own, turns)
        if not min(found):
            raise UserError(
                f"parallel.stages={given} with parallel.turns={turns}: give each stage at least a "
                f"layer for each turn"
            )
        return () if len(set(found)) == 1 else found

    def as_read(self, depth: int) -> Layout:
        """How a state lies that is read, or written, in the order and number of a checkpoint.

        Where chunks have unlike numbers of layers, every stage holds all layers meanwhile.
        """
        if not self.layers_of_chunks(depth):
            return self
        rules = ",".join(filter(None, (self.parallel.rules, "layer=none")))
        parallel = dataclasses.replace(self.in_order.parallel, rules=rules)
        return dataclasses.replace(self, parallel=parallel)

    def with_layers(self, depth: int) -> Layout:
        """The layout with `parallel.stages` of each chunk, in the place of what was given."""
        found = self.layers_of_chunks(depth)
        parallel = dataclasses.replace(self.parallel, speeds="", stages=",".join(map(str, found)))
        return dataclasses.replace(self, parallel=parallel)

    @property
    def whole(self) -> Layout:
        """The same mesh without ZeRO, split residual streams or turns, as for decoding."""
        return dataclasses.replace(self, parallel=self.parallel.whole)

    def spec(self, name: str, shape: Sequence[int], axes: Sequence[str | None]) -> PartitionSpec:
        """How a parameter is split by the rules alone: what a layer is given.

        Raises:
          UserError: see `rules.partition_spec`.
        """
        return partition_spec(name, shape, axes, self.mesh, self.parallel.table)

    def shard_dim(self, name: str, shape: Sequence[int], axes: Sequence[str | None]) -> int:
        """The dimension of a parameter that ZeRO splits over `state_axes`, counted from the end.

        The largest one that no rule splits and that divides; else one whose remaining part
        divides; else 0: a parameter too small to be split stays whole. Never `layer`, since
        layers are gathered one by one. Smaller groups split the same dimension.
        """
        parts = math.prod(map(self._size, self.state_axes))
        if parts == 1:
            return 0
        spec = self.spec(name, shape, axes)
        whole, split = [], []
        for dim, (size, axis, mesh_axis) in enumerate(zip(shape, axes, spec, strict=True)):
            own = size // (self._size(mesh_axis) if mesh_axis else 1)
            if axis != "layer" and own % parts == 0:
                (split if mesh_axis else whole).append((own, dim - len(shape)))
        for candidates in (whole, split):
            if candidates:
                return max(candidates, key=lambda found: found[0])[1]
        return 0

    def stored_spec(
        self,
        name: str,
        shape: Sequence[int],
        axes: Sequence[str | None],
        over: Sequence[str] | None = None,
    ) -> PartitionSpec:
        """`spec` with `shard_dim` split as well: how ZeRO stores state.

        Args:
          name: see `spec`.
          shape: likewise.
          axes: likewise.
          over: the mesh axes that split it, the innermost level first, so that a part of a larger
            group is a part of that of a smaller one; `state_axes` if None.
        """
        entries = list(self.spec(name, shape, axes))
        dim = self.shard_dim(name, shape, axes)
        over = self.state_axes if over is None else over
        if dim and over:
            names = [entries[dim], *over] if entries[dim] else [*over]
            entries[dim] = tuple(names) if len(names) > 1 else names[0]
        return PartitionSpec(*entries)

    def check_batch(self, rows: int, tokens: int | None) -> None:
        """Raises a UserError if a batch cannot be split as the mesh asks.

        Args:
          rows: of the batch.
          tokens: of a row; None where rows are no sequences.
        """
        for names in (("data",), self.axes.rows):  # the usual axis alone is the simpler message
            parts = math.prod(self._size(name) for name in names)
            if rows % parts:
                shown = " x ".join(f"{name}={self._size(name)}" for name in names)
                raise UserError(
                    f"a batch of {rows} rows is not divisible by mesh axis {shown}: "
                    f"change train.batch (or train.accumulate), or the mesh"
                )
        for names in (("seq",), self.axes.tokens) if tokens is not None else ():
            parts = 1
            for name in names:
                parts *= self._size(name)
            if (tokens or 0) % parts:
                shown = " x ".join(f"{name}={self._size(name)}" for name in names)
                raise UserError(
                    f"data.window of {tokens} tokens is not divisible by mesh axis {shown}: "
                    f"change data.window, or the mesh"
                )

    def rows_over(self, rows: int) -> dict[str, Any]:
        """The fields of `Axes` that split so many rows of a batch: those axes that divide them."""
        left, names = rows, []
        for name in self.axes.rows:
            if left and left % self._size(name) == 0:
                names.append(name)
                left //= self._size(name)
        levels = tuple(name for name in names if axis_of(name) == "data")
        data = "data" if levels == ("data",) else levels or None
        return {"data": data, "expert": "expert" if "expert" in names else None}

    @property
    def row_parts(self) -> int:
        """How many parts the rows of a batch are split into."""
        return math.prod(self._size(name) for name in self.axes.rows)

    @property
    def _unlike(self) -> tuple[int, ...]:
        """The layers of chunks where these are given, and differ."""
        given = parsed(self.parallel.stages, "parallel.stages", int)
        return self.layers_of_chunks(int(sum(given))) if given else ()

    @property
    def _backend(self) -> str | None:
        """What the devices are: an abstract mesh has none, and cannot tell."""
        mesh = self.mesh
        return self.backend if isinstance(mesh, AbstractMesh) else mesh.devices.flat[0].platform

    def _innermost(self, degree: int) -> tuple[str, ...]:
        """The mesh axes of the innermost levels that have so many devices together."""
        found, names = 1, []
        for name in reversed(self.levels):
            if found < degree and self._size(name) > 1:
                names.append(name)
                found *= self._size(name)
        return tuple(names)

    def _size(self, name: str) -> int:
        if name == "data":
            return math.prod(self.mesh.shape[level] for level in self.levels)
        return self.mesh.shape.get(name, 1)

    def _split(self, name: str) -> str | None:
        return name if self._size(name) > 1 else None


def bytes_held(arrays: Any, shardings: Any) -> int:
    """Bytes of a tree of arrays (or their shapes) that one device holds.

    Random keys, which JAX does not tell the size of, count as the words that they are made of.
    """

    def held(x: Any, sharding: Any) -> int:
        shape, dtype = sharding.shard_shape(x.shape), x.dtype
        if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
            words = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(shape, dtype))
            shape, dtype = words.shape, words.dtype
        return math.prod(shape) * dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(held, arrays, shardings)))
