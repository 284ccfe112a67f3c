"""DeepSeek-V3 as Hugging Face transformers writes it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gam_jax.convert.experts import check_experts, read_experts, write_experts
from gam_jax.convert.family import (
    Config,
    Family,
    Tensors,
    check_plain,
    one,
    refuse,
    rope,
)
from gam_jax.convert.llama import (
    UNITS,
    read_norms,
    read_units,
    sequential,
    write_norms,
    write_units,
)
from gam_jax.layers import MLP, Block, LatentAttention, MoE, RMSNorm, Series, Stack
from gam_jax.models.language import LanguageModel
from gam_jax.ops.rotary import Yarn
from gam_jax.ops.routing import Router
from gam_jax.params import Params
from sharding.errors import UserError

OFFICIAL = "DeepseekV3ForCausalLM"
NAMES = {**UNITS, "out": "down_proj"}

# Of the training (arXiv 2412.19437, section 4.2), which config.json does not tell.
BIAS_STEP, BALANCE = 1e-3, 1e-4


def _model(config: Config) -> LanguageModel:
    refuse(config, hidden_act="silu", attention_bias=False, norm_topk_prob=True)
    if config.get("rope_interleave") is False:
        raise UserError("config.json: rope_interleave=False of deepseek_v3 is not known here")
    size, turned = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
    yarn, scale = _yarn(config, size + turned)
    attention = LatentAttention(
        heads=config["num_attention_heads"],
        latent=config["kv_lora_rank"],
        query_latent=config.get("q_lora_rank") or 0,
        head_size=size,
        rotary_size=turned,
        value_size=config["v_head_dim"],
        rotary=float(rope(config).get("rope_theta") or config.get("rope_theta", 10_000.0)),
        yarn=yarn,
        context=config.get("max_position_embeddings", 4096),
        scale=scale,
    )
    hidden = config["moe_intermediate_size"]
    experts = MoE(
        experts=config.get("n_routed_experts") or config["num_local_experts"],
        chosen=config["num_experts_per_tok"],
        ffn=MLP(activation="swiglu", hidden=hidden, bias=False),
        shared=config["n_shared_experts"],
        router=Router(
            score="sigmoid",
            scale=config.get("routed_scaling_factor", 2.5),
            groups=config["n_group"],
            chosen_groups=config["topk_group"],
            balance=BALANCE,
            balance_over="sequence",
            z=0.0,
            bias_step=BIAS_STEP,
        ),
    )
    norm = RMSNorm(eps=config.get("rms_norm_eps", 1e-6))
    dense = MLP(activation="swiglu", hidden=config["intermediate_size"], bias=False)
    first, layers = config["first_k_dense_replace"], config["num_hidden_layers"]
    block: Any = Block(attention, experts if first < layers else dense, norm)
    depth = layers
    if 0 < first < layers:
        block = Series(Stack(Block(attention, dense, norm), first), Stack(block, layers - first))
        depth = 1
    return LanguageModel(
        block,
        width=config["hidden_size"],
        depth=depth,
        vocab=config["vocab_size"],
        norm=norm,
        tied=config.get("tie_word_embeddings", False),
    )


def _yarn(config: Config, size: int) -> tuple[Yarn, float]:
    """How positions are stretched, and the scale of scores that goes with it; 0 for the usual."""
    given = rope(config)
    kind = given.get("rope_type", given.get("type", "default"))
    if kind == "default":
        return Yarn(), 0.0
    all_dim = given.get("mscale_all_dim", 0)
    if kind != "yarn" or not all_dim or given.get("mscale") != all_dim or "attention" in given:
        raise UserError(
            f"config.json: rope_type={kind!r} of model_type deepseek_v3 is not known here: none, "
            f"or yarn with mscale = mscale_all_dim alone"
        )
    yarn = Yarn(
        factor=float(given["factor"]),
        original=given["original_max_position_embeddings"],
        fast=float(given.get("beta_fast") or 32),
        slow=float(given.get("beta_slow") or 1),
    )
    return yarn, _sharpened(yarn, all_dim, size)


def _sharpened(yarn: Yarn, all_dim: float, size: int) -> float:
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
    if router != known or not router.bias_step or not ffn.shared:
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
        "max_position_embeddings": attention.context,
        "rms_norm_eps": norm.eps,
        **_rope(attention),
        "rope_interleave": True,
        "attention_bias": False,
        "tie_word_embeddings": model.tied,
        "hidden_act": "silu",
    }


def _rope(attention: LatentAttention) -> dict[str, Any]:
    """rope_theta and rope_parameters; a UserError for a scale that no mscale_all_dim gives."""
    theta, yarn = attention.rotary, attention.yarn
    size = attention.head_size + attention.rotary_size
    if yarn.factor == 1:
        if attention.scale not in (0, size**-0.5):
            raise UserError(f"{OFFICIAL} of transformers has scores of the usual scale")
        found: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
        return {"rope_theta": theta, "rope_parameters": found}
    above = math.sqrt((attention.scale or size**-0.5) * math.sqrt(size)) - 1
    all_dim = round(above / (0.1 * math.log(yarn.factor)), 6)
    if not math.isclose(_sharpened(yarn, all_dim, size), attention.scale, rel_tol=1e-6):
        raise UserError(f"{OFFICIAL} of transformers has another scale of scores with yarn")
    found = {
        "rope_type": "yarn",
        "rope_theta": theta,
        "factor": yarn.factor,
        "original_max_position_embeddings": yarn.original,
        "beta_fast": yarn.fast,
        "beta_slow": yarn.slow,
        "mscale": all_dim,
        "mscale_all_dim": all_dim,
    }
    return {"rope_theta": theta, "rope_parameters": found}


def _read(model: LanguageModel, tensors: Tensors) -> Params:
    dense, sparse, _, _ = _blocks(model)
    block = sparse or dense
    assert block is not None
    mixer = _read_attention(one(block.mixer, LatentAttention, OFFICIAL), model.width, tensors)
    if "mlp.gate.weight" not in tensors:
        return {"mixer": mixer, "ffn": read_units(tensors, "mlp"), **read_norms(tensors)}
    ffn = one(block.ffn, MoE, OFFICIAL)
    mixture = {
        "router": tensors["mlp.gate.weight"].T,
        "balance_bias": tensors["mlp.gate.e_score_correction_bias"],
        "experts": read_experts(ffn.experts, tensors, "mlp", NAMES),
        "shared": read_units(tensors, "mlp.shared_experts"),
    }
    return {"mixer": mixer, "ffn": mixture, **read_norms(tensors)}


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
    attention: LatentAttention, width: int, tensors: Tensors
) -> dict[str, np.ndarray]:
    inside = {
        name.removeprefix("self_attn.").removesuffix(".weight"): x
        for name, x in tensors.items()
        if name.startswith("self_attn.")
    }
    heads, size = attention.heads, attention.head_size
    halves = _halves(attention.rotary_size)
    mixer = {}
    if attention.query_latent:
        mixer["query_latent"] = inside["q_a_proj"].T
        mixer["query_norm"] = inside["q_a_layernorm"]
    query = inside["q_b_proj" if attention.query_latent else "q_proj"].T
    query = query.reshape(query.shape[0], heads, -1)
    mixer["query"] = np.concatenate([query[..., :size], query[..., size:][..., halves]], axis=-1)
    down = inside["kv_a_proj_with_mqa"].T
    mixer["latent"] = down[:, : attention.latent]
    mixer["shared_key"] = down[:, attention.latent :][:, halves]
    mixer["latent_norm"] = inside["kv_a_layernorm"]
    up = inside["kv_b_proj"].T.reshape(attention.latent, heads, -1)
    mixer["key"], mixer["value"] = up[..., :size], up[..., size:]
    mixer["out"] = inside["o_proj"].T.reshape(heads, -1, width)
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
    )
}
"""Architecture of config.json -> how its folders are read and written."""
