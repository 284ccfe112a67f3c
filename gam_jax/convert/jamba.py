"""Jamba as Hugging Face transformers writes it: Mamba, attention, and experts in some blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gam_jax.convert import patterns
from gam_jax.convert.experts import check_experts, count_experts, read_experts, write_experts
from gam_jax.convert.family import Config, check_plain, one, refuse
from gam_jax.convert.fields import LAYERS, Fields
from gam_jax.convert.folder import Reader
from gam_jax.convert.hybrids import (
    INSIDE,
    NORMS,
    Spec,
    check_mixers,
    family,
    first_of,
    hidden_of,
    read_heads,
    written_heads,
)
from gam_jax.convert.parts import EXPERT, read_norms, read_units, write_norms, write_units
from gam_jax.convert.same import check_same
from gam_jax.convert.ssm import read_mixer, write_mixer
from gam_jax.layers import MLP, Attention, Block, Mamba, MoE, RMSNorm
from gam_jax.models.language import LanguageModel
from gam_jax.ops.routing import Router
from gam_jax.params import Params
from sharding.errors import UserError

OFFICIAL = "JambaForCausalLM"
PLACE = "feed_forward"


def _model(values: Config) -> LanguageModel:
    config = Fields.of(values)
    refuse(config, hidden_act="silu", mamba_inner_layernorms=True)
    width, layers = config.size("hidden_size"), config.size("num_hidden_layers", most=LAYERS)
    norm = RMSNorm(eps=config.number("rms_norm_eps", 1e-6, least=0))
    mixers = (_mamba(config, norm.eps), read_heads(config, width, 262_144, turns=False))
    dense, sparse = _units(config)
    full, routed = _each(config, "attn_layer", 8, 4), _each(config, "expert_layer", 2, 1)
    blocks = []
    for i in range(layers):
        ffn = sparse if _hit(i, *routed) else dense
        blocks.append(Block(mixers[_hit(i, *full)], ffn, norm))
    return LanguageModel(
        **patterns.in_order(blocks),
        width=width,
        vocab=config.size("vocab_size"),
        norm=norm,
        tied=config.flag("tie_word_embeddings", False),
    )


def _units(config: Fields) -> tuple[MLP, MLP | MoE]:
    """Those of most blocks, and of blocks with experts, which one expert does not make."""
    dense = MLP(activation="swiglu", hidden=config.size("intermediate_size"), bias=False)
    experts = count_experts(config, "num_local_experts", "num_experts")
    chosen = config.size("num_experts_per_tok", 2)
    router = Router(
        renormalise=False,
        balance=config.number("router_aux_loss_coef", 0.001, least=0),
        balance_over="layers",
        z=0.0,
    )
    if experts == 1:
        return dense, dense
    return dense, MoE(experts=experts, chosen=chosen, ffn=dense, router=router)


def _mamba(config: Fields, eps: float) -> Mamba:
    rank, biased = config.get("mamba_dt_rank"), config.flag("mamba_proj_bias", False)
    return Mamba(
        expansion=config.size("mamba_expand", 2),
        state=config.size("mamba_d_state", 16),
        kernel=config.size("mamba_d_conv", 4),
        rank=0 if rank in (None, "auto") else config.size("mamba_dt_rank"),
        conv_bias=config.flag("mamba_conv_bias", True),
        in_bias=biased,
        out_bias=biased,
        normed=True,
        eps=eps,
    )


def _each(config: Fields, name: str, period: int, offset: int) -> tuple[int, int]:
    """Which blocks have something: one in each period, at an offset."""
    period = config.size(f"{name}_period", period)
    offset = config.size(f"{name}_offset", offset, least=0)
    if offset >= period:
        raise config.refused(f"{name}_offset", f"is not below {name}_period={period}")
    return period, offset


def _hit(i: int, period: int, offset: int) -> bool:
    return i % period == offset


def _written_each(name: str, there: Sequence[bool]) -> dict[str, int]:
    """The inverse of `_each`: the shortest period; a UserError if there is none."""
    layers = len(there)
    first = there.index(True) if True in there else layers
    for period in range(first + 1, layers + 2):
        if [_hit(i, period, first) for i in range(layers)] == list(there):
            return {f"{name}_period": period, f"{name}_offset": first}
    raise UserError(
        f"{OFFICIAL} of transformers has attention and experts in blocks at equal distances: this "
        f"model cannot be written as that"
    )


def _config(model: LanguageModel) -> dict[str, Any]:
    check_plain(model, OFFICIAL)
    blocks = [one(block, Block, OFFICIAL) for block in patterns.blocks_of(model)]
    mixers, units = [block.mixer for block in blocks], [block.ffn for block in blocks]
    check_mixers(mixers, Mamba, OFFICIAL)
    attention, mixer = first_of(mixers, Attention), first_of(mixers, Mamba) or Mamba(model.width)
    sparse: Any = first_of(units, MoE)
    if sparse is None:
        hidden = hidden_of(one(units[0], MLP, OFFICIAL), model.width)
        experts: dict[str, Any] = {"num_experts": 1}
    else:
        hidden = check_experts(sparse, OFFICIAL)
        experts = {
            "num_experts": sparse.experts,
            "num_experts_per_tok": sparse.chosen,
            "router_aux_loss_coef": sparse.router.balance,
        }
    config = {
        "architectures": [OFFICIAL],
        "model_type": "jamba",
        "hidden_size": model.width,
        "intermediate_size": hidden,
        "num_hidden_layers": len(blocks),
        "vocab_size": model.vocab,
        "rms_norm_eps": one(model.norm, RMSNorm, OFFICIAL).eps,
        "tie_word_embeddings": model.tied,
        "hidden_act": "silu",
        **written_heads(OFFICIAL, attention, model.width),
        **experts,
        **_written_each("attn_layer", [isinstance(x, Attention) for x in mixers]),
        **_written_each("expert_layer", [isinstance(x, MoE) for x in units]),
        "mamba_d_state": mixer.state,
        "mamba_d_conv": mixer.kernel,
        "mamba_expand": mixer.expansion,
        "mamba_dt_rank": mixer.steps,
        "mamba_conv_bias": mixer.conv_bias,
        "mamba_proj_bias": mixer.in_bias,
    }
    check_same(OFFICIAL, _model, model, config)
    return config


def _read(model: LanguageModel, reader: Reader) -> Params:
    block, width = one(patterns.blocks_of(model)[reader.index], Block, OFFICIAL), model.width
    ffn: Any = block.ffn
    if isinstance(ffn, MLP):
        units: Params = read_units(reader, PLACE, width, ffn)
    else:
        units = {
            "router": reader.take(f"{PLACE}.router.weight", ffn.experts, width).T,
            "experts": read_experts(ffn, reader, PLACE, EXPERT, width),
        }
    mixer = read_mixer(block.mixer, reader, width, OFFICIAL, INSIDE)
    return {"mixer": mixer, "ffn": units, **read_norms(reader, width, NORMS)}


def _write(model: LanguageModel, params: Params) -> dict[str, np.ndarray]:
    ffn = params["ffn"]
    tensors = write_norms(params, NORMS) | write_mixer(params["mixer"], model.width, INSIDE)
    if "router" not in ffn:
        return tensors | write_units(ffn, PLACE)
    tensors[f"{PLACE}.router.weight"] = ffn["router"].T
    return tensors | write_experts(ffn["experts"], PLACE, EXPERT)


FAMILIES = {
    OFFICIAL: family(
        Spec("jamba", _model, _config), _read, _write, norm="model.final_layernorm.weight"
    )
}
"""Architecture of config.json -> how its folders are read and written."""
