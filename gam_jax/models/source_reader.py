"""A small model that reads one fact from each of several sources at once.

Source: the fusion of Imagine Yourself (arXiv 2409.13346), on lists in place of faces and texts.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from gam_jax.data.base import Dataset
from gam_jax.layers.base import WHOLE, known
from gam_jax.layers.sources import SourceAttention
from gam_jax.models.base import BATCH, Batch, Measures, Model, sizes_of
from gam_jax.params import Param, Params, Table, fan_in, normal, zeros
from sharding.axes import Axes
from sharding.bounds import Count, Size


@dataclasses.dataclass(frozen=True)
class SourceReader(Model):
    """Values from n lists of (name, value): one layer of `SourceAttention`, then n linear heads.

    A token is the sum of what its name and its value are embedded as, by the tables of its list;
    the query is what the name that is asked for is embedded as.

    Attributes:
      width: D.
      heads: of the attention.
      head_size: of keys and values.
      parallel: whether each list has a softmax of its own.
      silent: lists whose values begin as zeros, see `SourceAttention`.
      sources: n, as many as the data has.
      names: how many names there are; the data's where it is None.
      values: likewise.
    """

    width: Size = 32
    heads: Size = 4
    head_size: Size = 16
    parallel: bool = True
    silent: tuple[Count, ...] = ()
    sources: Size = 4
    names: Size | None = None
    values: Size | None = None

    @property
    def branches(self) -> int:
        """The lists, where each has a softmax of its own."""
        return self.sources if self.parallel else 1

    @property
    def layer(self) -> SourceAttention:
        """The attention."""
        widths = (self.width,) * self.sources
        return SourceAttention(
            self.width, widths, self.heads, self.head_size, self.parallel, self.silent
        )

    def fitted(self, data: Dataset) -> SourceReader:
        """With the sizes of the data.

        Raises:
          UserError: the data has other sizes than the model.
        """
        found = sizes_of(self, data, ("names", "values", "sources"))
        return dataclasses.replace(self, **found)

    def table(self) -> Table:
        """asked; source_0 ...: names, values; attention; head: weight, bias."""
        names, values = (known(getattr(self, n), n, self) for n in ("names", "values"))
        count = self.sources

        def embedded(size: int) -> Param:
            return Param((size, self.width), (None, None), normal(1.0), decay=False)

        lists = {
            f"source_{number}": {"names": embedded(names), "values": embedded(values)}
            for number in range(count)
        }
        head = {
            "weight": Param((self.width, count, values), (None, None, None), fan_in(self.width)),
            "bias": Param((count, values), (None, None), zeros, decay=False),
        }
        return {
            "asked": embedded(names),
            **lists,
            "attention": self.layer.table(),
            "head": head,
        }

    def batch_axes(self) -> dict[str, tuple[str | None, ...]]:
        """asked [rows], source_0 ... [rows, length, 2], facts [rows, n], weights [rows]."""
        lists = {f"source_{number}": (BATCH, None, None) for number in range(self.sources)}
        return {"asked": (BATCH,), **lists, "facts": (BATCH, None), "weights": (BATCH,)}

    def ids(self) -> dict[str, int]:
        """asked and facts; what lists hold is of two kinds and is not checked."""
        names, values = (known(getattr(self, n), n, self) for n in ("names", "values"))
        return {"asked": names, "facts": values}

    def __call__(
        self, params: Params, batch: Batch, axes: Axes = WHOLE
    ) -> Float[Array, "B N values"]:
        """Logits of each list's value."""
        tokens = []
        for number in range(self.sources):
            own, given = params[f"source_{number}"], batch[f"source_{number}"]
            tokens.append(own["names"][given[..., 0]] + own["values"][given[..., 1]])
        query = params["asked"][batch["asked"]][:, None]
        found = self.layer(params["attention"], query, tokens, axes)[:, 0]
        return jnp.einsum("bd,dnv->bnv", found, params["head"]["weight"]) + params["head"]["bias"]

    def objective(
        self, params: Params, batch: Batch, axes: Axes = WHOLE, *, key: Array | None = None
    ) -> tuple[Float[Array, ""], float, Measures]:
        """The weighted sum of cross entropies, mean over lists; and that of each list alone."""
        logits, weights = self(params, batch, axes), batch["weights"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["facts"])
        count = jnp.sum(weights)
        told = {
            f"source_{number}": (jnp.sum(weights * losses[:, number]), count)
            for number in range(losses.shape[1])
        }
        return jnp.sum(jnp.mean(losses, 1) * weights), 0.0, told
