"""Weights from and to other implementations."""

from gam_jax.convert.hf import from_hf, to_hf
from gam_jax.convert.official_gam import from_official_gam, to_official_gam
from gam_jax.convert.own import load_model, save_model
from gam_jax.convert.peft import to_peft
from gam_jax.convert.peft_reader import from_peft

__all__ = [
    "from_hf",
    "from_official_gam",
    "from_peft",
    "load_model",
    "save_model",
    "to_hf",
    "to_official_gam",
    "to_peft",
]
