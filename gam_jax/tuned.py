"""Values that `gam tune` has found for a machine, used where a config asks for them by their file.

  def get_config():
      return config(with_tuned(EXPERIMENT, "tuned.json"))

An entry is of one op, shape, dtype and device; an op of any other is left as it is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import jax

from gam_jax.config import to_dict
from gam_jax.layers import Attention, LinearMemory, Pattern
from gam_jax.layers.base import Layer
from gam_jax.models import LanguageModel
from gam_jax.nested import held, with_held
from gam_jax.planning.traces import abstract_layout
from sharding import machine, plugins
from sharding.compile_cache import processor
from sharding.errors import UserError
from sharding.json_file import BadJson, read_json
from sharding.mesh import data_levels, parse_axes

T = TypeVar("T")

SCAN, ATTENTION, BLOCKS = "memory_scan", "attention", "blocks"
SETTINGS = {SCAN: ("method", "chunk"), ATTENTION: ("block_size",), BLOCKS: ("remat", "unroll")}
"""Of each op, the fields of its layer, or of the model, that are found."""
DECAYS = {"none": "none", "fixed": "head", "head": "head", "channel": "channel"}
"""A recipe's decay -> what a scan sees of it."""


@dataclasses.dataclass(frozen=True)
class Op:
    """Something that can be computed in several ways.

    Attributes:
      name: one of `SETTINGS`.
      shape: sizes and kinds by name, of what one device has.
      dtype: of what it is given.
    """

    name: str
    shape: Mapping[str, Any]
    dtype: str

    @property
    def shown(self) -> str:
        """In words."""
        return f"{self.name} {' '.join(f'{n}={x}' for n, x in self.shape.items())} {self.dtype}"


@dataclasses.dataclass(frozen=True)
class Entry:
    """What was found.

    Attributes:
      op: "memory_scan", "attention" or "blocks".
      shape: sizes and kinds by name.
      dtype: of what it is given.
      device: see `device_name`.
      settings: the best ones.
      default: those that are taken where nobody says anything.
      seconds: median of the best.
      default_seconds: of the default, in the same turns.
    """

    op: str
    shape: Mapping[str, Any]
    dtype: str
    device: str
    settings: Mapping[str, Any]
    default: Mapping[str, Any]
    seconds: float
    default_seconds: float

    @property
    def of(self) -> Op:
        """What it is of."""
        return Op(self.op, self.shape, self.dtype)


@dataclasses.dataclass(frozen=True)
class Part:
    """What one device has of a run.

    Attributes:
      rows: of one part of a batch.
      tokens: of a row.
      heads: devices that share a layer's heads.
      split: mesh axes of several devices.
    """

    rows: int
    tokens: int
    heads: int
    split: frozenset[str]


def device_name() -> str:
    """The kind of device that programs run on here; of a processor, its instructions' name.

    JAX is asked only where there are accelerators, or it has plugins that nobody knows: it cannot
    be told of emulated devices, or of other processes, after that.
    """
    told = getattr(jax.config, "jax_platforms", None) or ""
    if told.partition(",")[0] == "cpu" or not (machine.accelerators() or plugins.others()):
        return processor()
    device = jax.devices()[0]
    return processor() if device.platform == "cpu" else device.device_kind


def read_tuned(path: str | pathlib.Path) -> list[Entry]:
    """The entries of a file that `gam tune` wrote.

    Raises:
      UserError: there is no such file, or it is another one.
    """
    path = pathlib.Path(path)
    try:
        entries = [Entry(**each) for each in read_json(path)["entries"]]
        if all({*each.settings} <= {*SETTINGS[each.op]} for each in entries):
            return entries
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file: write it by gam tune") from error
    except (KeyError, TypeError) as error:
        raise BadJson(path, "is no file that gam tune wrote", "write it anew") from error
    raise BadJson(path, "sets fields that gam tune does not find", "write it anew")


def with_tuned(experiment: T, path: str | pathlib.Path, mesh: str = "", device: str = "") -> T:
    """The experiment with the settings that were found best for it on this device.

    Scans of linear memories take their method and chunk, attention its block size, and the model
    `remat` and `unroll`. An op of which the file has no entry of the same shape, dtype and device
    stays as it is. How many have taken theirs is said on standard error.

    Args:
      experiment: with a language model, and text in windows.
      path: of the file.
      mesh: devices along each axis, as the run's --mesh; one device if empty.
      device: whose entries are taken; this machine's if empty, see `device_name`.

    Raises:
      UserError: none has an entry; see also `read_tuned` and `part_of`.
    """
    run: Any = experiment
    device, part = device or device_name(), part_of(run, mesh)
    found = {_key(each.of): each for each in read_tuned(path) if each.device == device}
    ops = list(ops_of(run, part))
    taken = sum(_key(op) in found for op in ops)
    if not taken:
        wanted = f"none of {len(ops)} ops, as {ops[0].shown}" if ops else "there are no such ops"
        raise UserError(
            f"{path}: has no entry for this run on {device} ({wanted}): write them by gam tune "
            f"--config, with the same --mesh"
        )
    print(f"{path}: {taken} of {len(ops)} ops take what was found", file=sys.stderr)

    def tuned(config: Any, op: Op | None) -> Any:
        entry = None if op is None else found.get(_key(op))
        return config if entry is None else dataclasses.replace(config, **entry.settings)

    def within(config: Any) -> Any:
        op = op_of(config, part, own.dtype) if isinstance(config, Layer) else None
        return tuned(with_held(config, within), op)

    own: LanguageModel = run.model
    model = tuned(with_held(own, within), blocks_of(own, part))
    return dataclasses.replace(run, model=model)


