"""Llama and Qwen2 as Hugging Face transformers writes them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from gam_jax.convert.family import (
    Config,
    Family,
    check_full_attention,
    check_plain,
    one,
    refuse,
    rotary_base,
)
from gam_jax.convert.fields import Fields
from gam_jax.convert.folder import Reader
from gam_jax.layers import MLP, Attention, Block, Layer, RMSNorm
from gam_jax.models.language import LanguageModel
from gam_jax.params import Params
from sharding.errors import UserError

OFFICIAL = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}

# Ours, and the name of transformers: scales of norms, attention's projections, the feed-forward.
NORMS = {"mixer_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
HEADS = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
HEAD_NORMS = {"query_norm": "q_norm", "key_norm": "k_norm"}
UNITS = {"gate": "gate_proj", "in": "up_proj"}


def _model(kind: str, values: Config) -> LanguageModel:
    config = Fields.of(values)
    refuse(config, hidden_act="silu", use_sliding_window=False)
    check_full_attention(config)
    width, llama = config.size("hidden_size"), kind == "llama"
    heads = config.size("num_attention_heads")
    biased = config.flag("attention_bias", False) if llama else True
    attention = Attention(
        heads=heads,
        kv_heads=config.size("num_key_value_heads", heads),
        head_size=head_size(config, width, heads),
        rotary=rotary_base(config),
        context=config.size("max_position_embeddings", 2048),
        bias=biased,
        out_bias=biased and llama,
    )
    ffn = MLP(
        activation="swiglu",
        hidden=config.size("intermediate_size"),
        bias=config.flag("mlp_bias", False) if llama else False,
    )
    norm = RMSNorm(eps=config.number("rms_norm_eps", 1e-6, least=0))
    return LanguageModel(
        Block(attention, ffn, norm),
        width=width,
        depth=config.size("num_hidden_layers"),
        vocab=config.size("vocab_size"),
        norm=norm,
        tied=config.flag("tie_word_embeddings", False),
    )


def head_size(config: Fields, width: int, heads: int) -> int:
    """Channels of a head.

    Raises:
      UserError: head_dim is not given, and the width is not a multiple of the heads.
    """
    if config.get("head_dim") is None and width % heads:
        raise config.refused("hidden_size", f"is not a multiple of num_attention_heads={heads}")
    return config.size("head_dim", width // heads)


def sequential(layer: Layer, official: str) -> Block:
    """`layer`, or a UserError if it is no sequential block with norms before its layers."""
    block = one(layer, Block, official)
    if (block.form, block.norms) != ("sequential", "pre"):
        raise UserError(
            f"{official} of transformers has sequential blocks with norms before their layers: "
            f"this model cannot be written as that"
        )
    return block


def _parts(model: LanguageModel, official: str) -> tuple[Attention, MLP, RMSNorm]:
    block = sequential(model.block, official)
    return (
        one(block.mixer, Attention, official),
        one(block.ffn, MLP, official),
        one(block.norm, RMSNorm, official),
    )


def _config(kind: str, model: LanguageModel) -> dict[str, Any]:
    official = OFFICIAL[kind]
    check_plain(model, official)
    attention, ffn, norm = _parts(model, official)
    known = Attention(
        width=attention.width,
        heads=attention.heads,
        kv_heads=attention.kv_heads,
        head_size=attention.head_size,
        rotary=attention.rotary,
        context=attention.context,
        bias=attention.bias,
        out_bias=attention.bias and kind == "llama",
        dropout=attention.dropout,
    )
    gated = MLP(
        width=ffn.width,
        expansion=ffn.expansion,
        dropout=ffn.dropout,
        activation="swiglu",
        hidden=ffn.hidden,
        bias=ffn.bias and kind == "llama",
    )
    biased = attention.bias or kind == "llama"
    if attention != known or not attention.rotary or not biased or ffn != gated:
        biases = "biases on all of them or none" if kind == "llama" else "q, k and v biases alone"
        raise UserError(
            f"{official} of transformers has plain rotary attention and a SwiGLU, {biases}: this "
            f"model cannot be written as that"
        )
    config = {
        "architectures": [official],
        "model_type": kind,
        "hidden_size": model.width,
        "intermediate_size": ffn.hidden or ffn.expansion * model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.groups,
        "head_dim": attention.size,
        "vocab_size": model.vocab,
        "max_position_embeddings": attention.context,
        "rms_norm_eps": norm.eps,
        "rope_theta": attention.rotary,
        "rope_parameters": {"rope_type": "default", "rope_theta": attention.rotary},
        "tie_word_embeddings": model.tied,
        "hidden_act": "silu",
    }
    if kind == "llama":
        return config | {"attention_bias": attention.bias, "mlp_bias": ffn.bias}
    return config | {"use_sliding_window": False}


def _read(kind: str, model: LanguageModel, reader: Reader) -> Params:
    attention, ffn, _ = _parts(model, OFFICIAL[kind])
    width, hidden = model.width, ffn.hidden
    mixer = read_attention(attention, width, reader)
    units = read_units(reader, "mlp", width, hidden)
    if ffn.bias:
        sizes = {"gate_proj": hidden, "up_proj": hidden, "down_proj": width}
        for ours, name in (*UNITS.items(), ("out", "down_proj")):
            units[f"b_{ours}"] = reader.take(f"mlp.{name}.bias", sizes[name])
    return {"mixer": mixer, "ffn": units, **read_norms(reader, width)}


def read_norms(reader: Reader, width: int) -> dict[str, Params]:
    """The norms of a sequential block."""
    return {ours: {"scale": reader.take(f"{name}.weight", width)} for ours, name in NORMS.items()}


def read_units(reader: Reader, inside: str, width: int, hidden: int) -> dict[str, np.ndarray]:
    """A SwiGLU without biases whose arrays' names begin with `inside`."""
    units = {
        f"w_{ours}": reader.take(f"{inside}.{name}.weight", hidden, width).T
        for ours, name in UNITS.items()
    }
    return units | {"w_out": reader.take(f"{inside}.down_proj.weight", width, hidden)}


