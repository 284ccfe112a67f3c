"""Falcon-H1 as Hugging Face transformers writes it."""

from __future__ import annotations

from typing import Any

import numpy as np

from gam_jax.convert.family import (
    Config,
    Family,
    check_plain,
    one,
    refuse,
)
from gam_jax.convert.fields import Fields
from gam_jax.convert.folder import Reader
from gam_jax.convert.mamba import check_one_norm, read_ssm, step_limits, write_limits, write_ssm
from gam_jax.convert.parts import head_size
from gam_jax.convert.positions import Turned, read_positions, written_positions
from gam_jax.layers import MLP, Attention, Block, FalconH1, Mamba2, RMSNorm
from gam_jax.layers.mamba2 import Scales
from gam_jax.models.language import LanguageModel
from gam_jax.params import Params
from sharding.errors import UserError

OFFICIAL = "FalconH1ForCausalLM"
CONV_BIAS = "mamba_conv_bias"


def _model(values: Config) -> LanguageModel:
    config = Fields.of(values)
    biases = ("attention_bias", "mlp_bias", "projectors_bias", "mamba_proj_bias")
    refuse(config, hidden_act="silu", mamba_use_mlp=True, **dict.fromkeys(biases, False))
    width, heads = config.size("hidden_size"), config.size("num_attention_heads")
    size = head_size(config, width, heads)
    key = config.number("key_multiplier", 1.0)
    turned = read_positions(config, size, 8192)
    attention = Attention(
        heads=heads,
        kv_heads=config.size("num_key_value_heads", 0),
        head_size=size,
        rotary=turned.rotary,
        positions=turned.positions,
        context=turned.context,
        scale=0.0 if key == 1 else key * size**-0.5,
    )
    mixer = FalconH1(
        attention,
        _ssm(config),
        attention_in=config.number("attention_in_multiplier", 1.0),
        attention_out=config.number("attention_out_multiplier", 1.0),
        ssm_out=config.number("ssm_out_multiplier", 1.0),
    )
    gate, down = config.numbers("mlp_multipliers", 2)
    ffn = MLP(
        activation="swiglu",
        hidden=config.size("intermediate_size"),
        bias=False,
        gate_scale=gate,
        out_scale=down,
    )
    norm = RMSNorm(eps=config.number("rms_norm_eps", 1e-5, least=0))
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


