"""Layers: frozen dataclasses that own a parameter table."""

from gam_jax.layers.base import Carry, Layer, inherit
from gam_jax.layers.bidirectional import Bidirectional
from gam_jax.layers.block import Block, Stack
from gam_jax.layers.chunked import Chunked
from gam_jax.layers.gam import GAM
from gam_jax.layers.mlp import MLP
from gam_jax.layers.norm import LayerNorm
from gam_jax.layers.product_memory import ProductMemory
from gam_jax.layers.recurrent import GRU, LSTM, Elman
from gam_jax.layers.tcnca import TCN, TCNCA

LAYERS: dict[str, type] = {
    layer.__name__: layer
    for layer in (
        Bidirectional,
        Block,
        Chunked,
        Elman,
        GAM,
        GRU,
        LSTM,
        LayerNorm,
        MLP,
        ProductMemory,
        Stack,
        TCN,
        TCNCA,
    )
}
"""Every layer by name: configurations name them, tests run their laws over all of them."""

__all__ = [
    "GAM",
    "GRU",
    "LAYERS",
    "LSTM",
    "MLP",
    "TCN",
    "TCNCA",
    "Bidirectional",
    "Block",
    "Carry",
    "Chunked",
    "Elman",
    "Layer",
    "LayerNorm",
    "ProductMemory",
    "Stack",
    "inherit",
]
