"""Parts of blocks that many classes of Hugging Face transformers share, as Llama names them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from gam_jax.convert.family import one
from gam_jax.convert.fields import Fields
from gam_jax.convert.folder import Reader
from gam_jax.layers import MLP, Attention, Block, Layer
from gam_jax.params import Params
from sharding.errors import UserError

# Ours, and the name of transformers: scales of norms, attention's projections, the feed-forward.
NORMS = {"mixer_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
HEADS = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
HEAD_NORMS = {"query_norm": "q_norm", "key_norm": "k_norm"}
UNITS = {"gate": "gate_proj", "in": "up_proj"}
EXPERT = {**UNITS, "out": "down_proj"}


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


def read_norms(reader: Reader, width: int, names: Mapping[str, str] = NORMS) -> dict[str, Params]:
    """The norms of a block, by our names and theirs."""
    return {ours: {"scale": reader.take(f"{name}.weight", width)} for ours, name in names.items()}


def read_units(
    reader: Reader, inside: str, width: int, ffn: MLP, fused: bool = False
) -> dict[str, np.ndarray]:
    """A gated feed-forward, whose arrays' names begin so; `fused`: gate and in are one array."""
    hidden = ffn.hidden
    if fused:
        both = reader.take(f"{inside}.gate_up_proj.weight", 2 * hidden, width)
        units = {"w_gate": both[:hidden].T, "w_in": both[hidden:].T}
    else:
        units = {
            f"w_{ours}": reader.take(f"{inside}.{name}.weight", hidden, width).T
            for ours, name in UNITS.items()
        }
    units["w_out"] = reader.take(f"{inside}.down_proj.weight", width, hidden)
    if ffn.bias:
        sizes = {"gate": hidden, "in": hidden, "out": width}
        for ours, name in EXPERT.items():
            units[f"b_{ours}"] = reader.take(f"{inside}.{name}.bias", sizes[ours])
    return units


def read_attention(
    attention: Attention,
    width: int,
    reader: Reader,
    fused: bool = False,
    inside: str = "self_attn",
) -> dict[str, np.ndarray]:
    """Attention's projections, biases and norms, whose names begin so.

    `fused`: queries, keys, values are one array.
    Of gated attention, q_proj holds the query and the gate of each head, one behind the other.
    """
    mixer: dict[str, np.ndarray] = {}
    size = attention.size
    counts = {"query": attention.heads, "key": attention.groups, "value": attention.groups}
    counts["query"] *= 1 + attention.gated
    if fused:
        ends = np.cumsum([count * size for count in counts.values()])
        whole = reader.take(f"{inside}.qkv_proj.weight", int(ends[-1]), width)
        weights = dict(zip(counts, np.split(whole, ends[:-1]), strict=True))
    else:
        weights = {
            ours: reader.take(f"{inside}.{name}.weight", counts[ours] * size, width)
            for ours, name in HEADS.items()
        }
    for ours, weight in weights.items():
        mixer[ours] = weight.T.reshape(width, counts[ours], size)
        if attention.bias:
            bias = reader.take(f"{inside}.{HEADS[ours]}.bias", counts[ours] * size)
            mixer[f"{ours}_bias"] = bias.reshape(counts[ours], size)
    for name in [name for name in mixer if attention.gated and name.startswith("query")]:
        both = mixer[name]
        pairs = both.reshape(*both.shape[:-2], attention.heads, 2, size)
        mixer[name], mixer[name.replace("query", "gate")] = pairs[..., 0, :], pairs[..., 1, :]
    out = reader.take(f"{inside}.o_proj.weight", width, attention.heads * size)
    mixer["out"] = out.T.reshape(attention.heads, size, width)
    if attention.out_bias:
        mixer["out_bias"] = reader.take(f"{inside}.o_proj.bias", width)
    if attention.qk_norm:
        for ours, name in HEAD_NORMS.items():
            shape = attention.table()[ours].shape
            stored = reader.take(f"{inside}.{name}.weight", math.prod(shape))
            mixer[ours] = stored.reshape(shape)
    if attention.sinks:
        mixer["sinks"] = reader.take(f"{inside}.sinks", attention.heads)
    return mixer


def write_norms(params: Params, names: Mapping[str, str] = NORMS) -> dict[str, np.ndarray]:
    """The inverse of `read_norms`."""
    return {f"{name}.weight": params[ours]["scale"] for ours, name in names.items()}


def write_units(units: Params, inside: str, fused: bool = False) -> dict[str, np.ndarray]:
    """The inverse of `read_units`."""
    tensors = {f"{inside}.down_proj.weight": units["w_out"]}
    if fused:
        both = [units["w_gate"].T, units["w_in"].T]
        tensors[f"{inside}.gate_up_proj.weight"] = np.concatenate(both)
    else:
        tensors |= {f"{inside}.{name}.weight": units[f"w_{o}"].T for o, name in UNITS.items()}
    for ours, name in EXPERT.items():
        if f"b_{ours}" in units:
            tensors[f"{inside}.{name}.bias"] = units[f"b_{ours}"]
    return tensors


def write_attention(
    mixer: Params, width: int, fused: bool = False, inside: str = "self_attn"
) -> dict[str, np.ndarray]:
    """The inverse of `read_attention`."""
    tensors: dict[str, np.ndarray] = {}
    gates = [name for name in mixer if name in ("gate", "gate_bias")]
    for name in gates:
        query = name.replace("gate", "query")
        mixer = {**mixer, query: np.stack([mixer[query], mixer[name]], axis=-2)}
    if fused:
        rows = [mixer[ours].reshape(width, -1).T for ours in HEADS]
        tensors[f"{inside}.qkv_proj.weight"] = np.concatenate(rows)
    for ours, name in HEADS.items():
        if not fused:
            tensors[f"{inside}.{name}.weight"] = mixer[ours].reshape(width, -1).T
        if f"{ours}_bias" in mixer:
            tensors[f"{inside}.{name}.bias"] = mixer[f"{ours}_bias"].reshape(-1)
    tensors[f"{inside}.o_proj.weight"] = mixer["out"].reshape(-1, width).T
    if "out_bias" in mixer:
        tensors[f"{inside}.o_proj.bias"] = mixer["out_bias"]
    for ours, name in HEAD_NORMS.items():
        if ours in mixer:
            tensors[f"{inside}.{name}.weight"] = mixer[ours].reshape(-1)
    if "sinks" in mixer:
        tensors[f"{inside}.sinks"] = mixer["sinks"]
    return tensors
