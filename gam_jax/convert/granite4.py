"""Granite 4 as Hugging Face transformers writes it: Mamba-2, attention, shared and routed units."""

from __future__ import annotations

from typing import Any

import numpy as np

from gam_jax.convert import patterns
from gam_jax.convert.experts import check_experts
from gam_jax.convert.family import Config, check_plain, one, refuse
from gam_jax.convert.fields import LAYERS, Fields
from gam_jax.convert.folder import Reader
from gam_jax.convert.hybrids import (
    FULL,
    INSIDE,
    LINEAR,
    Spec,
    check_mixers,
    family,
    first_of,
    hidden_of,
    read_heads,
    read_kinds,
    written_heads,
)
from gam_jax.convert.multipliers import Multipliers, written_multipliers
from gam_jax.convert.parts import read_norms, write_norms
from gam_jax.convert.same import check_same
from gam_jax.convert.ssm import Names, read_mixer, write_mixer
from gam_jax.layers import MLP, Attention, Block, Mamba2, MoE, RMSNorm
from gam_jax.models.language import LanguageModel
from gam_jax.ops.routing import Router
from gam_jax.params import Params

OFFICIAL = "GraniteMoeHybridForCausalLM"
NAMES = Names()
SHARED, ROUTED = "shared_mlp", "block_sparse_moe"


def _model(values: Config) -> LanguageModel:
    config = Fields.of(values)
    refuse(config, hidden_act="silu", normalization_function="rmsnorm", mlp_bias=False)
    width, layers = config.size("hidden_size"), config.size("num_hidden_layers", most=LAYERS)
    norm = RMSNorm(eps=config.number("rms_norm_eps", 1e-6, least=0))
    times = Multipliers.of(config)
    attention = _attention(config, width, times.attention)
    kinds = read_kinds(config, "layer_types") or [LINEAR] * layers
    if len(kinds) != layers:
        raise config.refused("layer_types", f"is no list of num_hidden_layers={layers}")
    # A model of attention alone may leave the state space untold.
    told = LINEAR in kinds or config.get(NAMES.heads) is not None
    mixer = NAMES.read(config, width, eps=norm.eps) if told else attention
    ffn = _units(config)
    blocks = [
        Block(attention if kind == FULL else mixer, ffn, norm, residual_scale=times.residual)
        for kind in kinds
    ]
    return LanguageModel(
        **patterns.in_order(blocks),
        width=width,
        vocab=config.size("vocab_size"),
        norm=norm,
        tied=config.flag("tie_word_embeddings", False),
        embedding_scale=times.embedding,
        logit_scale=times.logits,
    )


def _attention(config: Fields, width: int, scale: float) -> Attention:
    kind = config.get("position_embedding_type")
    if kind not in (None, "nope", "rope"):
        raise config.refused("position_embedding_type", "is not known here, rope or nope alone")
    biased = config.flag("attention_bias", False)
    return read_heads(
        config,
        width,
        2048,
        turns=kind == "rope",
        kv_heads=0,
        bias=biased,
        out_bias=biased,
        scale=scale,
    )


def _units(config: Fields) -> MLP | MoE:
    """The shared units alone where there are no experts."""
    experts = config.size("num_local_experts", 8, least=0)
    shared = config.size("shared_intermediate_size", 1024)
    balance = config.number("router_aux_loss_coef", 0.001, least=0)
    if not experts:
        for name in ("intermediate_size", "num_experts_per_tok"):  # of experts
            config.size(name, 0, least=0)
        return MLP(activation="swiglu", hidden=shared, bias=False)
    return MoE(
        experts=experts,
        chosen=config.size("num_experts_per_tok", 2),
        ffn=MLP(activation="swiglu", hidden=config.size("intermediate_size", 11_008), bias=False),
        shared=1,
        shared_hidden=shared,
        router=Router(balance=balance, balance_over="layers", z=0.0),
    )


