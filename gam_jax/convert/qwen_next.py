"""Qwen3-Next and Qwen3.5 (text): gated delta rules, and gated attention in some layers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from gam_jax.convert import patterns
from gam_jax.convert.attentions import FULL
from gam_jax.convert.experts import Sparse, check_experts, read_experts, write_experts
from gam_jax.convert.family import Config, Family, check_plain, one
from gam_jax.convert.fields import LAYERS, Fields
from gam_jax.convert.folder import Reader
from gam_jax.convert.memories import (
    joined,
    parted,
    read_named,
    rows_of,
    sizes_of,
    write_named,
)
from gam_jax.convert.parts import (
    EXPERT,
    read_attention,
    read_norms,
    read_units,
    write_attention,
    write_norms,
    write_units,
)
from gam_jax.convert.positions import rope
from gam_jax.convert.same import check_same
from gam_jax.layers import MLP, Attention, Block, LinearMemory, MoE, RMSNorm
from gam_jax.models.language import LanguageModel
from gam_jax.params import Params

LINEAR = "linear_attention"
VARIANT = "gated_deltanet"
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
      ffn: "dense"; "experts", in each block; "mixed", where config.json may make some dense.
      fused: whether the maps of a group of heads are stored together, as in_proj_qkvz and
        in_proj_ba; else as in_proj_qkv, in_proj_z, in_proj_b and in_proj_a.
    """

    ffn: str = "mixed"
    fused: bool = False

    def read(self, values: Config) -> LanguageModel:
        """The model of a config.json; a UserError where this project cannot express it."""
        config = Fields.of(values)
        for name, known in (("hidden_act", "silu"), ("attn_output_gate", True)):
            config.only(name, known)
        config.only("use_sliding_window", False)
        for name in ("mrope_section", "mrope_interleaved"):
            rope(config).get(name)  # of pictures: a text has one place for all sections
        width, layers = config.size("hidden_size"), config.size("num_hidden_layers", most=LAYERS)
        norm = RMSNorm(eps=config.number("rms_norm_eps", self.eps, least=0), centred=True)
        memory = _memory(config, norm.eps)
        sparse = None if self.ffn == "dense" else self._with_shared(config)
        attentions = self.attentions(config, width, layers, norm.eps)
        dense = self._dense(config, layers) if self.ffn == "mixed" else [sparse is None] * layers
        blocks = []
        for i, kind in enumerate(_kinds(config, layers)):
            full = dataclasses.replace(attentions[i], gated=True)
            ffn = _units(config, "intermediate_size") if sparse is None or dense[i] else sparse
            blocks.append(Block(memory if kind == LINEAR else full, ffn, norm))
        return LanguageModel(
            **patterns.in_order(blocks),
            width=width,
            vocab=config.size("vocab_size"),
            norm=norm,
            tied=config.flag("tie_word_embeddings", False),
        )

    def _windows(self, config: Fields, layers: int) -> tuple[list[str], int]:
        """layer_types says here which layers have attention at all."""
        return [FULL] * layers, 0

    def _with_shared(self, config: Fields) -> MoE:
        """Experts, and a gated one that all tokens go through."""
        experts = self._experts(config)
        router = experts.router
        if not self.renormalises:
            renormalise = config.flag("norm_topk_prob", True)
            router = dataclasses.replace(router, renormalise=renormalise)
        hidden, own = config.size("shared_expert_intermediate_size"), experts.ffn.hidden
        times = hidden // own if hidden % own == 0 else 0
        return dataclasses.replace(
            experts,
            router=router,
            shared=times or 1,
            shared_hidden=0 if times else hidden,
            shared_gate=True,
        )

    def write(self, model: LanguageModel) -> dict[str, Any]:
        """The inverse of `read`; a UserError where transformers cannot express the model."""
        check_plain(model, self.official)
        blocks = [one(block, Block, self.official) for block in patterns.blocks_of(model)]
        mixers = [block.mixer for block in blocks]
        memories = [mixer for mixer in mixers if isinstance(mixer, LinearMemory)]
        full = [mixer for mixer in mixers if not isinstance(mixer, LinearMemory)]
        attentions = [one(mixer, Attention, self.official) for mixer in full]
        memory = memories[0] if memories else one(full[0], LinearMemory, self.official)
        norm = one(model.norm, RMSNorm, self.official)
        config: dict[str, Any] = {
            "architectures": [self.official],
            "model_type": self.kind,
            "hidden_size": model.width,
            "num_hidden_layers": len(blocks),
            "layer_types": [LINEAR if isinstance(x, LinearMemory) else FULL for x in mixers],
            "linear_num_value_heads": memory.heads,
            "linear_num_key_heads": memory.groups,
            "linear_key_head_dim": memory.keys,
            "linear_value_head_dim": memory.values,
            "linear_conv_kernel_dim": memory.recipe.kernel,
            "vocab_size": model.vocab,
            "rms_norm_eps": norm.eps,
            "tie_word_embeddings": model.tied,
            "hidden_act": "silu",
            **self.written(attentions or [Attention(heads=1, head_size=8)]),
            **self._written_units(blocks),
        }
        check_same(self.official, self.read, model, config)
        return config

    def _written_units(self, blocks: list[Block]) -> dict[str, Any]:
        """The inverse of what `read` makes the feed-forwards of."""
        dense = [i for i, block in enumerate(blocks) if isinstance(block.ffn, MLP)]
        config: dict[str, Any] = {}
        if dense or self.ffn == "dense":
            plain: Any = one(blocks[dense[0] if dense else 0].ffn, MLP, self.official)
            config["intermediate_size"] = plain.hidden or plain.expansion * (plain.width or 0)
        if self.ffn == "dense":
            return config
        sparse = [block.ffn for block in blocks if not isinstance(block.ffn, MLP)]
        ffn = one(sparse[0] if sparse else blocks[0].ffn, MoE, self.official)
        config |= {
            "num_experts": ffn.experts,
            "num_experts_per_tok": ffn.chosen,
            "moe_intermediate_size": check_experts(ffn, self.official),
            "shared_expert_intermediate_size": ffn.shared_ffn.hidden,
            "router_aux_loss_coef": ffn.router.balance,
        }
        if self.ffn == "mixed":
            config |= {
                "norm_topk_prob": ffn.router.renormalise,
                "decoder_sparse_step": 1,
                "mlp_only_layers": dense,
            }
        return config