def _ssm(config: Fields) -> Mamba2:
    expanded = config.number("mamba_expand", 2.0, above=0) * config["hidden_size"]
    heads, inner = config.size("mamba_n_heads"), config.size("mamba_d_ssm", expanded)
    if inner % heads:
        raise config.refused("mamba_n_heads", f"does not divide the inner width, {inner:g}")
    head = int(inner // heads)
    if config.get("mamba_d_head") != "auto":
        refuse(config, mamba_d_head=head)
    config.flag(CONV_BIAS, True)
    norm = "norm_first" if config.flag("mamba_norm_before_gate", True) else "gate_first"
    low, high = step_limits(config)
    return Mamba2(
        inner=heads * head,
        head=head,
        state=config.size("mamba_d_state"),
        groups=config.size("mamba_n_groups"),
        kernel=config.size("mamba_d_conv"),
        norm=norm if config.flag("mamba_rms_norm", False) else "none",
        eps=config.number("rms_norm_eps", 1e-5, least=0),
        dt_min=low,
        dt_max=high,
        scales=Scales(
            config.number("ssm_in_multiplier", 1.0), *config.numbers("ssm_multipliers", 5)
        ),
    )


def _parts(model: LanguageModel) -> tuple[FalconH1, Attention, Mamba2, MLP, RMSNorm]:
    block = one(model.block, Block, OFFICIAL)
    mixer = one(block.mixer, FalconH1, OFFICIAL)
    if (block.form, block.norms) != ("sequential", "pre"):
        raise UserError(
            f"{OFFICIAL} of transformers has sequential blocks with norms before their layers: "
            f"this model cannot be written as that"
        )
    return (
        mixer,
        one(mixer.attention, Attention, OFFICIAL),
        one(mixer.ssm, Mamba2, OFFICIAL),
        one(block.ffn, MLP, OFFICIAL),
        one(block.norm, RMSNorm, OFFICIAL),
    )


def _config(model: LanguageModel) -> dict[str, Any]:
    mixer, attention, ssm, ffn, norm = _parts(model)
    check_plain(model, OFFICIAL, scaled=True)
    check_one_norm(model, norm, OFFICIAL)
    known = Attention(
        width=attention.width,
        heads=attention.heads,
        kv_heads=attention.kv_heads,
        head_size=attention.head_size,
        rotary=attention.rotary,
        positions=attention.positions,
        context=attention.context,
        scale=attention.scale,
        dropout=attention.dropout,
    )
    if attention != known or not attention.rotary or ffn.activation != "swiglu" or ffn.bias:
        raise UserError(
            f"{OFFICIAL} of transformers has plain rotary attention and a SwiGLU without biases: "
            f"this model cannot be written as that"
        )
    if ssm.norm != "none" and ssm.eps != norm.eps:
        raise UserError(f"{OFFICIAL} of transformers has one epsilon for all norms")
    scales = ssm.scales
    turned = Turned(attention.rotary, attention.positions, attention.context)
    if attention.positions.neighbours:
        raise UserError(f"{OFFICIAL} of transformers turns halves of heads, not neighbours")
    return {
        "architectures": [OFFICIAL],
        "model_type": "falcon_h1",
        "hidden_size": model.width,
        "intermediate_size": ffn.hidden or ffn.expansion * model.width,
        "num_hidden_layers": model.depth,
        "vocab_size": model.vocab,
        "rms_norm_eps": norm.eps,
        "tie_word_embeddings": model.tied,
        "hidden_act": "silu",
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.groups,
        "head_dim": attention.size,
        **written_positions(OFFICIAL, turned, attention.size),
        "mamba_d_ssm": ssm.heads * ssm.head,
        "mamba_n_heads": ssm.heads,
        "mamba_d_head": ssm.head,
        "mamba_n_groups": ssm.groups,
        "mamba_d_state": ssm.state,
        "mamba_d_conv": ssm.kernel,
        "mamba_rms_norm": ssm.norm != "none",
        "mamba_norm_before_gate": ssm.norm != "gate_first",
        "time_step_limit": write_limits(ssm),
        "embedding_multiplier": model.embedding_scale,
        "lm_head_multiplier": model.logit_scale,
        "attention_in_multiplier": mixer.attention_in,
        "attention_out_multiplier": mixer.attention_out,
        "key_multiplier": _rounded(attention.scale * attention.size**0.5) or 1.0,
        "mlp_multipliers": [ffn.gate_scale, ffn.out_scale],
        "ssm_in_multiplier": scales.input,
        "ssm_out_multiplier": mixer.ssm_out,
        "ssm_multipliers": [scales.z, scales.x, scales.b, scales.c, scales.dt],
    }


def _rounded(x: float) -> float:
    """Without what multiplying by a square root and back leaves in the last digits."""
    return float(f"{x:.12g}")


def _read(model: LanguageModel, reader: Reader) -> Params:
    _, attention, ssm, ffn, _ = _parts(model)
    width, size, hidden = model.width, attention.size, ffn.hidden

    def heads(name: str, count: int) -> np.ndarray:
        weight = reader.take(f"self_attn.{name}_proj.weight", count * size, width)
        return weight.T.reshape(width, count, size)

    out = reader.take("self_attn.o_proj.weight", width, attention.heads * size)
    return {
        "mixer_norm": {"scale": reader.take("input_layernorm.weight", width)},
        "mixer": {
            "attention": {
                "query": heads("q", attention.heads),
                "key": heads("k", attention.groups),
                "value": heads("v", attention.groups),
                "out": out.T.reshape(attention.heads, size, width),
            },
            "ssm": read_ssm(ssm, "mamba", reader, width, CONV_BIAS),
        },
        "ffn_norm": {"scale": reader.take("pre_ff_layernorm.weight", width)},
        "ffn": {
            "w_gate": reader.take("feed_forward.gate_proj.weight", hidden, width).T,
            "w_in": reader.take("feed_forward.up_proj.weight", hidden, width).T,
            "w_out": reader.take("feed_forward.down_proj.weight", width, hidden),
        },
    }


def _write(model: LanguageModel, params: Params) -> dict[str, np.ndarray]:
    attention, ffn, width = params["mixer"]["attention"], params["ffn"], model.width
    return {
        "input_layernorm.weight": params["mixer_norm"]["scale"],
        "pre_ff_layernorm.weight": params["ffn_norm"]["scale"],
        "self_attn.q_proj.weight": attention["query"].reshape(width, -1).T,
        "self_attn.k_proj.weight": attention["key"].reshape(width, -1).T,
        "self_attn.v_proj.weight": attention["value"].reshape(width, -1).T,
        "self_attn.o_proj.weight": attention["out"].reshape(-1, width).T,
        **write_ssm("mamba", params["mixer"]["ssm"]),
        "feed_forward.gate_proj.weight": ffn["w_gate"].T,
        "feed_forward.up_proj.weight": ffn["w_in"].T,
        "feed_forward.down_proj.weight": ffn["w_out"],
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
