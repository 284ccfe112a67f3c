"""Mixtral and Qwen3-MoE as Hugging Face transformers writes them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
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
from gam_jax.convert.llama import (
    head_size,
    read_attention,
    read_norms,
    sequential,
    write_attention,
    write_norms,
)
from gam_jax.layers import MLP, Attention, Block, MoE, RMSNorm
from gam_jax.layers.attention import QK_NORM_EPS
from gam_jax.models.language import LanguageModel
from gam_jax.ops.routing import Router
from gam_jax.params import Params
from sharding.errors import UserError

OFFICIAL = {"mixtral": "MixtralForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}

# Where the experts are in a block, and their arrays: ours, and the name of transformers.
PLACE = {"mixtral": "block_sparse_moe", "qwen3_moe": "mlp"}
UNITS = {
    "mixtral": {"gate": "w1", "in": "w3", "out": "w2"},
    "qwen3_moe": {"gate": "gate_proj", "in": "up_proj", "out": "down_proj"},
}


def _model(kind: str, values: Config) -> LanguageModel:
    config, qwen = Fields.of(values), kind == "qwen3_moe"
    refuse(config, hidden_act="silu", use_sliding_window=False)
    check_full_attention(config)
    if qwen:
        refuse(config, decoder_sparse_step=1, rms_norm_eps=QK_NORM_EPS, mlp_only_layers=[])
    else:
        refuse(config, attention_bias=False)
    width, heads = config.size("hidden_size"), config.size("num_attention_heads")
    biased = config.flag("attention_bias", False) if qwen else False
    attention = Attention(
        heads=heads,
        kv_heads=config.size("num_key_value_heads", heads),
        head_size=head_size(config, width, heads),
        rotary=rotary_base(config),
        context=config.size("max_position_embeddings", 2048),
        bias=biased,
        out_bias=biased,
        qk_norm=qwen,
    )
    ffn = MoE(
        experts=count_experts(config, "num_local_experts", "num_experts"),
        chosen=config.size("num_experts_per_tok", 8 if qwen else 2),
        ffn=MLP(
            activation="swiglu",
            hidden=config.size("moe_intermediate_size" if qwen else "intermediate_size"),
            bias=False,
        ),
        router=Router(
            renormalise=config.flag("norm_topk_prob", False) if qwen else True,
            jitter=config.number("router_jitter_noise", 0.0, least=0),
            balance=config.number("router_aux_loss_coef", 0.001, least=0),
            balance_over="layers",
            z=0.0,
        ),
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


def count_experts(config: Fields, *names: str) -> int:
    """How many experts there are, by the first of some names that is given.

    Raises:
      UserError: none is given, or two that differ.
    """
    given = [name for name in names if config.get(name) is not None] or list(names[-1:])
    counts = [config.size(name) for name in given]
    if len(set(counts)) > 1:
        raise config.refused(given[1], f"is not the same as {given[0]}={counts[0]}")
    return counts[0]


def _config(kind: str, model: LanguageModel) -> dict[str, Any]:
    official, qwen = OFFICIAL[kind], kind == "qwen3_moe"
    check_plain(model, official)
    block = sequential(model.block, official)
    attention, ffn = one(block.mixer, Attention, official), one(block.ffn, MoE, official)
    norm = one(block.norm, RMSNorm, official)
    known = Attention(
        width=attention.width,
        heads=attention.heads,
        kv_heads=attention.kv_heads,
        head_size=attention.head_size,
        rotary=attention.rotary,
        context=attention.context,
        bias=attention.bias and qwen,
        out_bias=attention.bias and qwen,
        qk_norm=qwen,
        dropout=attention.dropout,
    )
    if attention != known or not attention.rotary:
        raise UserError(
            f"{official} of transformers has plain rotary attention "
            f"{'with' if qwen else 'without'} norms of queries and keys: this model cannot be "
            f"written as that"
        )
    hidden = check_experts(ffn, official)
    router = ffn.router
    plain = Router(
        renormalise=router.renormalise if qwen else True,
        jitter=0.0 if qwen else router.jitter,
        balance=router.balance,
        balance_over="layers",
        z=0.0,
    )
    if router != plain or ffn.shared:
        raise UserError(
            f"{official} of transformers has a plain softmax router with a balance loss over "
            f"layers, and no shared expert: this model cannot be written as that"
        )
    config = {
        "architectures": [official],
        "model_type": kind,
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.groups,
        "head_dim": attention.size,
        "num_local_experts": ffn.experts,
        "num_experts_per_tok": ffn.chosen,
        "vocab_size": model.vocab,
        "max_position_embeddings": attention.context,
        "rms_norm_eps": norm.eps,
        "rope_theta": attention.rotary,
        "rope_parameters": {"rope_type": "default", "rope_theta": attention.rotary},
        "router_aux_loss_coef": router.balance,
        "tie_word_embeddings": model.tied,
        "hidden_act": "silu",
        "sliding_window": None,
    }
    if not qwen:
        return config | {"intermediate_size": hidden, "router_jitter_noise": router.jitter}
    return config | {
        "moe_intermediate_size": hidden,
        "num_experts": ffn.experts,
        "norm_topk_prob": router.renormalise,
        "attention_bias": attention.bias,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": False,
    }


def check_experts(ffn: MoE, official: str) -> int:
    """The experts' hidden units; a UserError if they are no SwiGLUs, or have a capacity."""
    hidden = ffn.ffn.hidden or ffn.ffn.expansion * (ffn.ffn.width or 0)
    gated = MLP(
        width=ffn.ffn.width,
        expansion=ffn.ffn.expansion,
        dropout=ffn.ffn.dropout,
        activation="swiglu",
        hidden=ffn.ffn.hidden,
        bias=False,
    )
    if ffn.ffn != gated or ffn.capacity.factor:
        raise UserError(
            f"{official} of transformers has SwiGLU experts without biases or a capacity: this "
            f"model cannot be written as that"
        )
    return hidden


