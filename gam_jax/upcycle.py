"""Several trained models made into one mixture of experts.

Source: BAM (Zhang et al. 2024, arXiv 2408.08274, section 3) and Branch-Train-MiX (Sukhbaatar et
al. 2024, arXiv 2403.07816).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from gam_jax.config import unknown
from gam_jax.layers import MLP, Block, Layer, MoE, SoftMixture
from gam_jax.models.language import LanguageModel
from gam_jax.ops.routing import Router
from gam_jax.params import Params, abstract_params, path_name
from sharding.errors import UserError

RECIPES = {
    "bam": "feed-forwards and mixers become experts",
    "bam_shared": "likewise, keys and values are averaged and shared",
    "btx": "feed-forwards become experts, mixers are averaged",
}

SWITCH = Router(renormalise=False)
"""One expert a token, weighted by its probability, so that the loss reaches the router."""


def mixture_of(
    model: LanguageModel, count: int, recipe: str, chosen: int = 1, router: Router = SWITCH
) -> LanguageModel:
    """The mixture that `count` models like `model` become.

    Args:
      model: the dense one; its block has a mixer and an `MLP`.
      count: E, how many sources.
      recipe: of RECIPES.
      chosen: feed-forward experts of a token.
      router: of the feed-forward experts. Weights that are renormalised keep a mixture of equal
        models what each of them is; with one chosen they leave its router without a gradient.

    Raises:
      UserError: an unknown recipe, or a model whose blocks it does not fit.
    """
    if recipe not in RECIPES:
        raise UserError(f"recipe: {unknown(recipe, RECIPES, 'recipe')}")
    block = _block(model.block)
    if not isinstance(block.ffn, MLP):
        raise UserError(f"upcycling needs an MLP in each block, not a {type(block.ffn).__name__}")
    ffn = MoE(count, chosen, block.ffn, router=router, dropout=block.ffn.dropout)
    mixer: Layer = block.mixer
    try:
        if recipe != "btx":
            mixer = SoftMixture(block.mixer, count, shared_keys=recipe == "bam_shared")
    except ValueError as error:
        raise UserError(f"recipe '{recipe}': {error}") from error
    return dataclasses.replace(model, block=dataclasses.replace(block, mixer=mixer, ffn=ffn))


def upcycle(
    model: LanguageModel,
    sources: Sequence[Params],
    recipe: str,
    key: Array,
    chosen: int = 1,
    router: Router = SWITCH,
) -> tuple[LanguageModel, Params]:
    """The mixture and its parameters, from those of several dense models of one shape.

    Expert i is what source i had in its place. Routers are new. All else (norms, embeddings, and
    what the recipe says) is the mean of the sources.

    Args:
      model: of which `sources` are parameters.
      sources: one for each expert.
      recipe: see `mixture_of`.
      key: for the routers.
      chosen: see `mixture_of`.
      router: see `mixture_of`.

    Raises:
      UserError: sources that are not parameters of `model`; see also `mixture_of`.
    """
    if not sources:
        raise UserError("upcycling needs the parameters of at least one model")
    for number, source in enumerate(sources):
        _check(model, source, number)
    mixture = mixture_of(model, len(sources), recipe, chosen, router)
    return mixture, _mixed(mixture, sources, key, recipe != "btx")


@functools.partial(jax.jit, static_argnums=(0, 3))
def _mixed(
    mixture: LanguageModel, sources: Sequence[Params], key: Array, mixers: bool
) -> dict[str, Any]:
    """Parameters of the mixture; `mixers` says whether its mixers are mixtures too."""
    new = mixture.init_params(key)
    mean: Any = _over(lambda *xs: functools.reduce(jnp.add, xs) / len(xs), sources)
    experts: Any = _over(lambda *xs: jnp.stack(xs, axis=1), sources)  # [L, E, ...]
    blocks = {
        **mean["blocks"],
        "ffn": {**new["blocks"]["ffn"], "experts": experts["blocks"]["ffn"]},
    }
    if mixers:
        mixer: Any = _block(mixture.block).mixer
        parts = experts["blocks"]["mixer"], mean["blocks"]["mixer"]
        blocks["mixer"] = {
            "router": new["blocks"]["mixer"]["router"],
            "experts": {n: x for n, x in parts[0].items() if not mixer.is_shared(n)},
            "shared": {n: x for n, x in parts[1].items() if mixer.is_shared(n)},
        }
    return {**mean, "blocks": blocks}


def _over(function: Callable[..., Array], sources: Sequence[Params]) -> Mapping[str, Any]:
    return jax.tree.map(function, *sources)


def _block(layer: Layer) -> Block:
    if isinstance(layer, Block):
        return layer
    raise UserError(
        f"upcycling needs a model of blocks, which each hold a mixer and an MLP: this one has a "
        f"{type(layer).__name__}"
    )


def _check(model: LanguageModel, source: Params, number: int) -> None:
    wanted = jax.tree_util.tree_leaves_with_path(abstract_params(model.table()))
    found = {path_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(source)}
    for path, want in wanted:
        name = path_name(path)
        if found.get(name) != want.shape:
            raise UserError(
                f"source {number}: {name} is {found.get(name, 'missing')} where the model has "
                f"{want.shape}"
            )
