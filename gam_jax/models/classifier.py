"""An image classifier: patches, a stack of blocks, a mean, one linear layer."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from gam_jax.data.base import Dataset
from gam_jax.layers.base import WHOLE, Carry, Layer, inherit, known
from gam_jax.layers.ladder import Stream
from gam_jax.layers.norm import LayerNorm
from gam_jax.layers.stack import Stack
from gam_jax.models.base import BATCH, Batch, Measures, Model, Parts, Span, reported, sizes_of
from gam_jax.ops.linear import linear
from gam_jax.params import Param, Params, Table, fan_in, normal, zeros
from sharding import collectives
from sharding.axes import Axes
from sharding.bounds import Size
from sharding.errors import UserError
from sharding.layout import Layout


@dataclasses.dataclass(frozen=True)
class ImageClassifier(Model):
    """Scores of classes from grey images: logits = mean over patches of norm(stack(e)) W + b.

    e is a linear map of each patch plus a learned position. Any layer will do in the blocks, one
    that reads the whole image too.

    Attributes:
      block: the residual block; it takes width and dropout from here.
      width: D.
      depth: L.
      side: pixels of an image's side; the data's where it is None.
      classes: how many; likewise.
      patch: pixels of a patch's side.
    """

    block: Layer
    width: Size
    depth: Size
    side: Size | None = None
    classes: Size | None = None
    patch: Size = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.side is not None and self.side % self.patch:
            raise ValueError(
                f"ImageClassifier.patch {self.patch} does not divide its side of {self.side}"
            )
        block = inherit(self.block, width=self.width, dropout=0.0)
        object.__setattr__(self, "block", block)

    @property
    def stack(self) -> Stack:
        """The blocks as one layer."""
        return Stack(self.block, self.depth, unroll=self.depth)

    @property
    def patches(self) -> int:
        """How many patches an image has: the tokens of its sequence."""
        return (known(self.side, "side", self) // self.patch) ** 2

    def table(self) -> Table:
        """patches [p^2, D], positions [T, D], blocks, norm, head [D, classes]."""
        area, classes = self.patch**2, known(self.classes, "classes", self)
        return {
            "patches": Param((area, self.width), (None, "embed"), fan_in(area)),
            "positions": Param((self.patches, self.width), ("position", "embed"), normal(0.2)),
            "blocks": self.stack.table(),
            "norm": LayerNorm(self.width).table(),
            "head": Param((self.width, classes), ("embed", None), fan_in(self.width)),
            "head_bias": Param((classes,), (None,), zeros, decay=False),
        }

    def batch_axes(self) -> dict[str, tuple[str | None, ...]]:
        """images [rows, side, side], labels and weights [rows]."""
        return {"images": (BATCH, None, None), "labels": (BATCH,), "weights": (BATCH,)}

    def ids(self) -> dict[str, int]:
        """labels, of the classes."""
        return {"labels": known(self.classes, "classes", self)}

    def fitted(self, data: Dataset) -> ImageClassifier:
        """The model with the side and the classes of the data.

        Raises:
          UserError: the data has none, or others than the model's.
        """
        found = sizes_of(self, data, ("side", "classes"))
        try:
            return dataclasses.replace(self, **found)
        except ValueError as error:
            raise UserError(str(error)) from error

    def check_mesh(self, layout: Layout) -> None:
        """Refuses a split of tokens that does not divide the patches of an image.

        Raises:
          UserError: see `Model.check_mesh`; or patches that `tensor_tokens` cannot split.
        """
        super().check_mesh(layout)
        parts = layout.mesh.shape["tensor"] if layout.axes.residual else 1
        if self.patches % parts:
            raise UserError(
                f"an image of {self.patches} patches is not divisible by mesh axis tensor={parts}: "
                f"use the preset 'tensor' in place of 'tensor_tokens', or another patch"
            )

    def objective(
        self, params: Params, batch: Batch, axes: Axes = WHOLE, *, key: Array | None = None
    ) -> tuple[Float[Array, ""], Float[Array, ""] | float, Measures]:
        """The weighted sum of cross-entropies in nats; and how many images are classified rightly.

        Args:
          params: see `table`.
          batch: images, float32 [B, S, S]; labels, int32 [B]; weights, float32 [B].
          axes: mesh axes, inside `jax.shard_map`.
          key: for randomness in layers.
        """
        return self.parts().objective(params, batch, axes, key)

    def parts(self) -> Parts:
        """Patches and positions; blocks; norm, mean, head and loss."""

        def first(params: Params, batch: Batch, axes: Axes, key: Array | None) -> Array:
            return self._embedded(params, batch["images"], axes)

        def layers(
            blocks: Params,
            x: Array,
            batch: Batch,
            axes: Axes,
            key: Array | None,
            span: Span,
        ) -> tuple[Stream, Carry]:
            return self.stack.run(blocks, x, None, axes, key=key, **span._asdict())

        def last(
            params: Params, x: Array, carry: Carry, batch: Batch, axes: Axes
        ) -> tuple[Array, Array | float, Measures]:
            return self._told(self._logits(params, x, axes), carry, batch, axes)

        def own(params: Params, axes: Axes) -> Params:
            return params

        def deepened(depth: int) -> ImageClassifier:
            return dataclasses.replace(self, depth=depth)

        return Parts("blocks", self.depth, own, first, layers, last, deepened)

    def _told(
        self, logits: Array, carry: Carry, batch: Batch, axes: Axes
    ) -> tuple[Array, Array | float, Measures]:
        """What `objective` gives, from logits."""
        labels, weights = batch["labels"], batch["weights"]
        losses = self._losses(logits, labels)
        right = jnp.where(jnp.isnan(losses), jnp.nan, jnp.argmax(logits, axis=-1) == labels)
        total, hits, count = jax.tree.map(
            lambda x: collectives.psum(jnp.sum(x), axes.rows),
            (losses * weights, right * weights, weights),
        )
        penalty, told = reported(carry, axes)
        return total, penalty, {"accuracy": (hits, count), **told}

    def losses(self, params: Params, batch: Batch, axes: Axes = WHOLE) -> Float[Array, B]:
        """The cross-entropy of each image in nats; NaN where there is no such class."""
        return self._losses(self._run(params, batch["images"], axes, None)[0], batch["labels"])

    def _losses(self, logits: Array, labels: Array) -> Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        there = (labels >= 0) & (labels < logits.shape[-1])
        return jnp.where(there, losses, jnp.nan)

    def __call__(
        self,
        params: Params,
        images: Float[Array, "B S S"],
        axes: Axes = WHOLE,
        *,
        key: Array | None = None,
    ) -> Float[Array, "B C"]:
        """Float32 logits."""
        return self._run(params, images, axes, key)[0]

    def _run(
        self, params: Params, images: Array, axes: Axes, key: Array | None
    ) -> tuple[Array, Carry]:
        """Logits, and what the blocks hand on: their statistics are in it."""
        x = self._embedded(params, images, axes)
        x, carry = self.stack(params["blocks"], x, None, axes, key=key)
        return self._logits(params, x, axes), carry

    def _embedded(self, params: Params, images: Array, axes: Axes) -> Array:
        """What enters the first block."""
        count, p = known(self.side, "side", self) // self.patch, self.patch
        patches = images.reshape(-1, count, p, count, p).swapaxes(2, 3).reshape(-1, p * p)
        x = linear(patches, params["patches"]).reshape(len(images), count**2, self.width)
        return collectives.own_shard(x + params["positions"], axes.residual, dim=1)

    def _logits(self, params: Params, x: Array, axes: Axes) -> Array:
        """Scores of classes, from what leaves the last block."""
        x, _ = LayerNorm(self.width)(params["norm"], x, None, axes)
        mean = collectives.psum(jnp.sum(x, axis=1), axes.residual) / self.patches
        return linear(mean, params["head"], params["head_bias"])