def read_experts(
    ffn: MoE, reader: Reader, place: str, names: Mapping[str, str], width: int
) -> dict[str, np.ndarray]:
    """All experts' arrays, stacked; `names` are those of gate, in and out."""
    found, hidden = {}, ffn.ffn.hidden
    for ours, name in names.items():
        shape = (width, hidden) if ours == "out" else (hidden, width)
        own = [
            reader.take(f"{place}.experts.{e}.{name}.weight", *shape) for e in range(ffn.experts)
        ]
        found[f"w_{ours}"] = np.stack([x if ours == "out" else x.T for x in own])
    return found


def write_experts(params: Params, place: str, names: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The inverse of `read_experts`."""
    return {
        f"{place}.experts.{e}.{name}.weight": x if ours == "out" else x.T
        for ours, name in names.items()
        for e, x in enumerate(params[f"w_{ours}"])
    }


def _read(kind: str, model: LanguageModel, reader: Reader) -> Params:
    block, width = one(model.block, Block, OFFICIAL[kind]), model.width
    attention = one(block.mixer, Attention, OFFICIAL[kind])
    ffn, place = one(block.ffn, MoE, OFFICIAL[kind]), PLACE[kind]
    mixture = {
        "router": reader.take(f"{place}.gate.weight", ffn.experts, width).T,
        "experts": read_experts(ffn, reader, place, UNITS[kind], width),
    }
    mixer = read_attention(attention, width, reader)
    return {"mixer": mixer, "ffn": mixture, **read_norms(reader, width)}


def _write(kind: str, model: LanguageModel, params: Params) -> dict[str, np.ndarray]:
    place, ffn = PLACE[kind], params["ffn"]
    return {
        **write_norms(params),
        **write_attention(params["mixer"], model.width),
        f"{place}.gate.weight": ffn["router"].T,
        **write_experts(ffn["experts"], place, UNITS[kind]),
    }


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
