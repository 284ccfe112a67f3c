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
from sharding.bounds import Size, check_bounds
from sharding.degrees import IN_LEVELS, TABLE, Degrees, check_levels
from sharding.degrees import parsed as parsed_degrees
from sharding.errors import UserError, unknown
from sharding.mesh import axis_of, in_words
from sharding.overlap import OVERLAPS
from sharding.pipeline.balance import balance, parsed
from sharding.pipeline.tables import ONE_F_ONE_B, check_schedule
from sharding.quantised import Bits
from sharding.quantised import parsed as parsed_bits
from sharding.rules import DEFAULT_RULES, Rules, partition_spec

WORDS = {
    **dict.fromkeys(TABLE, "data"),
    "sequence": "seq",
    "tensor": "tensor",
    "tensor_tokens": "tensor",
}
"""Word of a preset -> the mesh axis that it gives work to."""

OWN_WORK = frozenset({"stream", "expert", "pipe", "worker"})
"""Mesh axes with one use only, which a model has or has not; no word asks for it."""


@dataclasses.dataclass(frozen=True)
class Parallel:
    """What each mesh axis is used for. It changes where numbers are, not what they are.

    Attributes:
      preset: words joined by "+", at most one for each mesh axis.
        data: every device holds all parameters and the optimizer's state;
        zero1: the optimizer's state and arithmetic are split over `data` (ZeRO stage 1);
        zero2: gradients too, as soon as a layer has them (ZeRO stage 2);
        fully_sharded: parameters too, gathered layer by layer (ZeRO stage 3);
        mics: all of them over the inner levels of `data` alone (MiCS);
        hpz: `fully_sharded`, layers gathered from a second copy over the inner levels (ZeRO++);
        sequence: tokens are split over `seq`;
        tensor: slots, heads, channels, hidden units and vocabulary are split over `tensor`;
        tensor_tokens: likewise, and between layers tokens are split over `tensor` as well.
      rules: changes to the table of `sharding.rules`, as "ffn=none,slot=tensor".
      schedule: in which order the stages of the mesh axis `pipe` take the parts of a batch: gpipe,
        1f1b or interleaved, see `sharding.pipeline.tables`.
      turns: chunks of layers that each stage of an interleaved schedule holds.
      stages: layers of each stage, as "5,3"; empty for as many on each.
      speeds: of each stage, as "197,160": the layers are dealt out so that the slowest stage is as
        fast as can be, see `sharding.pipeline.balance`; empty for equal ones.
      overlap: beside tensor_tokens, how the products at the ends of a layer go along with the
        messages over `tensor`: none, one after the other; ring, in steps of a ring; two_way, in two
        rings, each with half of the tokens; see `sharding.overlap`.
      bits: in how many bits, 8 or 4, weights are gathered and gradients scattered over `data`, as
        "weights:8,gradients:4"; as they are if empty. It changes what a run computes, see
        `sharding.quantised`.
      shards: over how many devices of `data` weights, gradients and the optimizer's state are
        split, as "weights:2,gradients:4,state:8,secondary:1", in the place of what a word says;
        see `sharding.degrees`.
    """

    preset: str = "data+sequence+tensor"
    rules: str = ""
    schedule: str = ONE_F_ONE_B
    turns: Size = 1
    stages: str = ""
    speeds: str = ""
    overlap: str = OVERLAPS[0]
    shards: str = ""
    bits: str = ""

    def __post_init__(self) -> None:
        check_bounds(self, "parallel")
        check_schedule(self.schedule, self.turns)
        given = [name for name in ("stages", "speeds") if getattr(self, name)]
        if len(given) > 1:
            raise UserError("parallel.stages and parallel.speeds both deal out layers: give one")
        if given and self.turns > 1:
            raise UserError(
                f"parallel.{given[0]}={getattr(self, given[0])}: stages of unlike size have one "
                f"chunk each: leave parallel.turns at 1"
            )
        parsed(self.stages, "parallel.stages", int)
        parsed(self.speeds, "parallel.speeds", float)
        used: dict[str, str] = {}
        for word in self.words:
            if word not in WORDS:
                raise UserError(f"parallel.preset={self.preset}: {unknown(word, WORDS)}")
            if WORDS[word] in used:
                raise UserError(
                    f"parallel.preset={self.preset}: '{used[WORDS[word]]}' and '{word}' both "
                    f"decide what the {WORDS[word]} axis does: keep one"
                )
            used[WORDS[word]] = word
        self._check_overlap()
        parsed_bits(self.bits)
        if self.shards:
            parsed_degrees(self.shards)
            if (word := used.get("data", "data")) != "data":
                raise UserError(
                    f"parallel.shards={self.shards} and '{word}' in parallel.preset both say how "
                    f"state is split: give one"
                )
        _ = self.table

    def _check_overlap(self) -> None:
        if self.overlap not in OVERLAPS:
            raise UserError(f"parallel.overlap={self.overlap}: {unknown(self.overlap, OVERLAPS)}")
        if self.overlap != OVERLAPS[0] and "tensor_tokens" not in self.words:
            raise UserError(
                f"parallel.overlap={self.overlap} needs messages that it can overlap with: put "
                f"tensor_tokens into parallel.preset={self.preset}"
            )

    @property
    def words(self) -> tuple[str, ...]:
        """The preset's words."""
        return tuple(self.preset.split("+")) if self.preset else ()

    def degrees(self, levels: Sequence[int]) -> Degrees:
        """How state is split over a data axis in these levels, the outermost first."""
        devices = math.prod(levels)
        if devices == 1:
            return Degrees()
        if self.shards:
            return parsed_degrees(self.shards)
        word = next((word for word in self.words if word in TABLE), "data")
        return TABLE[word](devices, math.prod(levels[1:]))

    @property
    def exact(self) -> Parallel:
        """The same, every number sent as it is."""
        return dataclasses.replace(self, bits="")

    @property
    def whole(self) -> Parallel:
        """The same without ZeRO, split residual streams or turns, as for decoding."""
        plain = dict.fromkeys(TABLE, "data") | {"tensor_tokens": "tensor"}
        preset = "+".join(plain.get(word, word) for word in self.words)
        return dataclasses.replace(
            self.in_order, preset=preset, shards="", bits="", overlap=OVERLAPS[0]
        )

    @property
    def in_order(self) -> Parallel:
        """The same, each stage with layers that follow one another."""
        return dataclasses.replace(self, schedule=ONE_F_ONE_B, turns=1, stages="", speeds="")

    @property
    def mesh_axes(self) -> set[str]:
        """The mesh axes that have work."""
        return {WORDS[word] for word in self.words} | OWN_WORK

    @property
    def table(self) -> Rules:
        """Logical axis -> mesh axis."""
        table = {
            logical: axis if axis in self.mesh_axes else None
            for logical, axis in DEFAULT_RULES.items()
        }
        for entry in filter(None, self.rules.split(",")):
            logical, _, axis = entry.partition("=")
            if logical not in table:
                raise UserError(f"parallel.rules={self.rules}: {unknown(logical, table)}")
            if axis not in ("none", "tensor"):
                raise UserError(
                    f"parallel.rules={self.rules}: '{logical}' can go to 'tensor' or 'none', not "
                    f"to '{axis}'"
                )
            table[logical] = None if axis == "none" else axis
        return table


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh and what its axes are used for.

    Raises:
      UserError: an axis of several devices that the preset leaves without work; degrees of
        `parallel.shards` that are no groups of the data axis.
    """

    mesh: Mesh
    parallel: Parallel = Parallel()

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
        if alone and len(levels) == 1 and levels[0] > 1:
            raise UserError(
                f"parallel.preset={self.parallel.preset}: '{alone.pop()}' needs mesh axis "
                f"data={levels[0]} in levels, as --mesh=data=2x4"
            )
        if self.worker_axis and (len(levels) > 1 or self.parallel.shards):
            raise UserError(
                f"mesh axis worker={self._size('worker')} is joined with data when the run is "
                f"validated: give data in one level, and a word of parallel.preset for "
                f"parallel.shards"
            )
        if self.parallel.shards and math.prod(levels) > 1:
            check_levels(self.degrees, levels, f"parallel.shards={self.parallel.shards}")
        if self.parallel.bits and math.prod(levels) > 1:
            self._check_bits()

    def _check_bits(self) -> None:
        """Refuses bits of messages that are not sent, or not known to be sent rightly."""
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
        if self.stages > 1:
            raise UserError(
                f"parallel.bits={self.parallel.bits} beside mesh axis pipe={self.stages}: between "
                f"stages layers are gathered as they are: leave out the one or the other"
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
        """The same devices, those of `worker` along `data` too: how workers validate together."""
        if self.worker_axis is None:
            return self
        names = self.mesh.axis_names
        worker, data = names.index("worker"), names.index("data")
        shape = [*self.mesh.devices.shape]
        shape[worker], shape[data] = 1, shape[worker] * shape[data]
        beside = np.moveaxis(self.mesh.devices, worker, data - 1)  # just outside of `data`
        mesh = Mesh(beside.reshape(shape), names, axis_types=self.mesh.axis_types)
        return dataclasses.replace(self, mesh=mesh)

    @property
    def in_order(self) -> Layout:
        """The same mesh, each stage with layers that follow one another: as they are read."""
        return dataclasses.replace(self, parallel=self.parallel.in_order)

    def layers_of_stages(self, depth: int) -> tuple[int, ...]:
        """How many layers each stage has, of `depth` in all; () where all have as many.

        Raises:
          UserError: `parallel.stages` or `parallel.speeds` of another number of stages, or layers.
        """
        parallel, stages = self.parallel, self.stages
        given = parallel.stages or parallel.speeds
        if stages == 1 or not given:
            return ()
        field = "stages" if parallel.stages else "speeds"
        numbers = parsed(given, f"parallel.{field}", int if parallel.stages else float)
        if len(numbers) != stages:
            raise UserError(
                f"parallel.{field}={given}: {len(numbers)} numbers, and mesh axis pipe={stages}: "
                f"give one for each stage"
            )
        if parallel.stages and sum(numbers) != depth:
            raise UserError(
                f"parallel.stages={given} is {sum(numbers)} layers, and the model has {depth}"
            )
        found = tuple(map(int, numbers)) if parallel.stages else balance([1.0] * depth, numbers)
        return () if len(set(found)) == 1 else found

    def as_read(self, depth: int) -> Layout:
        """How a state lies that is read, or written, in the order and number of a checkpoint.

        Where stages have unlike numbers of layers, every stage holds all layers meanwhile.
        """
        if not self.layers_of_stages(depth):
            return self
        rules = ",".join(filter(None, (self.parallel.rules, "layer=none")))
        parallel = dataclasses.replace(self.in_order.parallel, rules=rules)
        return dataclasses.replace(self, parallel=parallel)

    def with_layers(self, depth: int) -> Layout:
        """The layout with `parallel.stages` in the place of `parallel.speeds`."""
        found = self.layers_of_stages(depth)
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
        """The layers of stages where these are given, and differ."""
        found = tuple(map(int, parsed(self.parallel.stages, "parallel.stages", int)))
        return () if len(set(found)) < 2 else found

    @property
    def _backend(self) -> str | None:
        """What the devices are, if they are any: an abstract mesh has none."""
        mesh = self.mesh
        return None if isinstance(mesh, AbstractMesh) else mesh.devices.flat[0].platform

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
