"""What a layer should send in a training step, by formula: from sizes alone.

Written from the design of each layer, not from its program, see `gam_jax.traffic.step`.
Collectives are those of the default rules, which split channels, slots, hidden units and
vocabulary alike.
"""

from gam_jax.traffic import blocks, feedforward, memories, mixers  # register their formulas
from gam_jax.traffic.gathered import added_last
from gam_jax.traffic.sizes import FLOAT, Sizes, gathers, layer_traffic

__all__ = [
    "FLOAT",
    "Sizes",
    "added_last",
    "blocks",
    "feedforward",
    "gathers",
    "layer_traffic",
    "memories",
    "mixers",
]
