"""Qwen3-Next and Qwen3.5 (text): gated delta rules, and gated attention in some layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from gam_jax.convert import patterns
from gam_jax.convert.attentions import FULL
from gam_jax.convert.experts import Sparse, hidden_units
from gam_jax.convert.family import Config, one, refuse
from gam_jax.convert.fields import Fields
from gam_jax.convert.folder import Reader
from gam_jax.convert.memories import (
    joined,
    parted,
    read_named,
    rows_of,
    sizes_of,
    write_named,
)
from gam_jax.convert.parts import read_attention, read_units, write_units
from gam_jax.convert.positions import rope
from gam_jax.layers import MLP, Attention, Layer, LinearMemory, MoE
from gam_jax.models.language import LanguageModel
from gam_jax.params import Params

LINEAR = "linear_attention"
MIXER, SHARED = "linear_attn", "mlp.shared_expert"
NAMES = {
    "decay_bias": "dt_bias",
    "a_log": "A_log",
    "norm": "norm.weight",
    "w_out": "out_proj.weight",
}
APART = {
    "w_gate": "in_proj_z.weight",
    "w_beta": "in_proj_b.weight",
    "w_decay": "in_proj_a.weight",
}
"""Our names of a memory's arrays -> theirs; those that may be stored together are apart."""


@dataclasses.dataclass(frozen=True)
class Next(Sparse):
    """What tells one class from the other.

    Attributes:
      has_experts: whether its blocks have some; each of them, unless `mixed`.
      fused: whether the maps of a group of heads are stored together, as in_proj_qkvz and
        in_proj_ba; else as in_proj_qkv, in_proj_z, in_proj_b and in_proj_a.
    """

    has_experts: bool = True
    fused: bool = False
    mixer: ClassVar[type[Layer]] = Layer

    def read(self, values: Config) -> LanguageModel:
        """The model of a config.json; a UserError where this project cannot express it."""
        config = Fields.of(values)
        refuse(config, hidden_act="silu", attn_output_gate=True, use_sliding_window=False)
        for name in ("mrope_section", "mrope_interleaved"):
            rope(config).get(name)  # of pictures: a text has one place for all sections
        return super().read(config)

    def attentions(self, config: Fields, width: int, layers: int, eps: float) -> Sequence[Any]:
        """The mixer of each layer."""
        full = super().attentions(config, width, layers, eps)
        memory = _memory(config, eps)
        return [
            memory if kind == LINEAR else dataclasses.replace(full[i], gated=True)
            for i, kind in enumerate(layer_kinds(config, layers))
        ]

    def _windows(self, config: Fields, layers: int) -> tuple[list[str], int]:
        """layer_types says here which layers have attention at all."""
        return [FULL] * layers, 0

    def written(self, attentions: Sequence[Any]) -> dict[str, Any]:
        """The inverse of `attentions`."""
        memories = [mixer for mixer in attentions if isinstance(mixer, LinearMemory)]
        others = [mixer for mixer in attentions if not isinstance(mixer, LinearMemory)]
        memory = memories[0] if memories else one(others[0], LinearMemory, self.official)
        full = [one(mixer, Attention, self.official) for mixer in others]
        return {
            **super().written(full or [Attention(heads=1, head_size=8)]),
            "layer_types": written_kinds(attentions),
            "linear_num_value_heads": memory.heads,
            "linear_num_key_heads": memory.groups,
            "linear_key_head_dim": memory.keys,
            "linear_value_head_dim": memory.values,
            "linear_conv_kernel_dim": memory.recipe.kernel,
        }

    @property
    def hidden_name(self) -> str:
        """The field that tells the hidden units of an expert."""
        return "moe_intermediate_size"

    def experts(self, config: Fields) -> Any:
        """With a gated one that all tokens go through; a feed-forward in classes without."""
        if not self.has_experts:
            return hidden_units(config, "intermediate_size")
        experts = super().experts(config)
        own, hidden = experts.ffn.hidden, config.size("shared_expert_intermediate_size")
        times = hidden // own if hidden % own == 0 else 0
        normed = self.renormalises or config.flag("norm_topk_prob", True)
        return dataclasses.replace(
            experts,
            router=dataclasses.replace(experts.router, renormalise=normed),
            shared=times or 1,
            shared_hidden=0 if times else hidden,
            shared_gate=True,
        )

    def written_experts(self, layer: Layer, dense: Sequence[bool]) -> dict[str, Any]:
        """The inverse of `experts` and `dense`."""
        if not self.has_experts:
            one(layer, MLP, self.official)
            return {}
        ffn, told = one(layer, MoE, self.official), super().written_experts(layer, dense)
        del told["num_local_experts"]
        shared = {"shared_expert_intermediate_size": ffn.shared_ffn.hidden}
        return told | shared | {"num_experts": ffn.experts}

    def read_mixer(self, mixer: Layer, width: int, reader: Reader) -> Params:
        """The parameters of a memory or of attention."""
        if isinstance(mixer, LinearMemory):
            return self._read_memory(mixer, width, reader)
        return read_attention(one(mixer, Attention, self.official), width, reader)

    def write_mixer(self, params: Params, width: int) -> dict[str, np.ndarray]:
        """The inverse of `read_mixer`."""
        if "w_qkv" not in params:
            return super().write_mixer(params, width)
        return {f"{MIXER}.{name}": x for name, x in self._write_memory(params).items()}

    def _read_memory(self, memory: LinearMemory, width: int, reader: Reader) -> Params:
        def take(name: str, *shape: int) -> np.ndarray:
            return reader.take(f"{MIXER}.{name}", *shape)

        heads, groups, values = memory.heads, memory.groups, memory.values
        mixed, taps = sum(sizes_of(memory)), memory.recipe.kernel
        filters = rows_of(memory, take("conv1d.weight", mixed, 1, taps)[:, 0])
        found = {"conv": joined(memory, filters)}
        if not self.fused:
            weights = rows_of(memory, take("in_proj_qkv.weight", mixed, width))
            found["w_qkv"] = joined(memory, weights)
            return found | read_named(memory, take, NAMES | APART)
        whole = take("in_proj_qkvz.weight", mixed + heads * values, width)
        w_qkv, gate = np.split(whole.T.reshape(width, groups, -1), (memory.mixed,), axis=2)
        both = take("in_proj_ba.weight", 2 * heads, width).T.reshape(width, groups, 2, -1)
        return {
            **found,
            **read_named(memory, take, NAMES),
            "w_qkv": w_qkv,
            "w_gate": gate.reshape(width, heads, values),
            "w_beta": both[:, :, 0].reshape(width, heads),
            "w_decay": both[:, :, 1].reshape(width, heads),
        }

    def _write_memory(self, params: Params) -> dict[str, np.ndarray]:
        """The inverse of `_read_memory`."""
        w_qkv = params["w_qkv"]
        width, groups, _ = w_qkv.shape
        tensors = {"conv1d.weight": np.concatenate(parted(params, "conv"))[:, None]}
        if self.fused:
            whole = np.concatenate([w_qkv, params["w_gate"].reshape(width, groups, -1)], axis=2)
            pair = [params[name].reshape(width, groups, -1) for name in ("w_beta", "w_decay")]
            tensors["in_proj_qkvz.weight"] = whole.reshape(width, -1).T
            tensors["in_proj_ba.weight"] = np.stack(pair, axis=2).reshape(width, -1).T
        else:
            tensors["in_proj_qkv.weight"] = np.concatenate(parted(params, "w_qkv"))
        return tensors | write_named(params, NAMES if self.fused else NAMES | APART)

    def read_ffn(self, ffn: Any, width: int, reader: Reader) -> Params:
        """The parameters of a feed-forward or of experts."""
        params = super().read_ffn(ffn, width, reader)
        if isinstance(ffn, MLP):
            return params
        shared = read_units(reader, SHARED, width, ffn.shared_ffn)
        gate = reader.take(f"{SHARED}_gate.weight", 1, width)[0]
        return {**params, "shared": shared, "shared_gate": gate}

    def write_ffn(self, params: Params) -> dict[str, np.ndarray]:
        """The inverse of `read_ffn`."""
        tensors = super().write_ffn(params)
        if "router" not in params:
            return tensors
        tensors |= write_units(params["shared"], SHARED)
        return tensors | {f"{SHARED}_gate.weight": params["shared_gate"][None]}


