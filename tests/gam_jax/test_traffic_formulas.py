"""No layer is without a formula for what it sends; whether it is right, `test_traffic` says."""

from gam_jax.layers import LAYERS
from gam_jax.traffic.layers import layer_traffic

WITHOUT = {"Bidirectional", "MHS", "ParScale"}
"""The first two read whole sequences; a model's streams are counted with the model."""


def test_every_layer_has_a_formula():
    unknown = layer_traffic.dispatch(object)
    missing = {name for name, layer in LAYERS.items() if layer_traffic.dispatch(layer) is unknown}
    assert missing == WITHOUT
