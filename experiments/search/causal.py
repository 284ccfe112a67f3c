"""Whether a language model sees what is to come: by gradients, and by changing later tokens."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gam_jax.bilevel import of_logits, with_logits
from gam_jax.layers import Mixed, Nested
from gam_jax.layers.base import WHOLE
from gam_jax.models import LanguageModel
from gam_jax.nested import with_held
from gam_jax.params import Params
from sharding.errors import UserError

SEEN = 64
"""Tokens at most of a model that is not trained yet."""
ROUNDING = 1e-4
"""Share of the largest value that rounding may be."""
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""For the compiler: the program runs few times."""
NOISE = 0.05
"""Added to new parameters, so that none of them is at a neutral start which hides a path."""


@functools.partial(jax.jit, static_argnames="model", compiler_options=QUICK)
def shaken(model: LanguageModel, key: Array) -> Params:
    """New parameters, each with noise."""
    own, noise = jax.random.split(key)
    leaves, tree = jax.tree.flatten(model.init_params(own))
    drawn = jax.random.normal(noise, (sum(x.size for x in leaves),))
    parts = jnp.split(drawn, np.cumsum([x.size for x in leaves])[:-1])
    moved = [x + NOISE * part.reshape(x.shape) for x, part in zip(leaves, parts, strict=True)]
    return jax.tree.unflatten(tree, moved)


def all_options(config: Any) -> Any:
    """A model or layer in which mixed layers are the sums of their options, so that each runs."""
    fields = {"how": "sum", "weights": "softmax"} if isinstance(config, Mixed) else {}
    if isinstance(config, Nested):
        fields = {"weights": "softmax"}  # of all sizes
    return with_held(config, all_options, **fields)


def check_causal(model: LanguageModel, params: Params, tokens: Int[np.ndarray, "B T"]) -> None:
    """Refuses a model whose logits depend on later tokens; of mixed layers, by any option.

    At several places, the gradient of all logits up to there by what enters the blocks after it
    must be 0, and so must be what other tokens after it change. The gradient sees each path that
    numbers take; the change also sees choices, such as an expert's, which have no gradient.

    Args:
      model: fitted to its data.
      params: its parameters.
      tokens: of its vocabulary; a row has two or more.

    Raises:
      UserError: what depends, and by how much; or logits that are no numbers.
    """
    model = dataclasses.replace(all_options(model), dtype="float32")
    params = with_logits(params, jax.tree.map(jnp.zeros_like, of_logits(params)))
    count = tokens.shape[1]
    others = np.random.default_rng(1).permutation(tokens.ravel()).reshape(tokens.shape)
    for cut in sorted({1, count // 3, count // 2 + 1, count - 1} - {0}):
        changed = np.where(np.arange(count) < cut, tokens, others)
        found = _later(model, params, jnp.asarray(tokens), jnp.asarray(changed), jnp.int32(cut))
        gradient, change = (float(each) for each in found)
        if not np.isfinite([gradient, change]).all():
            raise UserError(f"logits or gradients of {count} tokens are no numbers")
        for what, size in (("a gradient of", gradient), ("other tokens change them by", change)):
            if size > ROUNDING:
                raise UserError(
                    f"logits of the first {cut} tokens depend on later ones: {what} {size:.2g} of "
                    f"the largest"
                )


@functools.partial(jax.jit, static_argnames="model", compiler_options=QUICK)
def _later(
    model: LanguageModel,
    params: Params,
    tokens: Int[Array, "B T"],
    changed: Int[Array, "B T"],
    cut: Int[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Gradient and change of early logits by what comes after; shares of the largest."""

    def logits(x: Array) -> Array:
        hidden, _ = model.trunk(params, x)
        return model.logits(params, model.scaled(hidden))

    both = jnp.concatenate((tokens, changed))
    found, back = jax.vjp(logits, model.embedded(params, both, None, WHOLE)[0])
    early = (jnp.arange(tokens.shape[1]) < cut)[:, None]
    drawn = jax.random.normal(jax.random.key(0), found.shape, found.dtype)
    (gradient,) = back(drawn * early)
    size = jnp.abs(gradient)
    before, after = jnp.split(found, 2)
    change = jnp.max(jnp.abs(after - before) * early) / jnp.max(jnp.abs(found))
    return jnp.max(size * ~early) / jnp.max(size), change
