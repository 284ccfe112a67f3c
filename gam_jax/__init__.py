"""Parallel sequence architectures as pure JAX functions.

The names below can be imported from here. Each is loaded when it is first asked for, so that
`import gam_jax` alone loads neither JAX nor a model.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
"""The one place of the version; pyproject.toml reads it from here."""

if TYPE_CHECKING:
    from gam_jax import convert, layers
    from gam_jax.flax_modules import LinenLayer, NnxLayer
    from gam_jax.layers import (
        GAM,
        GRU,
        LSTM,
        MHS,
        MLP,
        TCN,
        TCNCA,
        Adapted,
        Attention,
        Bidirectional,
        Block,
        Chunked,
        Elman,
        FalconH1,
        FusedDelta,
        InTurn,
        LatentAttention,
        Layer,
        LayerNorm,
        Linear,
        LinearMemory,
        Mamba,
        Mamba2,
        MinimalRNN,
        Mixed,
        MoE,
        MoFME,
        Nested,
        NoOp,
        ParScale,
        Pattern,
        ProductMemory,
        Residual,
        RMSNorm,
        Series,
        Shallow,
        SoftMixture,
        Stack,
        WrittenGAM,
    )
    from gam_jax.models.classifier import ImageClassifier
    from gam_jax.models.language import LanguageModel

__all__ = [
    "GAM",
    "GRU",
    "LSTM",
    "MHS",
    "MLP",
    "TCN",
    "TCNCA",
    "Adapted",
    "Attention",
    "Bidirectional",
    "Block",
    "Chunked",
    "Elman",
    "FalconH1",
    "FusedDelta",
    "ImageClassifier",
    "InTurn",
    "LanguageModel",
    "LatentAttention",
    "Layer",
    "LayerNorm",
    "Linear",
    "LinearMemory",
    "LinenLayer",
    "Mamba",
    "Mamba2",
    "MinimalRNN",
    "Mixed",
    "MoE",
    "MoFME",
    "Nested",
    "NnxLayer",
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
    "__version__",
    "convert",
    "layers",
]

_MODULES = ("convert", "layers")
_ELSEWHERE = {
    "ImageClassifier": "gam_jax.models.classifier",
    "LanguageModel": "gam_jax.models.language",
    "LinenLayer": "gam_jax.flax_modules",
    "NnxLayer": "gam_jax.flax_modules",
}
"""Where a name is that is neither a layer nor a module."""


def __getattr__(name: str) -> Any:
    """A name of `__all__`, from the module that has it."""
    if name not in __all__:
        raise AttributeError(f"module 'gam_jax' has no attribute '{name}'")
    if name in _MODULES:
        return importlib.import_module(f"gam_jax.{name}")
    return getattr(importlib.import_module(_ELSEWHERE.get(name, "gam_jax.layers")), name)


def __dir__() -> list[str]:
    """What can be asked for."""
    return sorted({*globals(), *__all__})
