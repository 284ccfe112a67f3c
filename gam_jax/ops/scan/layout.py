"""The arrays of a memory scan in the one layout that all its forms work on."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array


class Inputs(NamedTuple):
    """Keys and queries of P groups (of all rows), each shared by R heads, in float32.

    Attributes:
      q, k: [P, 1, T, K].
      v: [P, R, T, N].
      log_decay: None, [P, R, T, 1] or [P, R, T, K]; R may be 1 where all heads of a group share it.
      beta: None or [P, R, T, 1].
      starts: None or [P, 1, T, 1], 1 where documents begin: `log_decay` is then -inf there.
    """

    q: Array
    k: Array
    v: Array
    log_decay: Array | None
    beta: Array | None
    starts: Array | None = None

    def map(self, function: Callable[[Array], Array]) -> Inputs:
        """`function` of every array that is there."""
        return jax.tree.map(function, self)

    def token(self, index: int) -> Inputs:
        """One token of each, without the axis T."""
        return self.map(lambda x: x[..., index, :])

    def padded(self, size: int) -> Inputs:
        """With zeros up to a multiple of `size` tokens: they decay by 1 and write nothing."""
        missing = -self.v.shape[-2] % size
        return self.map(lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, missing), (0, 0)]))

    def leading(self) -> Inputs:
        """With T in front."""
        return self.map(lambda x: jnp.moveaxis(x, -2, 0))

    def split(self, size: int) -> Inputs:
        """The first axis [T, ...] as [T / size, size, ...]."""
        return self.map(lambda x: x.reshape(-1, size, *x.shape[1:]))
