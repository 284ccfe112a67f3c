"""An image classifier: patches, a stack of blocks, a mean, one linear layer."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from gam_jax.layers.base import Layer, inherit
from gam_jax.layers.block import Stack
from gam_jax.layers.norm import LayerNorm
from gam_jax.ops.linear import linear
from gam_jax.params import Param, Params, Table, fan_in, normal, zeros


@dataclasses.dataclass(frozen=True)
class ImageClassifier:
    """Scores of classes from grey images: logits = mean over patches of norm(stack(e)) W + b.

    e is a linear map of each patch plus a learned position. Any layer will do in the blocks, one
    that reads the whole image too.

    Attributes:
      block: the residual block; it takes width and dropout from here.
      width: D.
      depth: L.
      side: pixels of an image's side.
      patch: pixels of a patch's side.
      classes: how many.
    """

    block: Layer
    width: int
    depth: int
    side: int
    classes: int
    patch: int = 1

    def __post_init__(self) -> None:
        if self.side % self.patch:
            raise ValueError(
                f"ImageClassifier.patch {self.patch} does not divide its side of {self.side}"
            )
        block = inherit(self.block, width=self.width, dropout=0.0)
        object.__setattr__(self, "block", block)

    @property
    def stack(self) -> Stack:
        """The blocks as one layer."""
        return Stack(self.block, self.depth, unroll=self.depth)

    def table(self) -> Table:
        """patches [p^2, D], positions [T, D], blocks, norm, head [D, classes]."""
        area, tokens = self.patch**2, (self.side // self.patch) ** 2
        return {
            "patches": Param((area, self.width), (None, "embed"), fan_in(area)),
            "positions": Param((tokens, self.width), ("position", "embed"), normal(0.2)),
            "blocks": self.stack.table(),
            "norm": LayerNorm(self.width).table(),
            "head": Param((self.width, self.classes), ("embed", None), fan_in(self.width)),
            "head_bias": Param((self.classes,), (None,), zeros, decay=False),
        }

    def __call__(self, params: Params, images: Float[Array, "B S S"]) -> Float[Array, "B C"]:
        """Float32 logits."""
        count, p = self.side // self.patch, self.patch
        patches = images.reshape(-1, count, p, count, p).swapaxes(2, 3).reshape(-1, p * p)
        x = linear(patches, params["patches"]).reshape(len(images), count**2, self.width)
        x, _ = self.stack(params["blocks"], x + params["positions"])
        x, _ = LayerNorm(self.width)(params["norm"], x)
        return linear(jnp.mean(x, axis=1), params["head"], params["head_bias"])