def _config(model: LanguageModel) -> dict[str, Any]:
    check_plain(model, OFFICIAL, scaled=True)
    blocks = [one(block, Block, OFFICIAL) for block in patterns.blocks_of(model)]
    mixers = [block.mixer for block in blocks]
    check_mixers(mixers, Mamba2, OFFICIAL)
    attention, mixer = first_of(mixers, Attention), first_of(mixers, Mamba2)
    config: dict[str, Any] = {
        "architectures": [OFFICIAL],
        "model_type": "granitemoehybrid",
        "hidden_size": model.width,
        "num_hidden_layers": len(blocks),
        "vocab_size": model.vocab,
        "rms_norm_eps": one(model.norm, RMSNorm, OFFICIAL).eps,
        "tie_word_embeddings": model.tied,
        "hidden_act": "silu",
        "layer_types": [FULL if isinstance(x, Attention) else LINEAR for x in mixers],
        "position_embedding_type": "rope" if attention and attention.rotary else None,
        "attention_bias": attention is not None and attention.bias,
        **written_heads(OFFICIAL, attention, model.width),
        **written_multipliers(model, attention, blocks[0].residual_scale),
        **_written_units(blocks[0].ffn, model.width),
    }
    if mixer is not None:
        config |= NAMES.written(mixer, model.width)
    check_same(OFFICIAL, _model, model, config)
    return config


def _written_units(ffn: Any, width: int) -> dict[str, Any]:
    if isinstance(ffn, MLP):
        return {"num_local_experts": 0, "shared_intermediate_size": hidden_of(ffn, width)}
    mixture = one(ffn, MoE, OFFICIAL)
    hidden = check_experts(mixture, OFFICIAL)
    return {
        "num_local_experts": mixture.experts,
        "num_experts_per_tok": mixture.chosen,
        "intermediate_size": hidden,
        "shared_intermediate_size": mixture.shared_hidden or mixture.shared * hidden or 1,
        "router_aux_loss_coef": mixture.router.balance,
    }


def _read(model: LanguageModel, reader: Reader) -> Params:
    block, width = one(patterns.blocks_of(model)[reader.index], Block, OFFICIAL), model.width
    ffn: Any = block.ffn
    if isinstance(ffn, MLP):
        units: Params = _read_shared(reader, width, ffn.hidden)
    else:
        experts, hidden = ffn.experts, ffn.ffn.hidden
        both = reader.take(f"{ROUTED}.input_linear.weight", experts, 2 * hidden, width)
        units = {
            "router": reader.take(f"{ROUTED}.router.layer.weight", experts, width).T,
            "shared": _read_shared(reader, width, ffn.shared_hidden),
            "experts": {
                "w_gate": np.stack([expert[:hidden].T for expert in both]),
                "w_in": np.stack([expert[hidden:].T for expert in both]),
                "w_out": reader.take(f"{ROUTED}.output_linear.weight", experts, width, hidden),
            },
        }
    mixer = read_mixer(block.mixer, reader, width, OFFICIAL, INSIDE)
    return {"mixer": mixer, "ffn": units, **read_norms(reader, width)}


def _read_shared(reader: Reader, width: int, hidden: int) -> dict[str, np.ndarray]:
    both = reader.take(f"{SHARED}.input_linear.weight", 2 * hidden, width)
    out = reader.take(f"{SHARED}.output_linear.weight", width, hidden)
    return {"w_gate": both[:hidden].T, "w_in": both[hidden:].T, "w_out": out}


def _write(model: LanguageModel, params: Params) -> dict[str, np.ndarray]:
    ffn = params["ffn"]
    shared = ffn.get("shared", ffn)
    tensors = {
        **write_norms(params),
        **write_mixer(params["mixer"], model.width, INSIDE),
        f"{SHARED}.input_linear.weight": _joined(shared["w_gate"].T, shared["w_in"].T),
        f"{SHARED}.output_linear.weight": shared["w_out"],
    }
    if "router" not in ffn:
        return tensors
    experts = ffn["experts"]
    pairs = zip(experts["w_gate"], experts["w_in"], strict=True)
    return tensors | {
        f"{ROUTED}.router.layer.weight": ffn["router"].T,
        f"{ROUTED}.input_linear.weight": np.stack([_joined(gate.T, x.T) for gate, x in pairs]),
        f"{ROUTED}.output_linear.weight": experts["w_out"],
    }


def _joined(*arrays: np.ndarray) -> np.ndarray:
    return np.concatenate(arrays)


FAMILIES = {OFFICIAL: family(Spec("granitemoehybrid", _model, _config), _read, _write)}
"""Architecture of config.json -> how its folders are read and written."""
