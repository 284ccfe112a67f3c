"""Dense transformers of Hugging Face: one table of classes, and their arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np

from gam_jax.convert import patterns
from gam_jax.convert.attentions import FULL, SLIDING
from gam_jax.convert.dense_config import PRE, Dense
from gam_jax.convert.family import Family, one
from gam_jax.convert.fields import Fields
from gam_jax.convert.folder import Reader
from gam_jax.convert.parts import read_attention, write_attention
from gam_jax.layers import MLP, Attention, Block
from gam_jax.models.language import LanguageModel
from gam_jax.params import Params

OUT = {"mixer_out_norm": "post_attention_layernorm", "ffn_out_norm": "post_feedforward_layernorm"}
SANDWICH = {"mixer_norm": "input_layernorm", "ffn_norm": "pre_feedforward_layernorm", **OUT}
GLM = {**PRE, "mixer_out_norm": "post_self_attn_layernorm", "ffn_out_norm": "post_mlp_layernorm"}
UNITS = {"gate": "gate_proj", "in": "up_proj"}


def _from_layer(config: Fields, layers: int) -> list[str]:
    """Qwen's: windows from layer max_window_layers on."""
    first = config.size("max_window_layers", 28, least=0)
    return [SLIDING if i >= first else FULL for i in range(layers)]


def _but_each(period: int) -> Callable[[Fields, int], list[str]]:
    """Windows, but for each layer of that number."""

    def kinds(config: Fields, layers: int) -> list[str]:
        every = config.size("sliding_window_pattern", period)
        return [SLIDING if (i + 1) % every else FULL for i in range(layers)]

    return kinds


QWEN = {"context": 32_768, "windows": "listed", "kinds": _from_layer, "switch": True}
OLMO = {"biases": "all", "norms": OUT, "form": "out", "qk_norm": "all", "eps": 1e-5}
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
        switch=True,
        skips=True,
    ),
    Dense(
        "Gemma3ForCausalLM",
        "gemma3_text",
        context=131_072,
        kv_heads=4,
        head_size=256,
        theta=1e6,
        local=1e4,
        tied=True,
        biases="all",
        norms=SANDWICH,
        form="sandwich",
        qk_norm="head",
        centred=True,
        act=("hidden_activation", "gelu_pytorch_tanh"),
        activation="geglu_tanh",
        windows="listed",
        window=4096,
        kinds=_but_each(6),
        scaled=True,
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
        norms=GLM,
        form="sandwich",
        partial=0.5,
        neighbours=True,
        fused=("gate_up_proj",),
    ),
)
"""The classes that are read and written; a further one is a further entry."""


def _parts(model: LanguageModel, index: int, official: str) -> tuple[Attention, MLP]:
    block = one(patterns.blocks_of(model)[index], Block, official)
    return one(block.mixer, Attention, official), one(block.ffn, MLP, official)


def _read(spec: Dense, model: LanguageModel, reader: Reader) -> Params:
    attention, ffn = _parts(model, reader.index, spec.official)
    norms = {
        ours: {"scale": reader.take(f"{name}.weight", model.width)}
        for ours, name in spec.norms.items()
    }
    mixer = read_attention(attention, model.width, reader, "qkv_proj" in spec.fused)
    units = _read_units(ffn, model.width, reader, "gate_up_proj" in spec.fused)
    return {"mixer": mixer, "ffn": units, **norms}


def _read_units(ffn: MLP, width: int, reader: Reader, fused: bool) -> dict[str, np.ndarray]:
    hidden = ffn.hidden
    if fused:
        both = reader.take("mlp.gate_up_proj.weight", 2 * hidden, width)
        units = {"w_gate": both[:hidden].T, "w_in": both[hidden:].T}
    else:
        units = {
            f"w_{ours}": reader.take(f"mlp.{name}.weight", hidden, width).T
            for ours, name in UNITS.items()
        }
    units["w_out"] = reader.take("mlp.down_proj.weight", width, hidden)
    if ffn.bias:
        sizes = {"gate": hidden, "in": hidden, "out": width}
        for ours, name in {**UNITS, "out": "down_proj"}.items():
            units[f"b_{ours}"] = reader.take(f"mlp.{name}.bias", sizes[ours])
    return units


def _write(spec: Dense, model: LanguageModel, params: Params) -> dict[str, np.ndarray]:
    tensors = {f"{name}.weight": params[ours]["scale"] for ours, name in spec.norms.items()}
    tensors |= write_attention(params["mixer"], model.width, "qkv_proj" in spec.fused)
    return tensors | _write_units(params["ffn"], "gate_up_proj" in spec.fused)


def _write_units(units: Params, fused: bool) -> dict[str, np.ndarray]:
    tensors = {"mlp.down_proj.weight": units["w_out"]}
    if fused:
        both = np.concatenate([units["w_gate"].T, units["w_in"].T])
        tensors["mlp.gate_up_proj.weight"] = both
    else:
        tensors |= {f"mlp.{name}.weight": units[f"w_{o}"].T for o, name in UNITS.items()}
    for ours, name in {**UNITS, "out": "down_proj"}.items():
        if f"b_{ours}" in units:
            tensors[f"mlp.{name}.bias"] = units[f"b_{ours}"]
    return tensors


def _family(spec: Dense) -> Family:
    return Family(
        spec.read,
        spec.write,
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.",
        functools.partial(_read, spec),
        functools.partial(_write, spec),
        join=patterns.join,
        split=patterns.split,
        layers=patterns.count,
        kind=spec.kind,
    )


FAMILIES: Mapping[str, Family] = {spec.official: _family(spec) for spec in TABLE}
"""Architecture of config.json -> how its folders are read and written."""
