"""Nemotron-H as Hugging Face transformers writes it: blocks of one residual step each."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from gam_jax.convert import patterns
from gam_jax.convert.deepseek import BALANCE_BIAS, TRAINED
from gam_jax.convert.experts import read_experts, write_experts
from gam_jax.convert.family import Config, check_plain, one, refuse
from gam_jax.convert.fields import Fields
from gam_jax.convert.folder import Reader
from gam_jax.convert.hybrids import (
    FULL,
    LINEAR,
    Spec,
    family,
    first_of,
    hidden_of,
    no_ssm,
    read_heads,
    read_kinds,
    written_heads,
)
from gam_jax.convert.same import check_same
from gam_jax.convert.ssm import Names, read_mixer, write_mixer
from gam_jax.layers import MLP, Attention, Layer, Mamba2, MoE, Residual, RMSNorm
from gam_jax.models.language import LanguageModel
from gam_jax.ops.routing import Router
from gam_jax.params import Params

OFFICIAL = "NemotronHForCausalLM"
UNITS, ROUTED = "mlp", "moe"
LETTERS = {"M": LINEAR, "*": FULL, "-": UNITS, "E": ROUTED}
"""What hybrid_override_pattern calls the blocks."""
ACTIVATIONS = {"relu2": "relu2", "relu": "relu", "silu": "silu", "gelu": "gelu"}
"""mlp_hidden_act -> that of `MLP`."""
INSIDE = {Attention: "mixer", Mamba2: "mixer"}
EXPERT = {"in": "up_proj", "out": "down_proj"}
NAMES = Names(
    heads="mamba_num_heads",
    head="mamba_head_dim",
    state="ssm_state_size",
    groups="n_groups",
    kernel="conv_kernel",
    conv_bias="use_conv_bias",
    in_bias="use_bias",
    out_bias="use_bias",
    expand="",
    limits=False,
)


def _model(values: Config) -> LanguageModel:
    config = Fields.of(values)
    refuse(config, mamba_hidden_act="silu", attention_bias=False, tie_word_embeddings=False)
    width = config.size("hidden_size")
    norm = RMSNorm(eps=config.number("layer_norm_epsilon", 1e-5, least=0))
    kinds = _kinds(config)
    attention = read_heads(config, width, 4096, turns=False, head=128)
    refuse(config, attention_head_dim=attention.size, rms_norm_eps=norm.eps)  # older names
    layers = {
        LINEAR: NAMES.read(
            config,
            width,
            eps=norm.eps,
            dt_min=config.number("time_step_min", 0.001, least=0),
        ),
        FULL: attention,
        UNITS: _units(config, "intermediate_size", 21_504, config.flag("mlp_bias", False)),
        ROUTED: _experts(config),
    }
    if ROUTED in kinds:
        config.only("mlp_bias", False)
        if config.get("moe_latent_size") is not None:
            raise config.refused("moe_latent_size", "is not known here: experts of the width alone")
    return LanguageModel(
        **patterns.in_order([Residual(layers[kind], norm) for kind in kinds]),
        width=width,
        vocab=config.size("vocab_size"),
        norm=norm,
        tied=False,
    )


def _kinds(config: Fields) -> list[str]:
    """What each block is; all fields that tell it must agree."""
    known, name = tuple(LETTERS.values()), "hybrid_override_pattern"
    letters, layers = config.get(name), config.size("num_hidden_layers", None)
    told = [read_kinds(config, field, known) for field in ("layers_block_type", "layer_types")]
    if letters is not None or not any(told):
        if not isinstance(letters, str) or not letters or set(letters) - set(LETTERS):
            raise config.refused(name, f"is no word of {', '.join(LETTERS)}, one for each block")
        told.append([LETTERS[letter] for letter in letters])
    kinds, *others = filter(None, told)
    if any(other != kinds for other in others):
        raise config.refused(name, "is not what another field tells of the blocks")
    if layers is not None and layers != len(kinds):
        raise config.refused("num_hidden_layers", f"is not that of its pattern, {len(kinds)}")
    return kinds


def _units(config: Fields, hidden: str, default: int, bias: bool = False) -> MLP:
    act = config.get("mlp_hidden_act")
    if act not in (None, *ACTIVATIONS):
        raise config.refused("mlp_hidden_act", f"is not known here, {', '.join(ACTIVATIONS)} alone")
    return MLP(
        activation=ACTIVATIONS[act or "relu2"], hidden=config.size(hidden, default), bias=bias
    )


def _experts(config: Fields) -> MoE:
    config.size("moe_latent_size", 0)
    return MoE(
        experts=config.size("n_routed_experts", 8),
        chosen=config.size("num_experts_per_tok", 2),
        ffn=_units(config, "moe_intermediate_size", 7688),
        shared=1,
        shared_hidden=config.size("moe_shared_expert_intermediate_size", 7688),
        router=Router(
            score="sigmoid",
            renormalise=config.flag("norm_topk_prob", True),
            scale=config.number("routed_scaling_factor", 1.0, above=0),
            groups=config.size("n_group", 1),
            chosen_groups=config.size("topk_group", 1),
            **TRAINED,
        ),
    )


def _config(model: LanguageModel) -> dict[str, Any]:
    check_plain(model, OFFICIAL)
    blocks = [one(block, Residual, OFFICIAL) for block in patterns.blocks_of(model)]
    layers = [block.inner for block in blocks]
    attention, mixer = first_of(layers, Attention), first_of(layers, Mamba2) or no_ssm(model.width)
    units, sparse = first_of(layers, MLP), first_of(layers, MoE)
    config: dict[str, Any] = {
        "architectures": [OFFICIAL],
        "model_type": "nemotron_h",
        "hidden_size": model.width,
        "layers_block_type": [_kind(layer) for layer in layers],
        "vocab_size": model.vocab,
        "layer_norm_epsilon": one(model.norm, RMSNorm, OFFICIAL).eps,
        "tie_word_embeddings": model.tied,
        "mamba_hidden_act": "silu",
        "time_step_min": mixer.dt_min,
        "mlp_bias": units is not None and units.bias,
        **written_heads(OFFICIAL, attention, model.width),
        **NAMES.written(mixer, model.width),
    }
    if attention is not None:  # which is not taken to be D / heads
        config["head_dim"] = attention.size
    if units or sparse:
        act = (units or sparse.ffn).activation
        config["mlp_hidden_act"] = next((k for k, x in ACTIVATIONS.items() if x == act), act)
    if units is not None:
        config["intermediate_size"] = hidden_of(units, model.width)
    if sparse is not None:
        config |= _written_experts(sparse, model.width)
    check_same(OFFICIAL, _model, model, config)
    return config


def _kind(layer: Layer) -> str:
    kinds = {Mamba2: LINEAR, Attention: FULL, MLP: UNITS, MoE: ROUTED}
    if type(layer) not in kinds:
        one(layer, Mamba2, OFFICIAL)
    return kinds[type(layer)]  # type: ignore[index]


def _written_experts(sparse: MoE, width: int) -> dict[str, Any]:
    hidden, router = hidden_of(sparse.ffn, width), sparse.router
    return {
        "n_routed_experts": sparse.experts,
        "num_experts_per_tok": sparse.chosen,
        "moe_intermediate_size": hidden,
        "moe_shared_expert_intermediate_size": sparse.shared_hidden or sparse.shared * hidden or 1,
        "norm_topk_prob": router.renormalise,
        "routed_scaling_factor": router.scale,
        "n_group": router.groups,
        "topk_group": router.chosen_groups or router.groups,
    }


def _read(model: LanguageModel, reader: Reader) -> Params:
    block, width = one(patterns.blocks_of(model)[reader.index], Residual, OFFICIAL), model.width
    layer: Any = block.inner
    if isinstance(layer, MLP):
        inner: Params = _read_units(reader, "mixer", width, layer)
    elif isinstance(layer, MoE):
        shared = dataclasses.replace(layer.ffn, hidden=layer.shared_hidden)
        inner = {
            "router": reader.take("mixer.gate.weight", layer.experts, width).T,
            "balance_bias": reader.take(f"mixer.{BALANCE_BIAS}", layer.experts),
            "experts": read_experts(layer, reader, "mixer", EXPERT, width),
            "shared": _read_units(reader, "mixer.shared_experts", width, shared),
        }
    else:
        inner = read_mixer(layer, reader, width, OFFICIAL, INSIDE)
    return {"norm": {"scale": reader.take("norm.weight", width)}, "inner": inner}


def _read_units(reader: Reader, inside: str, width: int, ffn: MLP) -> dict[str, np.ndarray]:
    found = {
        "w_in": reader.take(f"{inside}.up_proj.weight", ffn.hidden, width).T,
        "w_out": reader.take(f"{inside}.down_proj.weight", width, ffn.hidden),
    }
    if ffn.bias:
        found["b_in"] = reader.take(f"{inside}.up_proj.bias", ffn.hidden)
        found["b_out"] = reader.take(f"{inside}.down_proj.bias", width)
    return found


def _write(model: LanguageModel, params: Params) -> dict[str, np.ndarray]:
    inner, tensors = params["inner"], {"norm.weight": params["norm"]["scale"]}
    if "w_in" in inner:
        return tensors | _write_units(inner, "mixer")
    if "router" not in inner:
        return tensors | write_mixer(inner, model.width, INSIDE)
    return {
        **tensors,
        "mixer.gate.weight": inner["router"].T,
        f"mixer.{BALANCE_BIAS}": inner["balance_bias"],
        **write_experts(inner["experts"], "mixer", EXPERT),
        **_write_units(inner["shared"], "mixer.shared_experts"),
    }


def _write_units(units: Params, inside: str) -> dict[str, np.ndarray]:
    tensors = {
        f"{inside}.up_proj.weight": units["w_in"].T,
        f"{inside}.down_proj.weight": units["w_out"],
    }
    for ours, theirs in EXPERT.items():
        if f"b_{ours}" in units:
            tensors[f"{inside}.{theirs}.bias"] = units[f"b_{ours}"]
    return tensors


def _spare(reader: Reader) -> list[str]:
    """Arrays of the blocks that predict several tokens ahead, which transformers ignores too."""
    return [name for name in reader.names() if name.startswith("mtp.")]


FAMILIES = {
    OFFICIAL: family(
        Spec("nemotron_h", _model, _config),
        _read,
        _write,
        embedding="backbone.embeddings.weight",
        norm="backbone.norm_f.weight",
        blocks="backbone.layers.",
    )._replace(spare=_spare)
}
"""Architecture of config.json -> how its folders are read and written."""
