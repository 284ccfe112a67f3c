"""Layers: frozen dataclasses that own a parameter table."""

from gam_jax.layers.adapted import Adapted
from gam_jax.layers.attention import Attention
from gam_jax.layers.base import Carry, Layer, inherit
from gam_jax.layers.bidirectional import Bidirectional
from gam_jax.layers.block import Block, Residual
from gam_jax.layers.chunked import Chunked
from gam_jax.layers.falcon_h1 import FalconH1
from gam_jax.layers.fused_delta import FusedDelta
from gam_jax.layers.gam import GAM
from gam_jax.layers.in_order import InOrder, InTurn, Series
from gam_jax.layers.latent_attention import LatentAttention
from gam_jax.layers.linear import Linear, NoOp
from gam_jax.layers.linear_memory import LinearMemory
from gam_jax.layers.mamba import Mamba
from gam_jax.layers.mamba2 import Mamba2
from gam_jax.layers.mhs import MHS
from gam_jax.layers.minimal import MinimalRNN
from gam_jax.layers.mixed import Mixed
from gam_jax.layers.mlp import MLP
from gam_jax.layers.moe import MoE
from gam_jax.layers.mofme import MoFME
from gam_jax.layers.nested import Nested
from gam_jax.layers.norm import LayerNorm, RMSNorm
from gam_jax.layers.parscale import ParScale
from gam_jax.layers.pattern import Pattern
from gam_jax.layers.product_memory import ProductMemory
from gam_jax.layers.recurrent import GRU, LSTM, Elman
from gam_jax.layers.shallow import Shallow
from gam_jax.layers.soft_mixture import SoftMixture
from gam_jax.layers.stack import Stack
from gam_jax.layers.tcnca import TCN, TCNCA
from gam_jax.layers.written_gam import WrittenGAM

LAYERS: dict[str, type] = {
    layer.__name__: layer
    for layer in (
        Adapted,
        Attention,
        Bidirectional,
        Block,
        Chunked,
        Elman,
        FalconH1,
        FusedDelta,
        GAM,
        GRU,
        InTurn,
        LSTM,
        LatentAttention,
        LayerNorm,
        Linear,
        LinearMemory,
        MHS,
        MLP,
        Mamba,
        Mamba2,
        MinimalRNN,
        Mixed,
        MoE,
        ParScale,
        MoFME,
        Nested,
        NoOp,
        Pattern,
        ProductMemory,
        RMSNorm,
        Residual,
        Series,
        Shallow,
        SoftMixture,
        Stack,
        TCN,
        TCNCA,
        WrittenGAM,
    )
}
"""Every layer by name: configurations name them, tests run their laws over all of them."""

__all__ = [
    "GAM",
    "GRU",
    "LAYERS",
    "LSTM",
    "MHS",
    "MLP",
    "TCN",
    "TCNCA",
    "Adapted",
    "Attention",
    "Bidirectional",
    "Block",
    "Carry",
    "Chunked",
    "Elman",
    "FalconH1",
    "FusedDelta",
    "InOrder",
    "InTurn",
    "LatentAttention",
    "Layer",
    "LayerNorm",
    "Linear",
    "LinearMemory",
    "Mamba",
    "Mamba2",
    "MinimalRNN",
    "Mixed",
    "MoE",
    "MoFME",
    "Nested",
    "NoOp",
    "ParScale",
    "Pattern",
    "ProductMemory",
    "RMSNorm",
    "Residual",
    "Series",
    "Shallow",
    "SoftMixture",
    "Stack",
    "WrittenGAM",
    "inherit",
]
