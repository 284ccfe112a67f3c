"""Latent attention of a config.json and a folder, as DeepSeek-V3 has it, and back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gam_jax.convert.family import refuse
from gam_jax.convert.fields import Fields
from gam_jax.convert.folder import Reader
from gam_jax.convert.positions import Turned, read_positions, rope, sharper, written_positions
from gam_jax.layers import LatentAttention
from gam_jax.ops.rotary import Positions
from gam_jax.params import Params


def read_latent(config: Fields, context: int) -> LatentAttention:
    """The latent attention of a config.json; `context` where it does not tell.

    Raises:
      UserError: a field that makes no sense, or that is not known here.
    """
    size, turned = config.size("qk_nope_head_dim"), config.size("qk_rope_head_dim")
    heads = config.size("num_attention_heads")
    refuse(config, head_dim=turned, qk_head_dim=size + turned, num_key_value_heads=heads)
    found = read_positions(config, turned, context)
    neighbours = flag(config, "rope_interleave")
    return LatentAttention(
        heads=heads,
        latent=config.size("kv_lora_rank"),
        query_latent=config.size("q_lora_rank", 0 if config.is_null("q_lora_rank") else 1536),
        head_size=size,
        rotary_size=turned,
        value_size=config.size("v_head_dim"),
        rotary=found.rotary,
        positions=dataclasses.replace(found.positions, neighbours=neighbours),
        context=found.context,
        scale=_scale(config, found.positions, size + turned),
        bias=config.flag("attention_bias", False),
    )


def flag(config: Fields, name: str) -> bool:
    """True where it is not told, false where it is null: so transformers takes it."""
    return config.flag(name, not config.is_null(name))


def _scale(config: Fields, positions: Positions, size: int) -> float:
    """The scale of scores that goes with the positions; 0 for the usual."""
    if positions.kind == "default":
        return 0.0
    all_dim = rope(config).number("mscale_all_dim", 0.0, least=0)
    return _sharpened(positions, size, all_dim) if all_dim and positions.factor > 1 else 0.0


def _sharpened(positions: Positions, size: int, all_dim: float) -> float:
    """1 / sqrt(size), times what YaRN has for both queries and keys."""
    return sharper(positions.factor, all_dim) ** 2 / math.sqrt(size)


def written_latent(official: str, attention: LatentAttention) -> dict[str, Any]:
    """The inverse of `read_latent`.

    A scale of scores that no number gives is left out, so the caller compares what is read again.
    """
    turned = Turned(attention.rotary, attention.positions, attention.context)
    positions = written_positions(official, turned, attention.rotary_size)
    return {
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.heads,
        "q_lora_rank": attention.query_latent or None,
        "kv_lora_rank": attention.latent,
        "qk_nope_head_dim": attention.head_size,
        "qk_rope_head_dim": attention.rotary_size,
        "v_head_dim": attention.value_size or attention.head_size,
        "head_dim": attention.rotary_size,
        **positions,
        "rope_parameters": _with_scales(positions["rope_parameters"], attention),
        "rope_interleave": attention.positions.neighbours,
        "attention_bias": attention.bias,
    }


def _with_scales(told: dict[str, Any], attention: LatentAttention) -> dict[str, Any]:
    """rope_parameters with what makes the scale of scores, and that of turned channels by it."""
    positions, size = attention.positions, attention.head_size + attention.rotary_size
    if positions.kind == "default" or positions.factor <= 1:
        return told
    slope = 0.1 * math.log(positions.factor)
    guess = (math.sqrt(attention.rule.scale * math.sqrt(size)) - 1) / slope
    all_dim = _giving(lambda x: _sharpened(positions, size, x), attention.rule.scale, guess)
    if not all_dim:
        return told
    found = {**told, "mscale_all_dim": all_dim}
    if positions.kind == "yarn":
        both = sharper(positions.factor, all_dim)
        guess = (positions.scale * both - 1) / slope
        mscale = _giving(lambda x: sharper(positions.factor, x) / both, positions.scale, guess)
        if mscale:
            found.pop("attention_factor", None)
            found["mscale"] = mscale
    return found


def _giving(function: Callable[[float], float], wanted: float, guess: float) -> float:
    """The number of fewest digits, above 0 and near a guess, of which a function is `wanted`."""
    found = (round(guess, digits) for digits in range(17))
    return next((x for x in found if x > 0 and function(x) == wanted), 0.0)


def read_latent_arrays(attention: LatentAttention, width: int, reader: Reader) -> Params:
    """The parameters of latent attention."""

    def take(name: str, *shape: int) -> np.ndarray:
        return reader.take(f"self_attn.{name}", *shape)

    heads, size, latent = attention.heads, attention.head_size, attention.latent
    turned, values = attention.rotary_size, attention.value_size
    source, mixer = attention.query_latent, {}
    if source:
        mixer["query_latent"] = take("q_a_proj.weight", source, width).T
        mixer["query_norm"] = take("q_a_layernorm.weight", source)
    name = "q_b_proj.weight" if source else "q_proj.weight"
    query = take(name, heads * (size + turned), source or width).T
    mixer["query"] = query.reshape(-1, heads, size + turned)
    down = take("kv_a_proj_with_mqa.weight", latent + turned, width).T
    mixer["latent"], mixer["shared_key"] = down[:, :latent], down[:, latent:]
    mixer["latent_norm"] = take("kv_a_layernorm.weight", latent)
    up = take("kv_b_proj.weight", heads * (size + values), latent).T.reshape(latent, heads, -1)
    mixer["key"], mixer["value"] = up[..., :size], up[..., size:]
    out = take("o_proj.weight", width, heads * values).T
    mixer["out"] = out.reshape(heads, values, width)
    if attention.bias:
        if source:
            mixer["query_latent_bias"] = take("q_a_proj.bias", source)
        down = take("kv_a_proj_with_mqa.bias", latent + turned)
        mixer["latent_bias"], mixer["shared_key_bias"] = down[:latent], down[latent:]
        mixer["out_bias"] = take("o_proj.bias", width)
    return mixer


def write_latent_arrays(mixer: Params) -> dict[str, np.ndarray]:
    """The inverse of `read_latent_arrays`."""
    query, out, by_latent = mixer["query"], mixer["out"], "query_latent" in mixer
    up = np.concatenate([mixer["key"], mixer["value"]], axis=-1)
    found = {
        "q_b_proj.weight" if by_latent else "q_proj.weight": query.reshape(query.shape[0], -1).T,
        "kv_a_proj_with_mqa.weight": np.concatenate(
            [mixer["latent"], mixer["shared_key"]], axis=1
        ).T,
        "kv_a_layernorm.weight": mixer["latent_norm"],
        "kv_b_proj.weight": up.reshape(up.shape[0], -1).T,
        "o_proj.weight": out.reshape(-1, out.shape[-1]).T,
    }
    if by_latent:
        found["q_a_proj.weight"] = mixer["query_latent"].T
        found["q_a_layernorm.weight"] = mixer["query_norm"]
    if "out_bias" in mixer:
        down = [mixer["latent_bias"], mixer["shared_key_bias"]]
        found["kv_a_proj_with_mqa.bias"] = np.concatenate(down)
        found["o_proj.bias"] = mixer["out_bias"]
    if "query_latent_bias" in mixer:
        found["q_a_proj.bias"] = mixer["query_latent_bias"]
    return {f"self_attn.{name}": x for name, x in found.items()}
