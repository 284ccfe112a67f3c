"""DeepSeek-V3 as Hugging Face transformers writes it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gam_jax.convert.experts import check_experts, count_experts, read_experts, write_experts
from gam_jax.convert.family import (
    Config,
    Family,
    check_plain,
    one,
    refuse,
)
from gam_jax.convert.fields import Fields
from gam_jax.convert.folder import Reader
from gam_jax.convert.parts import (
    UNITS,
    read_norms,
    read_units,
    sequential,
    write_norms,
    write_units,
)
from gam_jax.convert.positions import Turned, read_positions, rope, written_positions
from gam_jax.layers import MLP, Block, LatentAttention, MoE, RMSNorm, Series, Stack
from gam_jax.models.language import LanguageModel
from gam_jax.ops.rotary import Positions
from gam_jax.ops.routing import Router
from gam_jax.params import Params
from sharding.errors import UserError

OFFICIAL = "DeepseekV3ForCausalLM"
NAMES = {**UNITS, "out": "down_proj"}

# Of the training (arXiv 2412.19437, section 4.2), which config.json does not tell.
BIAS_STEP, BALANCE = 1e-3, 1e-4


def _model(values: Config) -> LanguageModel:
    config = Fields.of(values)
    refuse(config, hidden_act="silu", attention_bias=False, norm_topk_prob=True)
    refuse(config, rope_interleave=True, scoring_func="sigmoid", topk_method="noaux_tc")
    refuse(config, moe_layer_freq=1)
    size, turned = config.size("qk_nope_head_dim"), config.size("qk_rope_head_dim")
    heads = config.size("num_attention_heads")
    refuse(config, head_dim=turned, qk_head_dim=size + turned, num_key_value_heads=heads)
    _predicted(config)
    found = read_positions(config, turned, 4096)
    attention = LatentAttention(
        heads=heads,
        latent=config.size("kv_lora_rank"),
        query_latent=config.size("q_lora_rank", 0),
        head_size=size,
        rotary_size=turned,
        value_size=config.size("v_head_dim"),
        rotary=found.rotary,
        positions=found.positions,
        context=found.context,
        scale=_scale(config, found.positions, size + turned),
    )
    norm = RMSNorm(eps=config.number("rms_norm_eps", 1e-6, least=0))
    dense = MLP(activation="swiglu", hidden=config.size("intermediate_size"), bias=False)
    layers = config.size("num_hidden_layers")
    first, experts = config.size("first_k_dense_replace", least=0), _experts(config)
    block: Any = Block(attention, experts if first < layers else dense, norm)
    depth = layers
    if 0 < first < layers:
        block = Series(Stack(Block(attention, dense, norm), first), Stack(block, layers - first))
        depth = 1
    return LanguageModel(
        block,
        width=config.size("hidden_size"),
        depth=depth,
        vocab=config.size("vocab_size"),
        norm=norm,
        tied=config.flag("tie_word_embeddings", False),
    )


def _experts(config: Fields) -> MoE:
    return MoE(
        experts=count_experts(config, "n_routed_experts", "num_local_experts"),
        chosen=config.size("num_experts_per_tok"),
        ffn=MLP(activation="swiglu", hidden=config.size("moe_intermediate_size"), bias=False),
        shared=config.size("n_shared_experts"),
        router=Router(
            score="sigmoid",
            scale=config.number("routed_scaling_factor", 2.5),
            groups=config.size("n_group"),
            chosen_groups=config.size("topk_group"),
            balance=BALANCE,
            balance_over="sequence",
            z=0.0,
            bias_step=BIAS_STEP,
        ),
    )


def _scale(config: Fields, positions: Positions, size: int) -> float:
    """The scale of scores that goes with the positions; 0 for the usual."""
    if positions.kind == "default":
        return 0.0
    all_dim = rope(config).number("mscale_all_dim", 0.0, least=0)
    if positions.kind != "yarn" or not all_dim or positions.scale != 1:
        raise UserError(
            f"config.json: rope_type={positions.kind!a} of model_type deepseek_v3 is not known "
            f"here: none, or yarn with mscale = mscale_all_dim alone"
        )
    return _sharpened(positions, all_dim, size)


def _sharpened(yarn: Positions, all_dim: float, size: int) -> float:
    """1 / sqrt(size), times (0.1 all_dim ln(factor) + 1)^2 (arXiv 2309.00071, section 3.4)."""
    return (0.1 * all_dim * math.log(yarn.factor) + 1) ** 2 / math.sqrt(size)


def _blocks(model: LanguageModel) -> tuple[Block | None, Block | None, int, int]:
    """The dense block and that of experts, and how many there are of each."""
    if isinstance(model.block, Series) and model.depth == 1:
        first, then = (
            one(stack, Stack, OFFICIAL) for stack in (model.block.first, model.block.then)
        )
        blocks = sequential(first.block, OFFICIAL), sequential(then.block, OFFICIAL)
        if isinstance(blocks[0].ffn, MLP) and isinstance(blocks[1].ffn, MoE):
            return *blocks, first.depth, then.depth
        raise UserError(f"{OFFICIAL} of transformers has first dense blocks, then experts")
    block = sequential(model.block, OFFICIAL)
    if isinstance(block.ffn, MLP):
        return block, None, model.depth, 0
    return None, block, 0, model.depth


def _config(model: LanguageModel) -> dict[str, Any]:
    check_plain(model, OFFICIAL)
    dense, sparse, first, then = _blocks(model)
    if sparse is None:
        raise UserError(f"{OFFICIAL} of transformers has experts: this model has none")
    attention = one(sparse.mixer, LatentAttention, OFFICIAL)
    norm, ffn = one(sparse.norm, RMSNorm, OFFICIAL), one(sparse.ffn, MoE, OFFICIAL)
    hidden, router = check_experts(ffn, OFFICIAL), ffn.router
    known = Router(
        score="sigmoid",
        scale=router.scale,
        groups=router.groups,
        chosen_groups=router.chosen_groups,
        balance=router.balance,
        balance_over=router.balance_over,
        z=router.z,
        bias_step=router.bias_step,
    )
    plain = ffn.shared and not ffn.shared_gate and not ffn.shared_hidden
    if router != known or not router.bias_step or not plain:
        raise UserError(
            f"{OFFICIAL} of transformers has a sigmoid router with a balance bias, and shared "
            f"experts: this model cannot be written as that"
        )
    wide = ffn.shared * hidden
    if dense is not None:
        plain = one(dense.ffn, MLP, OFFICIAL)
        wide = plain.hidden or plain.expansion * model.width
        gated = dataclasses.replace(ffn.ffn, hidden=wide, dropout=plain.dropout)
        if dataclasses.replace(plain, hidden=wide, expansion=gated.expansion) != gated or (
            dense.mixer,
            dense.norm,
        ) != (attention, norm):
            raise UserError(
                f"{OFFICIAL} of transformers has dense blocks that differ from those of experts "
                f"in their SwiGLU alone: this model cannot be written as that"
            )
    return {
        "architectures": [OFFICIAL],
        "model_type": "deepseek_v3",
        "hidden_size": model.width,
        "intermediate_size": wide,
        "moe_intermediate_size": hidden,
        "num_hidden_layers": first + then,
        "first_k_dense_replace": first,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.heads,
        "q_lora_rank": attention.query_latent or None,
        "kv_lora_rank": attention.latent,
        "qk_nope_head_dim": attention.head_size,
        "qk_rope_head_dim": attention.rotary_size,
        "v_head_dim": attention.value_size or attention.head_size,
        "head_dim": attention.rotary_size,
        "n_routed_experts": ffn.experts,
        "n_shared_experts": ffn.shared,
        "num_experts_per_tok": ffn.chosen,
        "n_group": router.groups,
        "topk_group": router.chosen_groups or router.groups,
        "norm_topk_prob": True,
        "routed_scaling_factor": router.scale,
        "vocab_size": model.vocab,
        "rms_norm_eps": norm.eps,
        **_rope(attention),
        "rope_interleave": True,
        "attention_bias": False,
        "tie_word_embeddings": model.tied,
        "hidden_act": "silu",
    }


def _rope(attention: LatentAttention) -> dict[str, Any]:
    """What config.json says of positions, and of the scale of scores that goes with them.

    Raises:
      UserError: positions or a scale that transformers does not give this class.
    """
    positions, size = attention.positions, attention.head_size + attention.rotary_size
    if positions.kind == "yarn" and positions.factor == 1:
        positions = Positions()  # it stretches nothing
    turned = Turned(attention.rotary, positions, attention.context)
    found = written_positions(OFFICIAL, turned, attention.rotary_size)
    if positions.kind not in ("default", "yarn") or positions.scale != 1 or positions.neighbours:
        raise UserError(f"{OFFICIAL} of transformers has plain positions, or those of YaRN")
    if positions.kind == "default":
        if attention.scale not in (0, size**-0.5):
            raise UserError(f"{OFFICIAL} of transformers has scores of the usual scale")
        return found
    above = math.sqrt((attention.scale or size**-0.5) * math.sqrt(size)) - 1
    all_dim = round(above / (0.1 * math.log(positions.factor)), 6)
    if not math.isclose(_sharpened(positions, all_dim, size), attention.scale, rel_tol=1e-6):
        raise UserError(f"{OFFICIAL} of transformers has another scale of scores with yarn")
    parameters = found["rope_parameters"]
    parameters.pop("attention_factor", None)  # 1, where the two below are the same
    return found | {"rope_parameters": {**parameters, "mscale": all_dim, "mscale_all_dim": all_dim}}


def _read(model: LanguageModel, reader: Reader) -> Params:
    dense, sparse, first, _ = _blocks(model)
    block = dense if reader.index < first else sparse
    assert block is not None
    width = model.width
    mixer = _read_attention(one(block.mixer, LatentAttention, OFFICIAL), width, reader)
    found = {"mixer": mixer, **read_norms(reader, width)}
    if isinstance(block.ffn, MLP):
        return found | {"ffn": read_units(reader, "mlp", width, block.ffn)}
    ffn = one(block.ffn, MoE, OFFICIAL)
    shared = dataclasses.replace(ffn.ffn, hidden=ffn.shared * ffn.ffn.hidden)
    mixture = {
        "router": reader.take("mlp.gate.weight", ffn.experts, width).T,
        "balance_bias": reader.take("mlp.gate.e_score_correction_bias", ffn.experts),
        "experts": read_experts(ffn, reader, "mlp", NAMES, width),
        "shared": read_units(reader, "mlp.shared_experts", width, shared),
    }
    return found | {"ffn": mixture}


def _write(model: LanguageModel, params: Params) -> dict[str, np.ndarray]:
    dense, sparse, _, _ = _blocks(model)
    block = sparse or dense
    assert block is not None
    attention = one(block.mixer, LatentAttention, OFFICIAL)
    tensors = write_norms(params) | _write_attention(attention, params["mixer"])
    ffn = params["ffn"]
    if "experts" not in ffn:
        return tensors | write_units(ffn, "mlp")
    return {
        **tensors,
        "mlp.gate.weight": ffn["router"].T,
        "mlp.gate.e_score_correction_bias": ffn["balance_bias"],
        **write_experts(ffn["experts"], "mlp", NAMES),
        **write_units(ffn["shared"], "mlp.shared_experts"),
    }


def _read_attention(
    attention: LatentAttention, width: int, reader: Reader
) -> dict[str, np.ndarray]:
    def take(name: str, *shape: int) -> np.ndarray:
        return reader.take(f"self_attn.{name}.weight", *shape)

    heads, size, latent = attention.heads, attention.head_size, attention.latent
    turned, values = attention.rotary_size, attention.value_size
    halves, source = _halves(turned), attention.query_latent
    mixer = {}
    if source:
        mixer["query_latent"] = take("q_a_proj", source, width).T
        mixer["query_norm"] = take("q_a_layernorm", source)
    name = "q_b_proj" if source else "q_proj"
    query = take(name, heads * (size + turned), source or width).T
    query = query.reshape(-1, heads, size + turned)
    mixer["query"] = np.concatenate([query[..., :size], query[..., size:][..., halves]], axis=-1)
    down = take("kv_a_proj_with_mqa", latent + turned, width).T
    mixer["latent"] = down[:, :latent]
    mixer["shared_key"] = down[:, latent:][:, halves]
    mixer["latent_norm"] = take("kv_a_layernorm", latent)
    up = take("kv_b_proj", heads * (size + values), latent).T.reshape(latent, heads, -1)
    mixer["key"], mixer["value"] = up[..., :size], up[..., size:]
    mixer["out"] = take("o_proj", width, heads * values).T.reshape(heads, values, width)
    return mixer


def _write_attention(attention: LatentAttention, mixer: Params) -> dict[str, np.ndarray]:
    size, back = attention.head_size, np.argsort(_halves(attention.rotary_size))
    query = mixer["query"]
    query = np.concatenate([query[..., :size], query[..., size:][..., back]], axis=-1)
    down = np.concatenate([mixer["latent"], mixer["shared_key"][:, back]], axis=1)
    up = np.concatenate([mixer["key"], mixer["value"]], axis=-1)
    out = mixer["out"]
    found = {
        "q_b_proj" if attention.query_latent else "q_proj": query.reshape(query.shape[0], -1).T,
        "kv_a_proj_with_mqa": down.T,
        "kv_a_layernorm": mixer["latent_norm"],
        "kv_b_proj": up.reshape(up.shape[0], -1).T,
        "o_proj": out.reshape(-1, out.shape[-1]).T,
    }
    if attention.query_latent:
        found |= {"q_a_proj": mixer["query_latent"].T, "q_a_layernorm": mixer["query_norm"]}
    return {f"self_attn.{name}.weight": x for name, x in found.items()}


def _halves(size: int) -> np.ndarray:
    """Their pairs of turned channels are neighbours, ours are the two halves of a head."""
    return np.concatenate([np.arange(0, size, 2), np.arange(1, size, 2)])


def _join(model: LanguageModel, blocks: Sequence[Params]) -> Params:
    def stacked(blocks: Sequence[Params], axes: int) -> Params:
        joined = jax.tree.map(lambda *arrays: np.stack(arrays), *blocks)
        return jax.tree.map(lambda x: x[(None,) * axes], joined)

    _, _, first, _ = _blocks(model)
    if not isinstance(model.block, Series):
        return stacked(blocks, 0)
    return {"first": stacked(blocks[:first], 1), "then": stacked(blocks[first:], 1)}


def _split(model: LanguageModel, params: Params) -> list[Params]:
    if not isinstance(model.block, Series):
        return [jax.tree.map(lambda x, i=i: x[i], params) for i in range(model.depth)]
    _, _, *counts = _blocks(model)
    return [
        jax.tree.map(lambda x, i=i: x[0, i], params[name])
        for name, count in zip(("first", "then"), counts, strict=True)
        for i in range(count)
    ]


def _spare(reader: Reader) -> list[str]:
    """The blocks of the multi-token head, which are not read: those behind the last.

    They are known by an array that no other block has, so a config.json of too few blocks is not
    taken for one of such a head.
    """
    last, more = reader.config["num_hidden_layers"], _predicted(reader.config)
    spare = []
    for name in reader.names():
        number = re.match(r"model\.layers\.(\d{1,9})\.", name, re.ASCII)
        if (
            number
            and last <= int(number[1]) < last + more
            and f"{number[0]}eh_proj.weight" in reader
        ):
            spare.append(name)
    return spare


def _predicted(config: Fields) -> int:
    """Blocks of the multi-token head."""
    return config.size("num_nextn_predict_layers", 0, least=0)


def _layers(model: LanguageModel) -> int:
    _, _, first, then = _blocks(model)
    return first + then


FAMILIES = {
    OFFICIAL: Family(
        _model,
        _config,
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.",
        _read,
        _write,
        join=_join,
        split=_split,
        layers=_layers,
        kind="deepseek_v3",
        spare=_spare,
    )
}
"""Architecture of config.json -> how its folders are read and written."""
