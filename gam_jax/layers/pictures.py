"""Attention within pictures and between them: views of a thing, or frames of a clip."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gam_jax.layers.base import WHOLE, known
from gam_jax.layers.mlp import MLP
from gam_jax.layers.norm import LayerNorm
from gam_jax.layers.sources import SourceAttention
from gam_jax.params import Param, Params, Table, fan_in, normal, zeros
from sharding import collectives
from sharding.axes import Axes
from sharding.bounds import Size, check_bounds
from sharding.errors import UserError

ROWS, TIME, FULL = "rows", "time", "full"
"""A token sees its row of all pictures; its place in all of them; all tokens of all pictures."""
BETWEEN = (ROWS, TIME, FULL)


def plain_attention(width: int, heads: int) -> SourceAttention:
    """softmax(x Q (s K)^T) s V O with parameters of its own, of one source of as many channels.

    Raises:
      UserError: heads that do not divide the width.
    """
    if width % heads:
        raise UserError(f"heads={heads} of attention in pictures do not divide width={width}")
    return SourceAttention(width, (width,), heads, width // heads, parallel=False)


@dataclasses.dataclass(frozen=True)
class BetweenPictures:
    """Attention of each token to tokens of all pictures of its row of the batch.

    It begins as nothing: output matrices are zeros. With `seq` over devices each has some of the
    pictures. For "rows" and "time" an all-to-all before it and one behind it exchange pictures for
    rows of tokens, see `exchanged_bytes`; queries, keys and values are made in between, so that two
    messages do where exchanging all four arrays would send twice as much. For "full" each device
    gathers the tokens of all.

    Attributes:
      width: D.
      heads: H.
      sees: "rows", as in MV-Adapter (arXiv 2412.03632); "time", with a feed-forward behind the
        attention, as temporal layers of videos have; or "full".
      pictures: N; with "time" each has a vector of its own, by which the layer knows its place.
      normed: whether the layer norms its input itself.
    """

    width: Size
    heads: Size
    sees: str = ROWS
    pictures: Size | None = None
    normed: bool = False

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.sees not in BETWEEN:
            raise UserError(
                f"BetweenPictures.sees='{self.sees}' is not one of {', '.join(BETWEEN)}"
            )

    def table(self) -> Table:
        """attention; norm where it norms; for "time" place [N, D] and inner_norm, w_in, w_out."""
        found: dict[str, Any] = {"attention": plain_attention(self.width, self.heads).table()}
        out = found["attention"]["out"]
        found["attention"]["out"] = dataclasses.replace(out, init=zeros)
        if self.normed:
            found["norm"] = LayerNorm(self.width).table()
        if self.sees == TIME:
            shape = known(self.pictures, "pictures", self), self.width
            found["place"] = Param(shape, (None, None), normal(0.5), decay=False)
            found["inner_norm"] = LayerNorm(self.width).table()
            found["w_in"] = Param((self.width, 2 * self.width), (None, None), fan_in(self.width))
            found["w_out"] = Param((2 * self.width, self.width), (None, None), zeros)
        return found

    def __call__(
        self, params: Params, x: Float[Array, "B n R C D"], axes: Axes = WHOLE
    ) -> Float[Array, "B n R C D"]:
        """What is added to the tokens.

        Args:
          params: see `table`.
          x: tokens of this device's pictures, in R rows of C.
          axes: mesh axes.
        """
        attention = plain_attention(self.width, self.heads)
        if self.normed:
            x, _ = LayerNorm(self.width)(params["norm"], x)
        if self.sees == FULL:
            own = x.reshape(len(x), -1, self.width)
            seen = collectives.all_gather(own, axes.seq, 1)
            return attention(params["attention"], own, [seen], axes).reshape(x.shape)
        pictures, rows = x.shape[1] * collectives.axis_size(axes.seq), x.shape[2]
        x = collectives.turned(x, axes.seq, 2, 1, pictures)
        if self.sees == TIME:
            x = x + params["place"][:, None, None]
        # Rows become [B, R, N, C, D], places [B, R, C, N, D].
        behind = 2 if self.sees == ROWS else 3
        together = x.shape[1] * (x.shape[3] if self.sees == ROWS else 1)
        x = jnp.moveaxis(x, 1, behind)
        tokens = x.reshape(-1, together, self.width)
        y = attention(params["attention"], tokens, [tokens], axes).reshape(x.shape)
        if self.sees == TIME:
            hidden, _ = LayerNorm(self.width)(params["inner_norm"], x + y)
            y = y + jax.nn.gelu(hidden @ params["w_in"]) @ params["w_out"]
        return collectives.turned(jnp.moveaxis(y, behind, 1), axes.seq, 1, 2, rows)


def exchanged_bytes(
    rows: int, pictures: int, tokens: int, width: int, devices: int, itemsize: int = 4
) -> int:
    """Bytes that a device brings to one exchange: of its own pictures, all tokens.

    A layer that sees "rows" or "time" makes two all-to-alls forward and two backward; one that sees
    "full" a gather forward, and backward a sum of what was gathered.

    Args:
      rows: of the batch on this device.
      pictures: N, of all devices along `seq`.
      tokens: of a picture.
      width: D.
      devices: along `seq`.
      itemsize: bytes of a number.
    """
    return rows * pictures // devices * tokens * width * itemsize


@dataclasses.dataclass(frozen=True)
class PictureBlock:
    """h + within(x) + between(x) + reference(x) with x = norm(h), and then a feed-forward.

    Attentions side by side read the same x (MV-Adapter, arXiv 2412.03632); or the one
    between pictures follows the others and reads what they have made, as a block of videos does.

    Attributes:
      width: D.
      heads: of each attention.
      sees: of the attention between pictures; "" for none.
      beside: whether it stands beside the one within pictures.
      reference: whether there is attention to tokens of a reference, which begins as nothing.
      pictures: N, see `BetweenPictures`.
    """

    width: Size
    heads: Size
    sees: str = ""
    beside: bool = True
    reference: bool = False
    pictures: Size | None = None

    @property
    def between(self) -> BetweenPictures:
        """The attention between pictures."""
        return BetweenPictures(
            self.width, self.heads, self.sees, self.pictures, normed=not self.beside
        )

    @property
    def _mlp(self) -> MLP:
        return MLP(self.width, expansion=2, dropout=0.0)

    def table(self) -> Table:
        """norm_0, within, norm_1, mlp; between and reference where there are any."""
        norm = LayerNorm(self.width).table()
        within = plain_attention(self.width, self.heads).table()
        found = {"norm_0": norm, "within": within, "norm_1": norm, "mlp": self._mlp.table()}
        if self.sees:
            found["between"] = self.between.table()
        if self.reference:
            out = dataclasses.replace(within["out"], init=zeros)
            found["reference"] = {**within, "out": out}
        return found

    def normed(self, params: Params, h: Array) -> Array:
        """What the attentions of the block read; of a reference, what others read of it."""
        return LayerNorm(self.width)(params["norm_0"], h)[0]

    def __call__(
        self,
        params: Params,
        h: Float[Array, "B n R C D"],
        axes: Axes = WHOLE,
        reference: Float[Array, "B S D"] | None = None,
        scales: tuple[float, float] = (1.0, 1.0),
    ) -> Float[Array, "B n R C D"]:
        """Tokens after the block.

        Args:
          params: see `table`.
          h: tokens of this device's pictures, in R rows of C.
          axes: mesh axes.
          reference: tokens of the reference, where the block has attention to them.
          scales: of what is added between pictures, and from the reference.
        """
        rows, own = len(h), (-1, h.shape[2] * h.shape[3], self.width)
        attention = plain_attention(self.width, self.heads)
        x = self.normed(params, h)
        tokens = x.reshape(own)
        y = attention(params["within"], tokens, [tokens], axes).reshape(h.shape)
        if reference is not None:
            asked = x.reshape(rows, -1, self.width)
            found = attention(params["reference"], asked, [reference], axes)
            y = y + scales[1] * found.reshape(h.shape)
        if self.sees and self.beside:
            y = y + scales[0] * self.between(params["between"], x, axes)
        h = h + y
        if self.sees and not self.beside:
            h = h + scales[0] * self.between(params["between"], h, axes)
        x, _ = LayerNorm(self.width)(params["norm_1"], h)
        y, _ = self._mlp(params["mlp"], x.reshape(own), None, axes)
        return h + y.reshape(h.shape)
