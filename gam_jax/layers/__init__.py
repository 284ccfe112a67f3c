"""Layers: frozen dataclasses that own a parameter table."""

from gam_jax.layers.base import Carry, Layer, inherit
from gam_jax.layers.block import Block, Residual, Stack
from gam_jax.layers.chunked import Chunked
from gam_jax.layers.gam import GAM
from gam_jax.layers.mamba import Mamba
from gam_jax.layers.mlp import MLP
from gam_jax.layers.norm import LayerNorm, RMSNorm

LAYERS: dict[str, type] = {
    layer.__name__: layer
    for layer in (Block, Chunked, GAM, LayerNorm, MLP, Mamba, RMSNorm, Residual, Stack)
}
"""Every layer by name: configurations name them, tests run their laws over all of them."""

__all__ = [
    "GAM",
    "LAYERS",
    "MLP",
    "Block",
    "Carry",
    "Chunked",
    "Layer",
    "LayerNorm",
    "Mamba",
    "RMSNorm",
    "Residual",
    "Stack",
    "inherit",
]