def read_attention(attention: Attention, width: int, reader: Reader) -> dict[str, np.ndarray]:
    """Attention's projections, biases and norms."""
    mixer: dict[str, np.ndarray] = {}
    size = attention.size
    counts = {"query": attention.heads, "key": attention.groups, "value": attention.groups}
    for ours, name in HEADS.items():
        heads = counts[ours]
        weight = reader.take(f"self_attn.{name}.weight", heads * size, width)
        mixer[ours] = weight.T.reshape(width, heads, size)
        if attention.bias:
            bias = reader.take(f"self_attn.{name}.bias", heads * size)
            mixer[f"{ours}_bias"] = bias.reshape(heads, size)
    out = reader.take("self_attn.o_proj.weight", width, attention.heads * size)
    mixer["out"] = out.T.reshape(attention.heads, size, width)
    if attention.out_bias:
        mixer["out_bias"] = reader.take("self_attn.o_proj.bias", width)
    if attention.qk_norm:
        for ours, name in HEAD_NORMS.items():
            mixer[ours] = reader.take(f"self_attn.{name}.weight", size)
    return mixer


def _write(kind: str, model: LanguageModel, params: Params) -> dict[str, np.ndarray]:
    tensors = {**write_norms(params), **write_attention(params["mixer"], model.width)}
    units = params["ffn"]
    tensors |= write_units(units, "mlp")
    for ours, name in (*UNITS.items(), ("out", "down_proj")):
        if f"b_{ours}" in units:
            tensors[f"mlp.{name}.bias"] = units[f"b_{ours}"]
    return tensors


def write_norms(params: Params) -> dict[str, np.ndarray]:
    """The inverse of `read_norms`."""
    return {f"{name}.weight": params[ours]["scale"] for ours, name in NORMS.items()}


def write_units(units: Params, inside: str) -> dict[str, np.ndarray]:
    """The inverse of `read_units`."""
    tensors = {f"{inside}.{name}.weight": units[f"w_{ours}"].T for ours, name in UNITS.items()}
    return tensors | {f"{inside}.down_proj.weight": units["w_out"]}


def write_attention(mixer: Params, width: int) -> dict[str, np.ndarray]:
    """The inverse of `read_attention`."""
    tensors: dict[str, np.ndarray] = {}
    for ours, name in HEADS.items():
        tensors[f"self_attn.{name}.weight"] = mixer[ours].reshape(width, -1).T
        if f"{ours}_bias" in mixer:
            tensors[f"self_attn.{name}.bias"] = mixer[f"{ours}_bias"].reshape(-1)
    tensors["self_attn.o_proj.weight"] = mixer["out"].reshape(-1, width).T
    if "out_bias" in mixer:
        tensors["self_attn.o_proj.bias"] = mixer["out_bias"]
    for ours, name in HEAD_NORMS.items():
        if ours in mixer:
            tensors[f"self_attn.{name}.weight"] = mixer[ours]
    return tensors


def _family(kind: str) -> Family:
    return Family(
        functools.partial(_model, kind),
        functools.partial(_config, kind),
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.",
        functools.partial(_read, kind),
        functools.partial(_write, kind),
        kind=kind,
    )


FAMILIES = {official: _family(kind) for kind, official in OFFICIAL.items()}
"""Architecture of config.json -> how its folders are read and written."""
