"""The plain model that a model with mixed layers has chosen: in each place its likeliest option."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gam_jax import units
from gam_jax.bilevel import LevelState
from gam_jax.grow import changed_state
from gam_jax.layers import (
    Block,
    Chunked,
    InTurn,
    Layer,
    Mixed,
    Nested,
    Pattern,
    Residual,
    Series,
    Stack,
)
from gam_jax.layers.base import layers_in
from gam_jax.models.language import LanguageModel
from gam_jax.ops.choices import ARCHITECTURE
from gam_jax.params import Param, Params, abstract_params, path_name
from sharding.errors import UserError

Pick = Callable[[Any], Any]
"""Of a tree in the shape of the parameters, or of a moment, what the plain model has of it."""
Chosen = tuple[Any, Pick]
"""A layer, and its part of the parameters."""
BLOCKS = "blocks"


@dataclasses.dataclass(frozen=True)
class Extraction:
    """A plain model, and how its parameters are found.

    Attributes:
      model: without mixed layers, but for those whose channels pass by: they have one option.
      pick: parameters of the mixed model -> those of the plain one.
      options: of each mixed layer, by its path, the number of the option; of stacked layers of
        each.
    """

    model: LanguageModel
    pick: Pick
    options: dict[str, list[int]]


def extraction(model: LanguageModel, params: Params) -> Extraction:
    """The model of the likeliest options; equal blocks in a row stay one loop.

    It gives what the mixed model gives where one option is chosen: without a key, unless its
    weights are those of a softmax or sparsemax.

    Args:
      model: with mixed layers.
      params: its own, whole arrays.

    Raises:
      UserError: no mixed layer; one that is a norm, or inside a layer that cannot be taken apart,
        or under parallel streams; unlike blocks under a ladder.
    """
    options: dict[str, list[int]] = {}
    _note(params, (), options)
    if not options:
        raise UserError("there is no mixed layer in the model: nothing is to be extracted")
    if model.streams > 1:
        raise UserError(
            f"model.streams={model.streams}: what streams begin with belongs to all options, so "
            f"none can be taken out"
        )
    if isinstance(model.block, Pattern):  # which may stand in a pattern soon, with these inside
        model = dataclasses.replace(model, block=model.stack.block, remat=False, unroll=1)
    blocks = [_plain(model.block, _slice(params[BLOCKS], i)) for i in range(model.depth)]
    block, inside, depth = _together(blocks, model.block, model.remat)
    if depth == 1 and model.ladder and model.depth > 1:
        raise UserError(f"model.ladder={model.ladder}: blocks are unlike now, so there is none")
    plain = dataclasses.replace(model, block=block, depth=depth)
    _check_chosen(plain)

    def pick(tree: Any) -> Any:
        return {**tree, BLOCKS: inside(tree[BLOCKS])} if BLOCKS in tree else tree

    return Extraction(plain, pick, options)


def _check_chosen(model: LanguageModel) -> None:
    """Refuses a model in which there is something to choose yet."""
    leaves = jax.tree_util.tree_leaves_with_path(
        model.table(), is_leaf=lambda leaf: isinstance(leaf, Param)
    )
    for path, param in leaves:
        *place, kind, _ = ("", *path_name(path).split("/"))
        if kind == ARCHITECTURE and param.shape[-1] > 1:
            raise UserError(
                f"the mixed layer {'/'.join(place[1:])} cannot be taken out: it can be of blocks, "
                f"stacks, patterns and what stands in a row, and not where these norm"
            )


def extracted_state(
    found: Extraction, opt_state: Any, optimizer: optax.GradientTransformation
) -> Any:
    """The optimizer's state of the plain model, whose parameters are all trained as weights are.

    Averages of what is kept follow; those of the logits that are left are 0.

    Args:
      found: see `extraction`.
      opt_state: of the mixed model, whole arrays, without a master (`master.inner_state`).
      optimizer: of the plain model.

    Raises:
      UserError: see `grow.changed_state`.
    """
    if isinstance(opt_state, LevelState):
        opt_state = opt_state.weights
    picked = changed_state(opt_state, lambda moments, _: found.pick(moments))
    return _filled(picked, jax.eval_shape(optimizer.init, abstract_params(found.model.table())))


def _filled(tree: Any, like: Any) -> Any:
    """A tree with zeros, of the dtype that they have, for what it lacks."""
    if isinstance(like, Mapping):
        return {name: _filled((tree or {}).get(name), own) for name, own in like.items()}
    if isinstance(like, tuple):
        own = [_filled(one, other) for one, other in zip(tree, like, strict=True)]
        return type(like)(*own) if hasattr(like, "_fields") else tuple(own)
    return jnp.zeros(like.shape, like.dtype) if tree is None else tree


def _note(params: Any, path: tuple[str, ...], found: dict[str, list[int]]) -> None:
    """Which option is the likeliest in each place."""
    for name, inner in params.items() if isinstance(params, dict) else ():
        if name == ARCHITECTURE:
            logits = np.asarray(inner["logits"], np.float32)
            found["/".join(path)] = np.argmax(logits, axis=-1).reshape(-1).tolist()
        else:
            _note(inner, (*path, name), found)


def _together(blocks: Sequence[Chosen], before: Layer, remat: bool) -> tuple[Layer, Pick, int]:
    """Blocks one after another, of one stack: a block that is repeated, or a pattern, as often.

    With `remat` no turn of the pattern has several blocks: it would be computed again as a whole,
    and hold the insides of all of them.
    """
    layers = [layer for layer, _ in blocks]

    def each(tree: Any) -> list[Any]:
        return [pick(_slice(tree, i)) for i, (_, pick) in enumerate(blocks)]

    if all(layer == layers[0] for layer in layers):
        return layers[0], lambda tree: _stacked(each(tree)), len(layers)
    width, dropout = (getattr(before, name, None) for name in ("width", "dropout"))
    pattern = _pattern(layers, remat, width=width, dropout=dropout)
    return pattern, lambda tree: _stacked([pattern.of_layers(each(tree))]), 1


def _pattern(layers: Sequence[Layer], apart: bool = False, **fields: Any) -> Pattern:
    """Layers in order; `apart` only neighbours that are equal are in one run."""
    if apart:
        groups = [[*same] for _, same in itertools.groupby(layers)]
        order = tuple(i for i, same in enumerate(groups) for _ in same)
        return Pattern(tuple(same[0] for same in groups), order, **fields)
    kinds = tuple(dict.fromkeys(layers))
    return Pattern(kinds, tuple(kinds.index(layer) for layer in layers), **fields)


def _slice(tree: Any, index: int) -> Any:
    return jax.tree.map(lambda x: x[index], tree)


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


@functools.singledispatch
def _plain(layer: Layer, params: Params) -> Chosen:
    """A layer without choices, and its part of the parameters."""
    if _holds_mixed(layer):
        raise UserError(
            f"a mixed layer inside {type(layer).__name__} cannot be taken out: it can be of "
            f"blocks, stacks, patterns and what stands in a row"
        )
    return layer, lambda tree: tree


def _holds_mixed(layer: Layer) -> bool:
    return isinstance(layer, (Mixed, Nested)) or any(map(_holds_mixed, layers_in(layer)))


@_plain.register
def _(layer: Mixed, params: Params) -> Chosen:
    best = int(np.argmax(np.asarray(params[ARCHITECTURE]["logits"], np.float32)))
    option, inside = _plain(layer.options[best], params["options"][str(best)])

    def pick(tree: Any) -> Any:
        own = inside(tree["options"][str(best)])
        if layer.share == 1:
            return own
        if ARCHITECTURE not in tree:  # moments of the weights alone
            return {"options": {"0": own}}
        logits = jax.tree.map(lambda x: x[best : best + 1], tree[ARCHITECTURE])
        return {ARCHITECTURE: logits, "options": {"0": own}}

    if layer.share == 1:
        return option, pick
    return dataclasses.replace(layer, options=(option,), how="sum", weights="softmax"), pick


@_plain.register
def _(layer: Nested, params: Params) -> Chosen:
    best = layer.sizes[int(np.argmax(np.asarray(params[ARCHITECTURE]["logits"], np.float32)))]
    unit, inner = layer.own, units.resized(layer.inner, layer.unit, best)

    def pick(tree: Any) -> Any:
        own = {name: branch for name, branch in tree.items() if name != ARCHITECTURE}
        return units.keep(own, unit, np.arange(best))

    return inner, pick


@_plain.register(Block)
@_plain.register(Residual)
@_plain.register(Series)
def _(layer: Any, params: Params) -> Chosen:
    return _of_fields(layer, params, ("mixer", "ffn", "inner", "first", "then"))


def _of_fields(layer: Any, params: Params, names: Sequence[str]) -> Chosen:
    """A layer whose fields hold layers, with parameters of the same names."""
    found = {name: _plain(getattr(layer, name), params[name]) for name in names if name in params}
    plain = dataclasses.replace(layer, **{name: inner for name, (inner, _) in found.items()})
    kept = plain.table()  # of what adds nothing there is no norm either

    def pick(tree: Any) -> Any:
        inside = {name: own(tree[name]) for name, (_, own) in found.items()}
        return {name: own for name, own in {**tree, **inside}.items() if name in kept}

    return plain, pick


@_plain.register
def _(layer: Chunked, params: Params) -> Chosen:
    inner, pick = _plain(layer.inner, params)
    return dataclasses.replace(layer, inner=inner), pick


@_plain.register
def _(layer: InTurn, params: Params) -> Chosen:
    found = [_plain(inner, params[name]) for name, inner in layer.named.items()]

    def pick(tree: Any) -> Any:
        return {str(i): own(tree[str(i)]) for i, (_, own) in enumerate(found)}

    return dataclasses.replace(layer, layers=tuple(inner for inner, _ in found)), pick


@_plain.register
def _(layer: Stack, params: Params) -> Chosen:
    blocks = [_plain(layer.block, _slice(params, i)) for i in range(layer.depth)]
    block, pick, depth = _together(blocks, layer.block, layer.remat)
    if depth == layer.depth:
        return dataclasses.replace(layer, block=block), pick
    if layer.ladder:
        raise UserError(f"Stack.ladder={layer.ladder}: blocks are unlike now, so there is none")
    assert isinstance(block, Pattern)
    one = dataclasses.replace(block, remat=layer.remat, unroll=layer.unroll)
    return one, lambda tree: _slice(pick(tree), 0)


@_plain.register
def _(layer: Pattern, params: Params) -> Chosen:
    found = [
        _plain(layer.layers[kind], layer.of_layer(params, i)) for i, kind in enumerate(layer.order)
    ]
    fields = {name: getattr(layer, name) for name in ("width", "dropout", "remat", "unroll")}
    pattern = _pattern([inner for inner, _ in found], **fields)

    def pick(tree: Any) -> Any:
        return pattern.of_layers([one(layer.of_layer(tree, i)) for i, (_, one) in enumerate(found)])

    return pattern, pick
