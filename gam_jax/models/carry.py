"""What a language model hands to the next chunk."""

from __future__ import annotations

import flax.struct
from jaxtyping import Array, Int

from gam_jax.layers.base import Carry


@flax.struct.dataclass
class ModelCarry:
    """What the model hands to the next chunk.

    Attributes:
      position: int32 [B], how many tokens of its document came before in each row.
      layers: the stack's carry, each leaf [L, B, ...]; that of `ParScale` where there are streams.
    """

    position: Int[Array, B]
    layers: Carry
