"""Falcon-H1 as Hugging Face transformers writes it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from gam_jax.convert.family import Config, Family, check_plain, one, refuse
from gam_jax.convert.fields import Fields
from gam_jax.convert.folder import Reader
from gam_jax.convert.hybrids import NORMS, hidden_of, read_heads, written_heads
from gam_jax.convert.multipliers import rounded
from gam_jax.convert.parts import (
    read_attention,
    read_norms,
    read_units,
    sequential,
    write_attention,
    write_norms,
    write_units,
)
from gam_jax.convert.same import check_same
from gam_jax.convert.ssm import Names, read_ssm, write_ssm
from gam_jax.layers import MLP, Attention, Block, FalconH1, Mamba2, RMSNorm
from gam_jax.layers.mamba2 import Scales
from gam_jax.models.language import LanguageModel
from gam_jax.params import Params

OFFICIAL = "FalconH1ForCausalLM"
NAMES = Names(out_bias="projectors_bias", inner="mamba_d_ssm")


def _model(values: Config) -> LanguageModel:
    config = Fields.of(values)
    refuse(config, hidden_act="silu", mamba_use_mlp=True)
    width, key = config.size("hidden_size"), config.number("key_multiplier", 1.0)
    norm = RMSNorm(eps=config.number("rms_norm_eps", 1e-5, least=0))
    mixer = FalconH1(
        _attention(config, width, key),
        _ssm(config, width, norm.eps),
        attention_in=config.number("attention_in_multiplier", 1.0),
        attention_out=config.number("attention_out_multiplier", 1.0),
        ssm_out=config.number("ssm_out_multiplier", 1.0),
    )
    gate, down = config.numbers("mlp_multipliers", 2)
    ffn = MLP(
        activation="swiglu",
        hidden=config.size("intermediate_size"),
        bias=config.flag("mlp_bias", False),
        gate_scale=gate,
        out_scale=down,
    )
    return LanguageModel(
        Block(mixer, ffn, norm),
        width=width,
        depth=config.size("num_hidden_layers"),
        vocab=config.size("vocab_size"),
        norm=norm,
        tied=config.flag("tie_word_embeddings", False),
        embedding_scale=config.number("embedding_multiplier", 1.0),
        logit_scale=config.number("lm_head_multiplier", 1.0),
    )


def _attention(config: Fields, width: int, key: float) -> Attention:
    biased = config.flag("attention_bias", False)
    plain = read_heads(config, width, 8192, bias=biased, out_bias=biased)
    return plain if key == 1 else dataclasses.replace(plain, scale=key * plain.size**-0.5)


def _ssm(config: Fields, width: int, eps: float) -> Mamba2:
    norm = "norm_first" if config.flag("mamba_norm_before_gate", True) else "gate_first"
    scales = config.number("ssm_in_multiplier", 1.0), *config.numbers("ssm_multipliers", 5)
    return NAMES.read(
        config,
        width,
        norm=norm if config.flag("mamba_rms_norm", False) else "none",
        eps=eps,
        scales=Scales(*scales),
    )


def _parts(model: LanguageModel) -> tuple[FalconH1, Attention, Mamba2, MLP]:
    block = sequential(model.block, OFFICIAL)
    mixer = one(block.mixer, FalconH1, OFFICIAL)
    return (
        mixer,
        one(mixer.attention, Attention, OFFICIAL),
        one(mixer.ssm, Mamba2, OFFICIAL),
        one(block.ffn, MLP, OFFICIAL),
    )


def _config(model: LanguageModel) -> dict[str, Any]:
    mixer, attention, ssm, ffn = _parts(model)
    check_plain(model, OFFICIAL, scaled=True)
    scales = ssm.scales
    config = {
        "architectures": [OFFICIAL],
        "model_type": "falcon_h1",
        "hidden_size": model.width,
        "intermediate_size": hidden_of(ffn, model.width),
        "num_hidden_layers": model.depth,
        "vocab_size": model.vocab,
        "rms_norm_eps": one(model.norm, RMSNorm, OFFICIAL).eps,
        "tie_word_embeddings": model.tied,
        "hidden_act": "silu",
        "attention_bias": attention.bias,
        "mlp_bias": ffn.bias,
        "head_dim": attention.size,
        **written_heads(OFFICIAL, attention, model.width),
        **NAMES.written(ssm, model.width),
        "mamba_rms_norm": ssm.norm != "none",
        "mamba_norm_before_gate": ssm.norm != "gate_first",
        "embedding_multiplier": model.embedding_scale,
        "lm_head_multiplier": model.logit_scale,
        "attention_in_multiplier": mixer.attention_in,
        "attention_out_multiplier": mixer.attention_out,
        "key_multiplier": rounded(attention.scale * attention.size**0.5) or 1.0,
        "mlp_multipliers": [ffn.gate_scale, ffn.out_scale],
        "ssm_in_multiplier": scales.input,
        "ssm_out_multiplier": mixer.ssm_out,
        "ssm_multipliers": [scales.z, scales.x, scales.b, scales.c, scales.dt],
    }
    check_same(OFFICIAL, _model, model, config)
    return config


def _read(model: LanguageModel, reader: Reader) -> Params:
    _, attention, ssm, ffn = _parts(model)
    return {
        "mixer": {
            "attention": read_attention(attention, model.width, reader),
            "ssm": read_ssm(ssm, "mamba", reader, model.width),
        },
        "ffn": read_units(reader, "feed_forward", model.width, ffn),
        **read_norms(reader, model.width, NORMS),
    }


def _write(model: LanguageModel, params: Params) -> dict[str, np.ndarray]:
    mixer = params["mixer"]
    return {
        **write_norms(params, NORMS),
        **write_attention(mixer["attention"], model.width),
        **write_ssm("mamba", mixer["ssm"]),
        **write_units(params["ffn"], "feed_forward"),
    }


FAMILIES = {
    OFFICIAL: Family(
        _model,
        _config,
        "model.embed_tokens.weight",
        "model.final_layernorm.weight",
        "model.layers.",
        _read,
        _write,
        kind="falcon_h1",
    )
}
"""Architecture of config.json -> how its folders are read and written."""
