"""Starts a run from parameters of another: those that names and shapes allow, and says which."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from gam_jax.data.base import Data
from gam_jax.models.base import PARAM_DTYPES
from gam_jax.params import FLOAT32, Param, Params, Table, widened
from gam_jax.training.folder import RunFolder
from sharding.checkpoint import Checkpoints, names
from sharding.checkpoint.digest import digest, shown
from sharding.checkpoint.manifest import Stored
from sharding.errors import UserError
from sharding.whole_file import write_atomically

_PARAMS = "params/"
VOCAB = "vocab"
"""The logical axis along which --init_vocab=resize lets shapes differ."""


class Origin(Protocol):
    """Whose parameters a new run starts from: another run's (`Source`), or a model folder's.

    Attributes:
      source: files that the new run keeps of it, by name.
    """

    @property
    def source(self) -> Mapping[str, bytes]: ...

    def files(self, data: Data) -> Mapping[str, str] | None:
        """What the data keep in the run's folder, where they have it from here; else None."""
        ...

    def plan(self, table: Table) -> Report:
        """What would be taken for a model of this table."""
        ...

    def standing(self) -> Mapping[str, Stored]:
        """Arrays of a training state that stand in a checkpoint, with their places."""
        ...

    def start(self, table: Table, fresh: Params) -> tuple[Params, Report]:
        """The parameters to start with, in place of new ones on the mesh, which may be deleted."""
        ...


@dataclasses.dataclass(frozen=True)
class Source:
    """Whose parameters to take, and which.

    Attributes:
      run: a run's folder.
      which: "latest", "best" or a step.
      include: patterns of names; a name that matches any is taken.
      exclude: patterns of names that are not.
      resize: whether a vocabulary of another size is cut, or filled up with new rows.
    """

    run: RunFolder
    which: str = "latest"
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    resize: bool = False

    @property
    def source(self) -> Mapping[str, bytes]:
        """No files."""
        return {}

    @classmethod
    def parse(cls, text: str, include: str, exclude: str, resize: bool) -> Source:
        """From RUN or RUN@WHICH, and patterns joined by commas."""
        path, _, which = text.partition("@")
        include_all, exclude_all = (tuple(filter(None, p.split(","))) for p in (include, exclude))
        run = RunFolder(pathlib.Path(path))
        return cls(run, which or "latest", include_all or ("*",), exclude_all, resize)

    def open(self) -> tuple[Checkpoints, int]:
        """Its checkpoints and the step.

        Raises:
          UserError: there is none.
        """
        checkpoints = Checkpoints(self.run.checkpoints, read_only=True)
        return checkpoints, checkpoints.choose(self.which)

    def standing(self) -> Mapping[str, Stored]:
        """The arrays of its checkpoint."""
        checkpoints, step = self.open()
        return checkpoints.standing(step)

    def takes(self, name: str) -> bool:
        """Whether the patterns select a parameter."""

        def matches(patterns: tuple[str, ...]) -> bool:
            return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

        return matches(self.include) and not matches(self.exclude)

    def files(self, data: Data) -> Mapping[str, str] | None:
        """What data keep that a new run has from the source: nothing."""
        return None

    def plan(self, table: Table) -> Report:
        """What would be taken; reads no array.

        Args:
          table: of the model, with the dtypes in which it stores them.

        Raises:
          UserError: no such checkpoint, a damaged one, one of another vocabulary that is not to
            be resized, or nothing in it to take.
        """
        checkpoints, step = self.open()
        stored = {
            name.removeprefix(_PARAMS): found.fact
            for name, found in checkpoints.manifest(step).arrays.items()
            if name.startswith(_PARAMS)
        }
        kinds: dict[str, list[str]] = {field.name: [] for field in dataclasses.fields(Report)[1:]}
        params: dict[str, Param] = names.flat(table)
        for name, param in params.items():
            kinds[_kind(self, name, param, stored)].append(name)
        for name in kinds["other_shape"]:
            _check_vocabulary(f"{self.run.path}@{step}", name, params[name], stored[name].shape)
        kinds["unexpected"] = [n for n in stored if n not in params and self.takes(n)]
        for name in (*kinds["taken"], *kinds["resized"]):
            if stored[name].dtype != params[name].dtype:
                kinds["cast"].append(name)
        if not kinds["taken"] and not kinds["resized"]:
            raise UserError(
                f"--init: nothing to take from {self.run.path} at step {step}: its parameters are "
                f"{', '.join(sorted(stored)[:6])}, ...; see --init_include and --init_exclude"
            )
        found = {kind: tuple(each) for kind, each in kinds.items()}
        return Report(f"{self.run.path}@{step}", **found)

    def start(self, table: Table, fresh: Params) -> tuple[Params, Report]:
        """New parameters with those of the source in their place.

        Args:
          table: of the model, with the dtypes in which it stores them.
          fresh: its new parameters, on the mesh.

        Returns:
          Parameters, those of the source in float32, and what became of each.

        Raises:
          UserError: as `plan`.
        """
        report = self.plan(table)
        checkpoints, step = self.open()
        stored_arrays = checkpoints.manifest(step).arrays
        leaves: dict[str, Any] = names.flat(fresh)
        wanted = {
            _PARAMS + name: jax.ShapeDtypeStruct(
                x.shape, _float_of(stored_arrays[_PARAMS + name].fact), sharding=x.sharding
            )
            for name, x in leaves.items()
            if name in report.taken
        }
        taken = names.flat(checkpoints.restore(step, names.nested(wanted), partial=True))
        leaves.update({name.removeprefix(_PARAMS): widened(x) for name, x in taken.items()})
        for name in report.resized:
            stored = checkpoints.whole(step, _PARAMS + name)
            if shown(digest(stored)) != stored_arrays[_PARAMS + name].digest:
                raise UserError(f"--init: '{name}' in {self.run.path} at step {step} is damaged")
            leaves[name] = _over(leaves[name], stored)
        return jax.tree.unflatten(jax.tree.structure(fresh), list(leaves.values())), report


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of each parameter, by name.

    Attributes:
      source: whose they are.
      taken: copied whole.
      resized: copied along a vocabulary of another size.
      cast: of those, what the source stores in another dtype than the model.
      left: not selected.
      missing: selected, but the source has none of that name.
      unexpected: selected in the source, but the model has none of that name.
      other_shape: of both, in different shapes: new here.
    """

    source: str
    taken: tuple[str, ...]
    resized: tuple[str, ...]
    cast: tuple[str, ...]
    left: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    other_shape: tuple[str, ...]

    def lines(self) -> list[str]:
        """For people: a count of each kind that there is, and its names."""
        lines = [f"starting from {self.source}"]
        for kind, found in dataclasses.asdict(self).items():
            if kind != "source" and found:
                lines.append(f"  {kind.replace('_', ' ')}: {len(found)} ({', '.join(found)})")
        return lines

    def write(self, path: pathlib.Path) -> None:
        """As JSON."""
        write_atomically(path, json.dumps(dataclasses.asdict(self), indent=2) + "\n")


def begun_with(source: str) -> Report:
    """Of a run whose first parameters were all made of another's, of other shapes."""
    return Report(source, (), (), (), (), (), (), ())


