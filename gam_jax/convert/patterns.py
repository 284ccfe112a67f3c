"""A model's blocks in order, whether they are equal (`Stack`) or not (`Pattern`)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from gam_jax.convert.family import Family, join_equal, split_equal
from gam_jax.convert.folder import Reader
from gam_jax.layers import Layer, Pattern, Series, Stack
from gam_jax.models.language import LanguageModel
from gam_jax.params import Params


def in_order(blocks: Sequence[Layer]) -> dict[str, Any]:
    """`block` and `depth` of a model with these blocks."""
    unlike = list(dict.fromkeys(blocks))
    if len(unlike) == 1:
        return {"block": unlike[0], "depth": len(blocks)}
    order = tuple(unlike.index(block) for block in blocks)
    return {"block": Pattern(tuple(unlike), order), "depth": 1}


def blocks_of(model: LanguageModel) -> list[Layer]:
    """The inverse of `in_order`. The stacks of a `Series`, as older runs have, are in order too."""
    if stacks := _stacks(model):
        return [stack.block for stack in stacks.values() for _ in range(stack.depth)]
    if isinstance(model.block, Pattern):
        return [model.block.layers[kind] for kind in model.block.order] * model.depth
    return [model.block] * model.depth


def _stacks(model: LanguageModel) -> dict[str, Stack]:
    """Those of a `Series`, by their names; none of other models."""
    if not isinstance(model.block, Series) or model.depth > 1:
        return {}
    found = {name: x for name, x in model.block.named.items() if isinstance(x, Stack)}
    return found if len(found) == len(model.block.named) else {}


def count(model: LanguageModel) -> int:
    """How many blocks there are."""
    return len(blocks_of(model))


def join(model: LanguageModel, blocks: Sequence[Params]) -> Params:
    """The blocks' parameters as `model.stack` has them."""
    if not isinstance(model.block, Pattern):
        return join_equal(model, blocks)
    equal: dict[tuple[str, ...], list[Params]] = {}
    for own, (*names, _) in zip(blocks, model.block.places(), strict=True):
        equal.setdefault(tuple(names), []).append(own)
    found: dict[str, Any] = {}
    for names, own in equal.items():
        inside = found
        for name in names[:-1]:
            inside = inside.setdefault(name, {})
        # The axes are the one turn of the whole pattern, and the turns of a run.
        inside[names[-1]] = jax.tree.map(lambda *arrays: np.stack(arrays)[None], *own)
    return found


def split(model: LanguageModel, params: Params) -> list[Params]:
    """The inverse of `join`."""
    if stacks := _stacks(model):
        return [
            jax.tree.map(lambda x, i=i: x[0, i], params[name])
            for name, stack in stacks.items()
            for i in range(stack.depth)
        ]
    if not isinstance(model.block, Pattern):
        return split_equal(model, params)
    found = []
    for *names, turn in model.block.places():
        inside: Any = params
        for name in names:
            inside = inside[name]
        found.append(jax.tree.map(lambda x, i=int(turn): x[0, i], inside))
    return found


def family(
    spec: Any,
    read: Callable[[Any, LanguageModel, Reader], Params],
    write: Callable[[Any, LanguageModel, Params], dict[str, np.ndarray]],
    spare: Callable[[Reader], Iterable[str]] = lambda reader: (),
) -> Family:
    """A family whose blocks may be unlike, with Llama's names of what stands around them.

    Args:
      spec: with `kind`, `read` (config.json -> model) and its inverse `write`.
      read: (spec, model, one block of a folder) -> parameters of that block.
      write: the inverse of `read`.
      spare: see `Family`.
    """
    return Family(
        spec.read,
        spec.write,
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.",
        functools.partial(read, spec),
        functools.partial(write, spec),
        join=join,
        split=split,
        layers=count,
        kind=spec.kind,
        spare=spare,
    )