def part_of(experiment: Any, mesh: str = "") -> Part:
    """What one device of a mesh has of a run.

    Args:
      experiment: with a language model, and text in windows.
      mesh: devices along each axis, as --mesh takes them; one device if empty.

    Raises:
      UserError: another model, rows that hold several documents, or a mesh that does not fit.
    """
    model, train, data = experiment.model, experiment.train, experiment.data
    if not isinstance(model, LanguageModel) or not hasattr(data, "window"):
        raise UserError(f"only language models are tuned, not a {type(model).__name__}")
    if getattr(data, "documents", "") == "packed":
        raise UserError("rows of several documents (data.documents=packed) are not tuned")
    sizes = parse_axes(data_levels(mesh)[0], "mesh")
    if min(sizes.values(), default=1) < 1:
        raise UserError(f"mesh={mesh}: say how many devices are on each axis")
    layout = abstract_layout(sizes, experiment.parallel.preset)
    rows = train.batch // (train.accumulate * train.local.workers)
    layout.check_batch(rows, data.window)
    on = layout.mesh.shape
    heads = on[axis] if (axis := layout.axes.of("heads")) else 1
    rows = rows // layout.row_parts * (model.streams // on["stream"])
    split = frozenset(name for name, size in on.items() if size > 1)
    return Part(rows, data.window // on["seq"], heads, split)


def ops_of(experiment: Any, part: Part) -> Iterator[Op]:
    """All ops of a run that can be tuned, one for each place in its configuration."""

    def within(config: Any) -> Iterator[Op]:
        for inner in held(config):
            op = op_of(inner, part, model.dtype) if isinstance(inner, Layer) else None
            yield from () if op is None else (op,)
            yield from within(inner)

    model: LanguageModel = experiment.model
    yield from within(model)
    if (op := blocks_of(model, part)) is not None:
        yield op


def op_of(layer: Layer, part: Part, dtype: str) -> Op | None:
    """The op of a layer itself, on one device; None where it has none that is tuned."""
    if isinstance(layer, LinearMemory) and layer.width is not None:
        return Op(SCAN, scan_shape(layer, part), dtype)
    if isinstance(layer, Attention) and (layer.width is not None or layer.head_size):
        ring = "seq" in part.split  # keys go round, or a window's are sent
        if not (ring or layer.sinks or layer.prefix):
            return Op(ATTENTION, attention_shape(layer, part), dtype)
    return None


def scan_shape(layer: LinearMemory, part: Part) -> dict[str, Any]:
    """What the scan of a linear memory is given on one device."""
    decay = "channel" if layer.decay_rank else DECAYS[layer.recipe.decay]
    return {
        "rule": layer.recipe.rule,
        "decay": decay,
        "rows": part.rows,
        "tokens": part.tokens,
        "groups": layer.groups // part.heads,
        "heads": layer.heads // part.heads,
        "keys": layer.keys,
        "values": layer.values + layer.averages,
    }


def attention_shape(layer: Attention, part: Part) -> dict[str, Any]:
    """What attention over the start of a sequence is given on one device."""
    return {
        "rows": part.rows,
        "tokens": part.tokens,
        "groups": layer.groups // part.heads,
        "heads": layer.heads // part.heads,
        "keys": layer.size,
        "window": layer.window,
        "soft_cap": layer.soft_cap,
    }


def blocks_of(model: LanguageModel, part: Part) -> Op | None:
    """The blocks of a model as one op, by a digest of their configuration; None of split ones."""
    if part.split - {"data"} or model.streams > 1 or model.ladder:
        return None
    block = json.dumps(to_dict(_untuned(model.block)), sort_keys=True)
    shape = {
        "rows": part.rows,
        "tokens": part.tokens,
        "width": model.width,
        "depth": model.depth,
        "remat": model.remat,
        "block": hashlib.sha256(block.encode()).hexdigest()[:12],
    }
    return Op(BLOCKS, shape, model.dtype)


def _untuned(config: Any) -> Any:
    """A layer with the default of whatever may be found for it, here and inside."""
    names: tuple[str, ...] = ()
    if isinstance(config, LinearMemory | Attention):
        names = SETTINGS[SCAN if isinstance(config, LinearMemory) else ATTENTION]
    if isinstance(config, Pattern):
        names = SETTINGS[BLOCKS]
    usual = {field.name: field.default for field in dataclasses.fields(config)}
    return with_held(config, _untuned, **{name: usual[name] for name in names})


def _key(op: Op) -> tuple[str, str, str]:
    return op.name, json.dumps(op.shape, sort_keys=True), op.dtype