def _kind(source: Source, name: str, param: Param, stored: Mapping[str, names.Fact]) -> str:
    if not source.takes(name):
        return "left"
    if name not in stored:
        return "missing"
    shape = stored[name].shape
    if shape == param.shape:
        return "taken"
    return "resized" if source.resize and _differ(param, shape) == [VOCAB] else "other_shape"


def _differ(param: Param, shape: tuple[int, ...]) -> list[str | None]:
    """The logical axes along which a stored shape is another; all where it has other axes."""
    if len(shape) != len(param.shape):
        return [*param.axes]
    return [axis for axis, a, b in zip(param.axes, shape, param.shape, strict=True) if a != b]


def _check_vocabulary(source: str, name: str, param: Param, shape: tuple[int, ...]) -> None:
    """A UserError where the vocabulary alone is another: new rows would mean nothing."""
    if _differ(param, shape) != [VOCAB]:
        return
    there, here = (of[param.axes.index(VOCAB)] for of in (shape, param.shape))
    raise UserError(
        f"--init: '{name}' has a vocabulary of {there} in {source} and of {here} here: set "
        f"--config.model.vocab={there} (the data may use fewer), or "
        f"--init_vocab=resize, or --init_exclude={name} for a new one"
    )


def _float_of(fact: names.Fact) -> str:
    """The dtype in which a parameter is read: as it is stored, if that is a model's."""
    return fact.dtype if fact.dtype in PARAM_DTYPES else FLOAT32


def _over(fresh: jax.Array, stored: np.ndarray) -> jax.Array:
    """`fresh` with what both have taken from `stored`; each device handles its own shard."""

    def shard(part: Any) -> np.ndarray:
        values = np.array(part.data)
        starts = [index.start or 0 for index in part.index]
        common = stored[
            tuple(
                slice(start, start + size) for start, size in zip(starts, values.shape, strict=True)
            )
        ]
        values[tuple(slice(0, size) for size in common.shape)] = common
        return values

    return by_shards(fresh, shard)


def by_shards(like: jax.Array, shard: Callable[[Any], np.ndarray]) -> jax.Array:
    """An array that lies where another does; of each shard of that, `shard` makes the new one."""
    shards = [
        jax.device_put(shard(part), part.device, may_alias=False)
        for part in like.addressable_shards
    ]
    return jax.make_array_from_single_device_arrays(like.shape, like.sharding, shards)
