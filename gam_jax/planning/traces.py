"""What the program of a training step multiplies, moves and holds, for meshes of any size.

Programs of one class differ in sizes alone. So one or two of a class are traced, and the rest is
scaled from them: an array whose bytes have the rows of a device as a factor grows with them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.interpreters import partial_eval
from jax.sharding import AbstractMesh, AxisType

from gam_jax.bilevel import Bilevel
from gam_jax.config import to_dict
from gam_jax.models.base import Model
from gam_jax.optimizer import OptimizerConfig
from gam_jax.params import Param, shard_dims, shardings, stored_specs
from gam_jax.planning.live import Lives, lives
from sharding.degrees import in_words, parsed
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import AXIS_NAMES, in_levels
from sharding.parallel import Parallel

PRIMES = (11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71)
"""Rows of a device that is traced: one that is no factor of any size in a model."""


Program = Callable[[Model, Layout, int], Any]
"""(model, layout, rows of a device) -> the jaxpr of a step's gradients."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What is planned.

    Attributes:
      model: fitted to its data.
      optimizer: its configuration.
      batch: rows of a step, all devices together.
      window: tokens of a row; 0 where rows are no sequences.
      program: of one device and one part of a batch.
      backend: whose program that is: "cpu", "gpu" or "tpu"; None for JAX's default.
      chip: bytes of memory on a device's chip in which its compiler places arrays; 0 for none.
      bilevel: the run's optimizer of logits. Where it is on, the program is of two parts of a
        batch, one for the weights and one for the logits; what is planned is a step that trains
        both.
    """

    model: Model
    optimizer: OptimizerConfig
    batch: int
    window: int
    program: Program
    backend: str | None = None
    chip: float = 0.0
    bilevel: Bilevel = Bilevel()

    def through(self, parts: int) -> int:
        """Of so many parts of a batch, those that train the weights, one after another.

        Raises:
          UserError: they cannot be halved, and the other half trains logits.
        """
        if self.bilevel.on and parts % 2:
            raise UserError(f"{parts} parts, of which half train logits (train.bilevel)")
        return parts // 2 if self.bilevel.on else parts

    def with_remat(self, remat: bool) -> Model:
        """The model with blocks computed again in the backward pass, or not.

        Raises:
          UserError: they should be, of a model that has no such field.
        """
        model: Any = self.model
        if getattr(model, "remat", False) == remat:
            return model
        if not hasattr(model, "remat"):
            raise UserError(f"{type(model).__name__} computes no blocks again: plan without remat")
        return dataclasses.replace(model, remat=remat)


ON_CHIP = 0.5
"""The share of what may lie on the chip that does."""
SCALED = ("tensor", "seq")
"""Axes whose sizes a program of a class may have any of."""


@dataclasses.dataclass(frozen=True)
class Levels:
    """A data axis in levels.

    Attributes:
      sizes: the outermost first; () where it is in one.
      shards: degrees of the parts of its state, see `sharding.degrees`; empty where a word of the
        preset says them.
    """

    sizes: tuple[int, ...] = ()
    shards: str = ""


@dataclasses.dataclass(frozen=True)
class Class:
    """What makes programs differ, and not in their sizes alone.

    Attributes:
      preset: words that change the program of a device, see `class_of`.
      remat: whether blocks are computed again in the backward pass.
      split: which axes of `SCALED` have several devices.
      sizes: of the other axes but `data` and `pipe`, whose programs are not scaled.
      use: of `data`, where it is in levels: no program is then scaled to another.
    """

    preset: str
    remat: bool
    split: tuple[str, ...]
    sizes: tuple[tuple[str, int], ...]
    use: Levels = Levels()


@dataclasses.dataclass(frozen=True)
class Terms:
    """Sums whose terms grow with what a device has.

    Attributes:
      exponents: of rows, 1 / tensor, 1 / seq and 1 / data in each term, [K, 4].
      amounts: of each term where all are as traced, [..., K].
    """

    exponents: np.ndarray
    amounts: np.ndarray

    def at(self, scale: np.ndarray) -> np.ndarray:
        """The sums where these are that many times as large, see `Traced.scale`."""
        return self.amounts @ np.prod(scale**self.exponents, axis=1)


@dataclasses.dataclass(frozen=True)
class Traced:
    """What a class of programs does, of one device and one part of a batch.

    Attributes:
      rows: of a device, in the program that was traced.
      sizes: of its mesh.
      peak: bytes held besides the state, at each point.
      near: of these, what a device with memory on its chip may hold there, see `Lives.near`.
      stacked: bytes that loops stack for later ones.
      moved: bytes written or read, by what is no product.
      operands: bytes written or read by products.
      flops: operations of products, by the dtype of their factors.
      traces: how many programs were traced for it.
    """

    rows: int
    sizes: Mapping[str, int]
    peak: Terms
    near: Terms
    stacked: Terms
    moved: Terms
    operands: Terms
    flops: Mapping[str, Terms]
    traces: int

    def scale(self, rows: float, mesh: Mapping[str, int]) -> np.ndarray:
        """What `Terms.at` takes, of a device with so many rows on a mesh of these sizes."""
        parts = (self.sizes.get(name, 1) / mesh.get(name, 1) for name in (*SCALED, "data"))
        return np.asarray((rows / self.rows, *parts))

    def held(self, scale: np.ndarray, chip: float) -> float:
        """The most bytes held at any point in a device's memory, besides the state.

        Args:
          scale: see `scale`.
          chip: see `Run`; half of what may lie there does. The other half is a share that was
            fitted to what a TPU's compiler says of `experiments.plan_check`.
        """
        away = np.minimum(ON_CHIP * self.near.at(scale), chip)
        return float((self.peak.at(scale) - away).max(initial=0.0))


def class_of(preset: str, remat: bool, mesh: Mapping[str, int], use: Levels = Levels()) -> Class:
    """The class of a step's program.

    The program of a device between its first sum and its last is the same under `data` and
    `zero1`, and whatever the degree of the optimizer's state.
    """
    if use.shards:
        degrees = parsed(use.shards)
        shards = in_words(dataclasses.replace(degrees, state=degrees.gradients))
        use = dataclasses.replace(use, shards=shards)
    words = {"zero1": "data"}
    kept = "+".join(words.get(word, word) for word in preset.split("+"))
    sizes = tuple(
        (name, mesh[name])
        for name in AXIS_NAMES
        if name not in ("pipe", "data", *SCALED) and mesh.get(name, 1) > 1
    )
    split = tuple(name for name in SCALED if mesh.get(name, 1) > 1)
    return Class(kept, remat, split, sizes, use)


def trace(run: Run, one: Class, asked: Mapping[str, Iterable[int]], rows: int = 0) -> Traced:
    """Traces a program of a class, and one more for each axis that has more than one size.

    Ops may work on many rows in parts, and on few at once. So what is scaled to other rows is near
    what their own program does, and no more.

    Args:
      run: what is planned.
      one: the class.
      asked: the sizes of `data`, `tensor` and `seq` that are asked about; the largest of `data` is
        traced, and the two smallest of the others.
      rows: of a device, where this many alone are asked about; 0 for any number.

    Raises:
      ValueError: the model refuses these devices.
    """
    model = run.with_remat(one.remat)
    rows = rows or _unlike(model, run.window)
    many = {name: sorted(set(asked.get(name, (1,)))) for name in SCALED}
    sizes = {name: least for name, (least, *_) in many.items()}
    sizes |= {"data": max(asked.get("data", (1,))), **dict(one.sizes)}

    def read(sizes: Mapping[str, int]) -> Lives:
        layout = abstract_layout(sizes, one.preset, backend=run.backend, use=one.use)
        return lives(_live(run.program(model, layout, rows)))

    first = read(sizes)
    others = {
        name: (read({**sizes, name: more[1]}), more[1] / more[0])
        for name, more in many.items()
        if len(more) > 1
    }
    shards = _shards(model, abstract_layout(sizes, one.preset, use=one.use))
    found = _terms(first, others, rows, shards, tiled=run.backend == "tpu")
    return Traced(rows, sizes, *found, traces=1 + len(others))


def _live(jaxpr: Any) -> Any:
    """What some result depends on."""
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def abstract_layout(
    sizes: Mapping[str, int],
    preset: str,
    schedule: str = "1f1b",
    turns: int = 1,
    backend: str | None = None,
    use: Levels = Levels(),
) -> Layout:
    """A mesh of no devices."""
    own = in_levels({name: sizes.get(name, 1) for name in AXIS_NAMES}, use.sizes)
    kinds = (AxisType.Auto,) * len(own)
    mesh = AbstractMesh(tuple(own.values()), tuple(own), axis_types=kinds)
    parallel = Parallel(preset, schedule=schedule, turns=turns, shards=use.shards)
    return Layout(mesh, parallel, backend)  # type: ignore[arg-type]


def _unlike(model: Any, window: int) -> int:
    """A number of rows that is no factor of any size in the model, nor of the tokens of a row.

    Raises:
      UserError: there is none among `PRIMES`.
    """
    leaves = jax.tree.leaves(model.table(), is_leaf=lambda x: isinstance(x, Param))
    sizes = {size for param in leaves for size in param.shape}
    sizes |= {window, *_numbers(to_dict(model))} - {0}
    found = next((n for n in PRIMES if all(size % n for size in sizes)), 0)
    if not found:
        raise UserError(f"each of {PRIMES} is a factor of some size of the model: change one")
    return found


def _numbers(values: Any) -> set[int]:
    """The whole numbers of a configuration, as blocks of tokens, which may be sizes of arrays."""
    if isinstance(values, Mapping):
        values = list(values.values())
    if isinstance(values, list | tuple):
        return set().union(*map(_numbers, values))
    return {values} if isinstance(values, int) and not isinstance(values, bool) else set()


def _shards(model: Any, layout: Layout) -> frozenset[int]:
    """Bytes that a shard of a parameter may have, of one block or of all; none without shards."""
    if not layout.weight_axes:
        return frozenset()
    table = model.table()
    leaves = jax.tree.leaves(table, is_leaf=lambda x: isinstance(x, Param))
    placed = jax.tree.leaves(shardings(stored_specs(table, layout), layout))
    dims = jax.tree.leaves(shard_dims(table, layout))
    found = set()
    for param, spec, dim in zip(leaves, placed, dims, strict=True):
        numbers = math.prod(spec.shard_shape(param.shape)) if dim else 0
        layers = math.prod(
            size for size, axis in zip(param.shape, param.axes, strict=True) if axis == "layer"
        )
        found |= {numbers * 4, numbers * 2, numbers // layers * 4, numbers // layers * 2}
    return frozenset(found)


def _terms(
    first: Lives,
    others: Mapping[str, tuple[Lives, float]],
    rows: int,
    shards: frozenset[int],
    tiled: bool,
) -> tuple[Terms, Terms, Terms, Terms, Terms, dict[str, Terms]]:
    """All that is known of a class, from its programs: one, and others by the axis that differs."""

    def exponents(amounts: np.ndarray, of: Callable[[Lives], np.ndarray]) -> np.ndarray:
        sharded = np.asarray([amount in shards for amount in amounts.tolist()], float)
        inside = [_falls(amounts, of, others.get(name)) for name in SCALED]
        return np.stack((_powers(amounts, rows), *inside, sharded), axis=1)

    sizes = exponents(first.sizes, lambda found: found.sizes)
    bytes_held = first.sizes * (first.tiles if tiled else 1.0)
    peak = _grouped(sizes, first.alive * bytes_held)
    near = _grouped(sizes, first.alive * (bytes_held * first.near))
    stacked = _grouped(sizes, first.stacked * first.sizes)
    both = (first.moved - first.operands, first.operands)
    moved, operands = (_grouped(sizes, weight * first.sizes) for weight in both)
    own = exponents(np.rint(first.flops).astype(np.int64), lambda found: found.flops)
    flops = {
        dtype: _grouped(own, first.flops * (np.asarray(first.dtypes) == dtype))
        for dtype in sorted(set(first.dtypes))
    }
    kinds = peak.amounts.shape[-1]
    away = peak.amounts - near.amounts
    points = _undominated(np.concatenate((away, near.amounts), axis=-1))
    near = dataclasses.replace(near, amounts=points[:, kinds:])
    peak = dataclasses.replace(peak, amounts=points[:, :kinds] + points[:, kinds:])
    return peak, near, stacked, moved, operands, flops


def _falls(
    amounts: np.ndarray, of: Callable[[Lives], np.ndarray], other: tuple[Lives, float] | None
) -> np.ndarray:
    """With which power of an axis' size each amount falls: 0 where nothing tells."""
    if other is None or len(of(other[0])) != len(amounts):
        return np.zeros(len(amounts))
    ratio = amounts / np.maximum(of(other[0]), 1)
    return np.round(np.log(np.where(amounts > 0, ratio, 1)) / math.log(other[1]), 3)


def _powers(amounts: np.ndarray, prime: int) -> np.ndarray:
    """How often a prime is a factor of each amount; never where it is 0, nor is 1 ever."""
    found, left = np.zeros(len(amounts), int), amounts.copy()
    if prime == 1:
        return found
    while (again := (left > 0) & (left % prime == 0)).any():
        found += again
        left = np.where(again, left // prime, left)
    return found


def _grouped(exponents: np.ndarray, amounts: np.ndarray) -> Terms:
    """Amounts [..., N] with those of equal exponents [N, 4] added up."""
    kinds, where = np.unique(exponents, axis=0, return_inverse=True)
    added = np.zeros((*amounts.shape[:-1], len(kinds)))
    for kind in range(len(kinds)):
        added[..., kind] = amounts[..., where.reshape(-1) == kind].sum(axis=-1)
    return Terms(kinds, added)


def _undominated(points: np.ndarray) -> np.ndarray:
    """The points of which no other one has at least as much in every term."""
    points = np.unique(points, axis=0)[::-1]
    kept: list[np.ndarray] = []
    for point in points:
        if not any((other >= point).all() for other in kept):
            kept.append(point)
    return np.asarray(kept).reshape(-1, points.shape[-1])
