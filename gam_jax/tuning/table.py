"""All tunable ops, and those of a run on one device of a mesh."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from gam_jax.config import to_dict
from gam_jax.layers.base import as_usual
from gam_jax.models import LanguageModel
from gam_jax.models.base import on_stages
from gam_jax.nested import held
from gam_jax.params import stored_specs
from gam_jax.planning.traces import Levels, abstract_layout
from gam_jax.tuning.experts import MIXTURE
from gam_jax.tuning.ops import Op, Part, Settings, Tunable
from gam_jax.tuning.scans import DIAGONAL, MEMORY, SELECTIVE
from gam_jax.tuning.softmax import ATTENTION, LATENT, LOSS
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import data_levels, parse_axes
from sharding.rules import DEFAULT_RULES

TUNABLE: Mapping[str, Tunable] = {
    one.name: one for one in (MEMORY, SELECTIVE, DIAGONAL, ATTENTION, LATENT, MIXTURE, LOSS)
}
"""By the name of the op. A class of layers, or of models, is in one of them at most."""
BY_CLASS: Mapping[type, Tunable] = {cls: one for one in TUNABLE.values() for cls in one.shapes}
BLOCKS = "blocks"
"""The blocks of a model as one op: they are told by a digest, and timed as the model has them."""
OF_BLOCKS: Settings = {"remat": False, "unroll": 1}
DEFAULTS: Mapping[str, Settings] = {
    **{name: one.default for name, one in TUNABLE.items()},
    BLOCKS: OF_BLOCKS,
}
"""Of each op, the fields that are found, with what they are where nobody says anything."""


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
    text, levels = data_levels(mesh)
    sizes = parse_axes(text, "mesh")
    if min(sizes.values(), default=1) < 1:
        raise UserError(f"mesh={mesh}: say how many devices are on each axis")
    if train.local.on:
        sizes["worker"] = 1  # each has what it would have alone
    parallel = experiment.parallel
    layout = abstract_layout(sizes, parallel.preset, use=Levels(levels, parallel.shards))
    layout = dataclasses.replace(layout, parallel=parallel)
    rows = train.batch // (train.accumulate * train.local.workers)
    _check(model, layout)
    layout.check_batch(rows, data.window)
    on = layout.mesh.shape
    rows = rows // layout.row_parts * (model.streams // on["stream"])
    shared = {name: on[axis] for name in DEFAULT_RULES if (axis := layout.axes.of(name))}
    split = frozenset(name for name, size in on.items() if size > 1)
    return Part(rows, data.window // on["seq"], shared, split)


def _check(model: LanguageModel, layout: Layout) -> None:
    """Refuses a mesh on which some axis has no work, or a parameter that it does not divide."""
    model.check_mesh(layout)
    if model.vocab is None:  # which the data says, and which is padded
        model = dataclasses.replace(model, vocab=1)
    placed, own = on_stages(model, layout)
    stored_specs(placed.table(), own)


def ops_of(experiment: Any, part: Part) -> Iterator[Op]:
    """All ops of a run that can be tuned, one for each place in its configuration."""

    def within(config: Any) -> Iterator[Op]:
        op = op_of(config, part, model.dtype)
        yield from () if op is None else (op,)
        for inner in held(config):
            yield from within(inner)

    model: LanguageModel = experiment.model
    yield from within(model)
    if (op := blocks_of(model, part)) is not None:
        yield op


def op_of(config: Any, part: Part, dtype: str) -> Op | None:
    """The op of a layer itself, or of a model; None where it has none that is tuned."""
    found = BY_CLASS.get(type(config))
    if found is None or (config.width is None and not getattr(config, "head_size", 0)):
        return None
    shape = found.shapes[type(config)](config, part)
    if shape is None:
        return None
    return Op(found.name, shape, dtype, {name: getattr(config, name) for name in found.default})


def blocks_of(model: LanguageModel, part: Part) -> Op | None:
    """The blocks of a model as one op, by a digest of their configuration; None of split ones."""
    if any(not axis.startswith("data") for axis in part.split):
        return None
    if model.streams > 1 or model.ladder:
        return None
    block = json.dumps(to_dict(as_usual(model.block)), sort_keys=True)
    shape = {
        "rows": part.rows,
        "tokens": part.tokens,
        "width": model.width,
        "depth": model.depth,
        "remat": model.remat,
        "block": hashlib.sha256(block.encode()).hexdigest()[:12],
    }
    return Op(BLOCKS, shape, model.dtype, {name: getattr(model, name) for name in OF_BLOCKS})
