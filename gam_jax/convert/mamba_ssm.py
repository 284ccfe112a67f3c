"""Mamba and Mamba-2 as the package mamba_ssm writes them (github.com/state-spaces/mamba).

Its config.json names no architecture, and its arrays are in a pickle: they are read once they have
been saved as safetensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gam_jax.convert.family import Config, Family, check_plain, one, refuse
from gam_jax.convert.fields import Fields
from gam_jax.convert.folder import Reader
from gam_jax.convert.mamba import read_block, residual_model, write_block
from gam_jax.convert.same import check_same
from gam_jax.convert.ssm import step_limits, write_limits
from gam_jax.layers import Mamba, Mamba2, Residual
from gam_jax.models.language import LanguageModel
from gam_jax.params import Params

OFFICIAL = "MambaLMHeadModel"
EPS = 1e-5
"""Of all its norms."""
STARTS = ("dt_min", "dt_max", "dt_init_floor")
"""Fields of ssm_cfg that say how weights are drawn before training, of each layer."""
OWN_STARTS = {
    "Mamba1": ("dt_init", "dt_scale", "use_fast_path"),
    "Mamba2": ("A_init_range", "conv_init", "chunk_size", "use_mem_eff_path"),
}
"""Likewise of one layer alone, and which program runs."""


def is_own(config: Config) -> bool:
    """Whether a config.json is of that package."""
    return config.get("architectures") is None and {"d_model", "n_layer"} <= config.keys()


def _model(values: Config) -> LanguageModel:
    config = Fields.of(values)
    refuse(config, rms_norm=True, d_intermediate=0, attn_layer_idx=[], attn_cfg={})
    width, multiple = config.size("d_model"), config.size("pad_vocab_size_multiple", 8)
    return residual_model(
        _mixer(config.part("ssm_cfg"), width),
        width,
        config.size("n_layer"),
        math.ceil(config.size("vocab_size") / multiple) * multiple,
        EPS,
        config.flag("tie_embeddings", True),
    )


def _mixer(given: Fields, width: int) -> Mamba | Mamba2:
    layer = given.get("layer", "Mamba1")
    layer = "Mamba1" if layer is None else layer
    if not isinstance(layer, str) or layer not in OWN_STARTS:
        raise given.refused("layer", f"is not known here, {' or '.join(OWN_STARTS)} alone")
    for name in (*STARTS, *OWN_STARTS[layer]):
        given.get(name)
    biased = given.flag("bias", False)
    common: dict[str, Any] = {
        "kernel": given.size("d_conv", 4),
        "conv_bias": given.flag("conv_bias", True),
        "in_bias": biased,
        "out_bias": biased,
    }
    expand = given.size("expand", 2)
    if layer == "Mamba1":
        rank = given.get("dt_rank")
        common["rank"] = 0 if rank in (None, "auto") else given.size("dt_rank")
        return Mamba(expansion=expand, state=given.size("d_state", 16), **common)
    refuse(given, d_ssm=expand * width, D_has_hdim=False)
    norm = "norm_first" if given.flag("norm_before_gate", False) else "gate_first"
    low, high = step_limits(given, "dt_limit")
    return Mamba2(
        inner=expand * width,
        head=given.size("headdim", 64),
        state=given.size("d_state", 128),
        groups=given.size("ngroups", 1),
        norm=norm if given.flag("rmsnorm", True) else "none",
        eps=EPS,
        dt_min=low,
        dt_max=high,
        **common,
    )


def _config(model: LanguageModel) -> dict[str, Any]:
    check_plain(model, OFFICIAL)
    mixer: Any = one(model.block, Residual, OFFICIAL).inner
    if isinstance(mixer, Mamba):
        own = {"layer": "Mamba1", **_written_mamba(mixer)}
    else:
        own = {"layer": "Mamba2", **_written_mamba2(one(mixer, Mamba2, OFFICIAL), model.width)}
    config = {
        "d_model": model.width,
        "d_intermediate": 0,
        "n_layer": model.depth,
        "vocab_size": model.vocab,
        "ssm_cfg": own,
        "attn_layer_idx": [],
        "attn_cfg": {},
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 1,
        "tie_embeddings": model.tied,
    }
    check_same(OFFICIAL, _model, model, config)
    return config


def _written_mamba(mixer: Mamba) -> Mapping[str, Any]:
    return {
        "d_state": mixer.state,
        "d_conv": mixer.kernel,
        "expand": mixer.expansion,
        "dt_rank": mixer.steps,
        "conv_bias": mixer.conv_bias,
        "bias": mixer.in_bias,
    }


def _written_mamba2(mixer: Mamba2, width: int) -> Mapping[str, Any]:
    low, high = write_limits(mixer)
    return {
        "d_state": mixer.state,
        "d_conv": mixer.kernel,
        "expand": max(mixer.heads * mixer.head // width, 1),
        "headdim": mixer.head,
        "ngroups": mixer.groups,
        "rmsnorm": mixer.norm != "none",
        "norm_before_gate": mixer.norm == "norm_first",
        "conv_bias": mixer.conv_bias,
        "bias": mixer.in_bias,
        **({"dt_limit": [low, mixer.dt_max or high]} if (mixer.dt_min or mixer.dt_max) else {}),
    }


def _read_head(model: LanguageModel, reader: Reader) -> Params:
    return {}


def _write_head(model: LanguageModel, params: Params) -> dict[str, np.ndarray]:
    """Its code asks for the head by name, even where it is the embedding."""
    return {"lm_head.weight": params["embedding"]} if model.tied else {}


FAMILIES = {
    OFFICIAL: Family(
        _model,
        _config,
        "backbone.embedding.weight",
        "backbone.norm_f.weight",
        "backbone.layers.",
        read_block,
        write_block,
        apart=(_read_head, _write_head),
        kind="mamba_ssm",
    )
}
"""Its class -> how its folders are read and written."""
