"""Dense transformers of Hugging Face: one table of classes, and their arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from gam_jax.convert import patterns
from gam_jax.convert.attentions import CAPS, FULL, SLIDING, turning
from gam_jax.convert.dense_config import Dense
from gam_jax.convert.family import Family, one
from gam_jax.convert.fields import Fields
from gam_jax.convert.folder import Reader
from gam_jax.convert.parts import (
    NORMS,
    read_attention,
    read_norms,
    read_units,
    write_attention,
    write_norms,
    write_units,
)
from gam_jax.layers import MLP, Attention, Block
from gam_jax.models.language import LanguageModel
from gam_jax.params import Params

OUT = {"mixer_out_norm": "post_attention_layernorm", "ffn_out_norm": "post_feedforward_layernorm"}
SANDWICH = {"mixer_norm": "input_layernorm", "ffn_norm": "pre_feedforward_layernorm", **OUT}
GLM = {**NORMS, "mixer_out_norm": "post_self_attn_layernorm", "ffn_out_norm": "post_mlp_layernorm"}


def _from_layer(config: Fields, layers: int) -> list[str]:
    """Qwen's: windows from layer max_window_layers on."""
    first = config.size("max_window_layers", 28, least=0)
    return [SLIDING if i >= first else FULL for i in range(layers)]


def _but_each(period: int, field: str = "") -> Callable[[Fields, int], list[str]]:
    """Windows, but for each layer of that number, which a field may tell."""

    def kinds(config: Fields, layers: int) -> list[str]:
        every = config.size(field, period) if field else period
        return [SLIDING if (i + 1) % every else FULL for i in range(layers)]

    return kinds


def _where_not_turned(config: Fields, layers: int) -> list[str]:
    """SmolLM3's: layers without positions have windows."""
    return [FULL if turns else SLIDING for turns in turning(config, layers)]


QWEN = {"context": 32_768, "windows": "listed", "kinds": _from_layer, "switch": True}
OLMO = {"biases": "all", "norms": OUT, "form": "out", "qk_norm": "all", "eps": 1e-5}
GEMMA = {
    "head_size": 256,
    "tied": True,
    "biases": "all",
    "centred": True,
    "activation": "geglu_tanh",
    "rooted": True,
}
TABLE = (
    Dense("LlamaForCausalLM", "llama", biases="all", mlp_bias=True),
    Dense("MistralForCausalLM", "mistral", context=131_072, kv_heads=8, windows="all", window=4096),
    Dense("Qwen2ForCausalLM", "qwen2", biases="always", window=4096, **QWEN),
    Dense(
        "Qwen3ForCausalLM",
        "qwen3",
        kv_heads=32,
        head_size=128,
        biases="all",
        qk_norm="head",
        window=4096,
        **QWEN,
    ),
    Dense(
        "SmolLM3ForCausalLM",
        "smollm3",
        context=32_768,
        kv_heads=4,
        theta=2e6,
        tied=True,
        biases="all",
        mlp_bias=True,
        windows="listed",
        kinds=_where_not_turned,
        switch=True,
        skips=True,
    ),
    Dense(
        "GemmaForCausalLM",
        "gemma",
        context=8192,
        kv_heads=16,
        act=("hidden_act", "gelu_pytorch_tanh", "gelu"),  # both mean the one by tanh
        **GEMMA,
    ),
    Dense(
        "Gemma2ForCausalLM",
        "gemma2",
        context=8192,
        kv_heads=4,
        norms=SANDWICH,
        form="sandwich",
        act=("hidden_activation", "gelu_pytorch_tanh"),
        windows="listed",
        window=4096,
        kinds=_but_each(2),
        scaled=True,
        caps=dict(zip(CAPS, (50.0, 30.0), strict=True)),
        **GEMMA,
    ),
    Dense(
        "Gemma3ForCausalLM",
        "gemma3_text",
        context=131_072,
        kv_heads=4,
        theta=1e6,
        local=1e4,
        norms=SANDWICH,
        form="sandwich",
        qk_norm="head",
        act=("hidden_activation", "gelu_pytorch_tanh"),
        windows="listed",
        window=4096,
        kinds=_but_each(6, "sliding_window_pattern"),
        scaled=True,
        caps={CAPS[1]: 0.0},  # transformers passes over the other
        **GEMMA,
    ),
    Dense("Olmo2ForCausalLM", "olmo2", **OLMO),
    Dense(
        "Olmo3ForCausalLM",
        "olmo3",
        theta=5e5,
        local=5e5,
        windows="listed",
        window=4096,
        kinds=_but_each(4),
        **OLMO,
    ),
    Dense(
        "Phi3ForCausalLM",
        "phi3",
        context=4096,
        eps=1e-5,
        windows="all",
        partial=1.0,
        fused=("qkv_proj", "gate_up_proj"),
    ),
    Dense(
        "Glm4ForCausalLM",
        "glm4",
        context=131_072,
        kv_heads=2,
        head_size=128,
        eps=1.5625e-7,
        biases="inputs",
        biased=True,
        norms=GLM,
        form="sandwich",
        partial=0.5,
        neighbours=True,
        fused=("gate_up_proj",),
    ),
    Dense("GraniteForCausalLM", "granite", biases="all", mlp_bias=True, multiplied=True),
)
"""The classes that are read and written; a further one is a further entry."""


def _read(spec: Dense, model: LanguageModel, reader: Reader) -> Params:
    block = one(patterns.blocks_of(model)[reader.index], Block, spec.official)
    attention, ffn = one(block.mixer, Attention, spec.official), one(block.ffn, MLP, spec.official)
    return {
        "mixer": read_attention(attention, model.width, reader, "qkv_proj" in spec.fused),
        "ffn": read_units(reader, "mlp", model.width, ffn, "gate_up_proj" in spec.fused),
        **read_norms(reader, model.width, spec.norms),
    }


def _write(spec: Dense, model: LanguageModel, params: Params) -> dict[str, np.ndarray]:
    return {
        **write_norms(params, spec.norms),
        **write_attention(params["mixer"], model.width, "qkv_proj" in spec.fused),
        **write_units(params["ffn"], "mlp", "gate_up_proj" in spec.fused),
    }


FAMILIES: Mapping[str, Family] = {
    spec.official: patterns.family(spec, _read, _write) for spec in TABLE
}
"""Architecture of config.json -> how its folders are read and written."""
