"""Attention over several sources of tokens at once, each with keys and values of its own."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from gam_jax.layers.base import WHOLE
from gam_jax.layers.branches import Branch, summed
from gam_jax.ops.sources import attend_source, attend_together
from gam_jax.params import Param, Params, Table, fan_in, ones, zeros
from sharding.axes import Axes
from sharding.bounds import Count, Size, check_bounds
from sharding.errors import UserError


@dataclasses.dataclass(frozen=True)
class SourceAttention:
    """y = sum_i factor_i Attn(x Q, s_i K_i, s_i V_i) O: cross-attention to several sources.

    It reads other tokens than its own and has no carry, so that it is no sequence layer. Source:
    Imagine Yourself (arXiv 2409.13346), section 3.2; whether its factors are learned is not said,
    here they are, from 1.

    Attributes:
      width: D, of the queries' tokens and of the output.
      sources: width of each source's tokens.
      heads: H.
      head_size: K, of keys and values.
      parallel: whether each source has a softmax of its own. Otherwise one goes over the keys of
        all, as if the sources were concatenated, and there are no factors.
      silent: numbers of the sources whose values begin as zeros. In parallel the output is then
        that of the others; in one softmax their keys take weight all the same.
      spread: of one softmax: whether `seq` splits the sources' tokens, see `attend_together`.
    """

    width: Size
    sources: tuple[Size, ...]
    heads: Size = 4
    head_size: Size = 8
    parallel: bool = True
    silent: tuple[Count, ...] = ()
    spread: bool = False

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.sources or min(self.sources) < 1:
            raise UserError(f"SourceAttention.sources={self.sources}: give widths of at least 1")
        if self.parallel and self.spread:
            raise UserError("SourceAttention.spread joins one softmax: set parallel=False")
        if not set(self.silent) <= set(range(len(self.sources))):
            raise UserError(
                f"SourceAttention.silent={self.silent}: there are sources 0 to "
                f"{len(self.sources) - 1}"
            )

    def table(self) -> Table:
        """query, out; factors; source_0 ...: key, value."""
        heads, size = self.heads, self.head_size
        found: dict[str, Any] = {
            "query": _to_heads(self.width, heads, size),
            "out": Param((heads, size, self.width), (None, None, None), fan_in(heads * size)),
        }
        for number, width in enumerate(self.sources):
            start = zeros if number in self.silent else fan_in(width)
            found[f"source_{number}"] = {
                "key": _to_heads(width, heads, size),
                "value": _to_heads(width, heads, size, start),
            }
        if self.parallel:
            found["factors"] = Param((len(self.sources),), (None,), ones, decay=False)
        return found

    def __call__(
        self,
        params: Params,
        x: Float[Array, "B T D"],
        sources: Sequence[Float[Array, "B S _"]],
        axes: Axes = WHOLE,
    ) -> Float[Array, "B T D"]:
        """The output, whole on every device; in parallel a device along `stream` has one source.

        Args:
          params: see `table`.
          x: tokens that ask.
          sources: tokens of each source.
          axes: mesh axes.

        Raises:
          UserError: not as many sources as were declared.
        """
        if len(sources) != len(self.sources):
            raise UserError(
                f"SourceAttention has {len(self.sources)} sources, and is given {len(sources)}"
            )
        given = params, x, tuple(sources)
        if self.parallel:
            parts: list[Branch] = [
                functools.partial(self._of_source, number) for number in range(len(self.sources))
            ]
            return _from_heads(params, summed(parts, given, axes), x)
        pairs = [self._pair(params, number, sources[number]) for number in range(len(sources))]
        axis = axes.seq if self.spread else None
        return _from_heads(params, attend_together(_heads(params["query"], x), pairs, axis), x)

    def _of_source(self, number: int, given: tuple[Params, Array, tuple[Array, ...]]) -> Array:
        params, x, sources = given
        pair = self._pair(params, number, sources[number])
        out, _ = attend_source(_heads(params["query"], x), pair)
        return params["factors"][number] * out

    def _pair(self, params: Params, number: int, source: Array) -> tuple[Array, Array]:
        own = params[f"source_{number}"]
        return _heads(own["key"], source), _heads(own["value"], source)


def _to_heads(inputs: int, heads: int, size: int, init: Any = None) -> Param:
    return Param((inputs, heads, size), (None, None, None), init or fan_in(inputs))


def _heads(weight: Array, x: Array) -> Float[Array, "B S H K"]:
    return jnp.einsum("bsd,dhk->bshk", x, weight.astype(x.dtype))


def _from_heads(params: Params, y: Array, x: Array) -> Float[Array, "B T D"]:
    return jnp.einsum("bthk,hkd->btd", y.astype(x.dtype), params["out"].astype(x.dtype))