def _units(config: Fields, name: str) -> MLP:
    return MLP(activation="swiglu", hidden=config.size(name), bias=False)


def _memory(config: Fields, eps: float) -> LinearMemory:
    heads, groups = config.size("linear_num_value_heads", 32), "linear_num_key_heads"
    if heads % config.size(groups, 16):
        raise config.refused(groups, f"does not divide linear_num_value_heads={heads}")
    kernel = config.size("linear_conv_kernel_dim", 4)
    if kernel == 1:
        raise config.refused("linear_conv_kernel_dim", "is not read here: 2 or more")
    return LinearMemory(
        heads=heads,
        key_heads=config.size(groups, 16),
        variant=VARIANT,
        key_width=config.size("linear_key_head_dim", 128),
        value_width=config.size("linear_value_head_dim", 128),
        kernel=kernel,
        eps=eps,
    )


def _kinds(config: Fields, layers: int) -> list[str]:
    """LINEAR or FULL of each layer."""
    every, kinds = config.size("full_attention_interval", 4), config.get("layer_types")
    if kinds is None:
        return [LINEAR if (i + 1) % every else FULL for i in range(layers)]
    if not isinstance(kinds, list | tuple) or any(kind not in (LINEAR, FULL) for kind in kinds):
        raise config.refused("layer_types", f"is not known here, {LINEAR} or {FULL} for each")
    if len(kinds) != layers:
        raise config.refused("layer_types", f"is no list of num_hidden_layers={layers}")
    return list(kinds)