def _memory(config: Fields, eps: float) -> LinearMemory:
    heads, groups = config.size("linear_num_value_heads", 32), "linear_num_key_heads"
    if heads % config.size(groups, 16):
        raise config.refused(groups, f"does not divide linear_num_value_heads={heads}")
    return LinearMemory(
        heads=heads,
        key_heads=config.size(groups, 16),
        variant="gated_deltanet",
        key_width=config.size("linear_key_head_dim", 128),
        value_width=config.size("linear_value_head_dim", 128),
        kernel=config.size("linear_conv_kernel_dim", 4, least=2),
        eps=eps,
    )


def layer_kinds(config: Fields, layers: int) -> list[str]:
    """LINEAR or FULL of each layer."""
    every, kinds = config.size("full_attention_interval", 4), config.get("layer_types")
    if kinds is None:
        return [LINEAR if (i + 1) % every else FULL for i in range(layers)]
    return listed(config, "layer_types", layers, LINEAR, FULL)


def listed(config: Fields, name: str, layers: int, *known: str) -> list[str]:
    """A field that lists one of some words for each layer.

    Raises:
      UserError: it does not.
    """
    kinds = config.get(name)
    if not isinstance(kinds, list | tuple) or any(kind not in known for kind in kinds):
        raise config.refused(name, f"is not known here, {' or '.join(known)} for each")
    if len(kinds) != layers:
        raise config.refused(name, f"is no list of num_hidden_layers={layers}")
    return list(kinds)


def written_kinds(mixers: Sequence[Layer]) -> list[str]:
    """The inverse of `layer_kinds`."""
    return [LINEAR if isinstance(mixer, LinearMemory) else FULL for mixer in mixers]


def _spare(reader: Reader) -> list[str]:
    """The multi-token head, which is not read."""
    return [name for name in reader.names() if name.startswith("mtp.")]


ATTENTION: dict[str, Any] = {
    "context": 32_768,
    "head_size": 256,
    "biases": "all",
    "qk_norm": "head",
    "centred": True,
    "partial": 0.25,
}
TABLE = (
    Next(
        "Qwen3NextForCausalLM",
        "qwen3_next",
        kv_heads=2,
        chosen=10,
        mixed=True,
        fused=True,
        **ATTENTION,
    ),
    Next("Qwen3_5ForCausalLM", "qwen3_5_text", kv_heads=4, has_experts=False, **ATTENTION),
    Next("Qwen3_5MoeForCausalLM", "qwen3_5_moe_text", kv_heads=2, renormalises=True, **ATTENTION),
)
"""The classes that are read and written."""

FAMILIES = {
    spec.official: patterns.family(spec, type(spec).read_block, type(spec).write_block, _spare)
    for spec in TABLE
}
"""Architecture of config.json -> how its folders are read and written."""