def _read_memory(spec: Next, memory: LinearMemory, reader: Reader, width: int) -> Params:
    def take(name: str, *shape: int) -> np.ndarray:
        return reader.take(f"{MIXER}.{name}", *shape)

    heads, groups, values = memory.heads, memory.groups, memory.values
    mixed, taps = sum(sizes_of(memory)), memory.recipe.kernel
    found = {"conv": joined(memory, rows_of(memory, take("conv1d.weight", mixed, 1, taps)[:, 0]))}
    if not spec.fused:
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


def _write_memory(spec: Next, memory: LinearMemory, params: Params) -> dict[str, np.ndarray]:
    """The inverse of `_read_memory`."""
    width, groups, w_qkv = len(params["w_qkv"]), memory.groups, params["w_qkv"]
    tensors = {"conv1d.weight": np.concatenate(parted(memory, params["conv"]))[:, None]}
    if spec.fused:
        whole = np.concatenate([w_qkv, params["w_gate"].reshape(width, groups, -1)], axis=2)
        pair = (params[name].reshape(width, groups, -1) for name in ("w_beta", "w_decay"))
        tensors["in_proj_qkvz.weight"] = whole.reshape(width, -1).T
        tensors["in_proj_ba.weight"] = np.stack(list(pair), axis=2).reshape(width, -1).T
    else:
        tensors["in_proj_qkv.weight"] = np.concatenate(parted(memory, w_qkv))
    tensors |= write_named(memory, params, NAMES if spec.fused else NAMES | APART)
    return {f"{MIXER}.{name}": x for name, x in tensors.items()}


def _read(spec: Next, model: LanguageModel, reader: Reader) -> Params:
    block, width = one(patterns.blocks_of(model)[reader.index], Block, spec.official), model.width
    ffn: Any = block.ffn
    if isinstance(ffn, MLP):
        units: Params = read_units(reader, "mlp", width, ffn)
    else:
        units = {
            "router": reader.take("mlp.gate.weight", ffn.experts, width).T,
            "experts": read_experts(ffn, reader, "mlp", EXPERT, width),
            "shared": read_units(reader, SHARED, width, ffn.shared_ffn),
            "shared_gate": reader.take(f"{SHARED}_gate.weight", 1, width)[0],
        }
    if isinstance(block.mixer, LinearMemory):
        mixer = _read_memory(spec, block.mixer, reader, width)
    else:
        mixer = read_attention(one(block.mixer, Attention, spec.official), width, reader)
    return {"mixer": mixer, "ffn": units, **read_norms(reader, width)}


def _write(spec: Next, model: LanguageModel, params: Params) -> dict[str, np.ndarray]:
    ffn, mixer = params["ffn"], params["mixer"]
    tensors = write_norms(params)
    if "w_qkv" in mixer:
        blocks: Any = patterns.blocks_of(model)
        memory = next(x.mixer for x in blocks if isinstance(x.mixer, LinearMemory))
        tensors |= _write_memory(spec, memory, mixer)
    else:
        tensors |= write_attention(mixer, model.width)
    if "router" not in ffn:
        return tensors | write_units(ffn, "mlp")
    return {
        **tensors,
        "mlp.gate.weight": ffn["router"].T,
        **write_experts(ffn["experts"], "mlp", EXPERT),
        **write_units(ffn["shared"], SHARED),
        f"{SHARED}_gate.weight": ffn["shared_gate"][None],
    }


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
    Next("Qwen3_5ForCausalLM", "qwen3_5_text", kv_heads=4, ffn="dense", **ATTENTION),
    Next(
        "Qwen3_5MoeForCausalLM",
        "qwen3_5_moe_text",
        kv_heads=2,
        mixed=True,
        renormalises=True,
        ffn="experts",
        **ATTENTION,
    ),
)
"""The classes that are read and written."""


def _family(spec: Next) -> Family:
    return patterns.family(spec, _read, _write)._replace(spare=_spare)


FAMILIES = {spec.official: _family(spec) for spec in TABLE}
"""Architecture of config.json -> how its folders are read and written."""
