"""Kimi Linear as Hugging Face transformers writes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from gam_jax.convert import patterns
from gam_jax.convert.attentions import FULL
from gam_jax.convert.deepseek import TRAINED, Deep
from gam_jax.convert.experts import check_experts, hidden_units
from gam_jax.convert.family import Config, one, refuse
from gam_jax.convert.fields import Fields
from gam_jax.convert.folder import Reader
from gam_jax.convert.latent import read_latent_arrays, write_latent_arrays
from gam_jax.convert.memories import read_apart, read_named, write_apart, write_named
from gam_jax.convert.parts import read_units
from gam_jax.convert.qwen_next import LINEAR, listed, written_kinds
from gam_jax.layers import MLP, LatentAttention, Layer, LinearMemory, MoE
from gam_jax.models.language import LanguageModel
from gam_jax.ops.routing import Router
from gam_jax.params import Params

MIXER = "self_attn"
NAMES = {
    "w_beta": "b_proj.weight",
    "w_decay_in": "f_a_proj.weight",
    "w_decay_out": "f_b_proj.weight",
    "decay_bias": "dt_bias",
    "norm": "o_norm.weight",
    "w_gate_in": "g_a_proj.weight",
    "w_gate_out": "g_b_proj.weight",
    "w_out": "o_proj.weight",
}
OLD = {
    "max_position_embeddings": "model_max_length",
    "norm_topk_prob": "moe_renormalize",
    "n_group": "num_expert_group",
    "num_local_experts": "num_experts",
    "num_experts_per_tok": "num_experts_per_token",
    "n_shared_experts": "num_shared_experts",
}
"""Names of transformers' other classes -> those that this class is written with."""
INSIDE = "linear_attn_config"
OF_MEMORY = {
    "linear_head_dim": ("head_dim", 128),
    "linear_num_heads": ("num_heads", 32),
    "linear_conv_kernel_dim": ("short_conv_kernel_size", 4),
}
"""Field -> its name in linear_attn_config, which released folders have, and its default."""
DENSE, SPARSE = "dense", "sparse"
PADDING = 163_839
"""The id of padding where config.json does not tell."""


@dataclasses.dataclass(frozen=True)
class Kimi(Deep):
    """Kimi Delta Attention, latent attention without positions in some layers, and experts."""

    mixer: ClassVar[type[Layer]] = Layer

    def read(self, values: Config) -> LanguageModel:
        """The model of a config.json; a UserError where this project cannot express it."""
        config = Fields.of(values)
        refuse(config, hidden_act="silu", tie_word_embeddings=False, mla_use_nope=True)
        refuse(config, use_grouped_topk=True, moe_router_activation_func="sigmoid")
        refuse(config, moe_layer_freq=1, num_nextn_predict_layers=0)
        return super().read(config)

    def write(self, model: LanguageModel) -> dict[str, Any]:
        """The inverse of `read`. A small vocabulary lacks the padding that the class assumes."""
        config = super().write(model)
        return config if (model.vocab or 0) > PADDING else {**config, "pad_token_id": None}

    def attentions(self, config: Fields, width: int, layers: int, eps: float) -> Sequence[Any]:
        """The mixer of each layer."""
        kinds, full, memory = _kinds(config, layers), _attention(config), _memory(config, eps)
        return [memory if kind == LINEAR else full for kind in kinds]

    def written(self, attentions: Sequence[Any]) -> dict[str, Any]:
        """The inverse of `attentions`."""
        memories = [mixer for mixer in attentions if isinstance(mixer, LinearMemory)]
        others = [mixer for mixer in attentions if not isinstance(mixer, LinearMemory)]
        memory = memories[0] if memories else one(others[0], LinearMemory, self.official)
        full = [one(mixer, LatentAttention, self.official) for mixer in others]
        attention = full[0] if full else LatentAttention(heads=1, rotary=0.0)
        values = attention.value_size or attention.head_size
        return {
            "layer_types": written_kinds(attentions),
            "linear_head_dim": memory.keys,
            "linear_num_heads": memory.heads,
            "linear_conv_kernel_dim": memory.recipe.kernel,
            "num_attention_heads": attention.heads,
            "num_key_value_heads": attention.heads,
            "q_lora_rank": attention.query_latent or None,
            "kv_lora_rank": attention.latent,
            "qk_nope_head_dim": attention.head_size,
            "qk_rope_head_dim": attention.rotary_size,
            "v_head_dim": values,
            "attention_bias": attention.bias,
            OLD["max_position_embeddings"]: attention.context,
        }

    def experts(self, config: Fields) -> MoE:
        """Those of a block that has some."""
        return MoE(
            experts=config.size(_told(config, "num_local_experts"), self.routed),
            chosen=config.size(_told(config, "num_experts_per_tok"), self.chosen),
            ffn=hidden_units(config, "moe_intermediate_size", self.hidden),
            shared=config.size(_told(config, "n_shared_experts"), 1, least=0),
            router=Router(
                score="sigmoid",
                renormalise=config.flag(_told(config, "norm_topk_prob"), True),
                scale=config.number("routed_scaling_factor", self.scale, above=0),
                groups=config.size(_told(config, "n_group"), self.groups),
                chosen_groups=config.size("topk_group", self.chosen_groups),
                **TRAINED,
            ),
        )

    def dense(self, config: Fields, layers: int) -> list[bool]:
        """Whether each block is dense."""
        if config.get("mlp_layer_types") is None:
            return super().dense(config, layers)
        return [kind == DENSE for kind in listed(config, "mlp_layer_types", layers, DENSE, SPARSE)]

    def written_experts(self, layer: Layer, dense: Sequence[bool]) -> dict[str, Any]:
        """The inverse of `experts` and `dense`."""
        told: dict[str, Any] = {"mlp_layer_types": [DENSE if x else SPARSE for x in dense]}
        if all(dense):
            one(layer, MLP, self.official)
            return told
        ffn = one(layer, MoE, self.official)
        router = ffn.router
        return told | {
            "moe_intermediate_size": check_experts(ffn, self.official),
            "routed_scaling_factor": router.scale,
            "topk_group": router.chosen_groups or router.groups,
            OLD["num_local_experts"]: ffn.experts,
            OLD["num_experts_per_tok"]: ffn.chosen,
            OLD["n_shared_experts"]: ffn.shared,
            OLD["norm_topk_prob"]: router.renormalise,
            OLD["n_group"]: router.groups,
        }

    def read_mixer(self, mixer: Layer, width: int, reader: Reader) -> Params:
        """The parameters of a memory or of latent attention."""
        if not isinstance(mixer, LinearMemory):
            return read_latent_arrays(one(mixer, LatentAttention, self.official), width, reader)

        def take(name: str, *shape: int) -> np.ndarray:
            return reader.take(f"{MIXER}.{name}", *shape)

        rates = take("A_log", 1, 1, mixer.heads, 1)
        own = {"a_log": rates.reshape(mixer.heads), **read_apart(mixer, take)}
        return own | read_named(mixer, take, NAMES)

    def write_mixer(self, params: Params, width: int) -> dict[str, np.ndarray]:
        """The inverse of `read_mixer`."""
        if "w_qkv" not in params:
            return write_latent_arrays(params)
        own = {"A_log": params["a_log"].reshape(1, 1, -1, 1), **write_apart(params)}
        own |= write_named(params, NAMES)
        return {f"{MIXER}.{name}": x for name, x in own.items()}

    def read_ffn(self, ffn: Any, width: int, reader: Reader) -> Params:
        """As released folders name a dense one's arrays, or as transformers writes them."""
        if isinstance(ffn, MLP) and "mlp.gate_proj.weight" in reader:
            return read_units(reader, "mlp", width, ffn)
        return super().read_ffn(ffn, width, reader)


def _told(config: Fields, name: str) -> str:
    """By which of its two names a field is told.

    Raises:
      UserError: by both, with unlike values.
    """
    old = OLD[name]
    new, own = config.get(name), config.get(old)
    if new is not None and own is not None and new != own:
        raise config.refused(name, f"is not the same as {old}={own!r}")
    return name if own is None and new is not None else old


def _attention(config: Fields) -> LatentAttention:
    size, shared = config.size("qk_nope_head_dim", 128), config.size("qk_rope_head_dim", 64)
    heads = config.size("num_attention_heads", 32)
    refuse(config, qk_head_dim=size + shared, num_key_value_heads=heads)
    return LatentAttention(
        heads=heads,
        latent=config.size("kv_lora_rank", 512),
        query_latent=config.size("q_lora_rank", 0),
        head_size=size,
        rotary_size=shared,
        value_size=config.size("v_head_dim", 128),
        rotary=0.0,
        context=config.size(_told(config, "max_position_embeddings"), 1_048_576),
        bias=config.flag("attention_bias", False),
    )


def _memory(config: Fields, eps: float) -> LinearMemory:
    inside, found = config.part(INSIDE), {}
    for name, (old, default) in OF_MEMORY.items():
        own = config.size(name, inside.size(old, default))
        if inside.size(old, own) != own:
            raise config.refused(name, f"is not {INSIDE}.{old}={inside.get(old)!r}")
        found[name] = own
    kernel = found["linear_conv_kernel_dim"]
    if kernel < 2:
        raise config.refused("linear_conv_kernel_dim", "is not read here: 2 or more")
    return LinearMemory(
        heads=found["linear_num_heads"],
        variant="kimi_delta",
        key_width=found["linear_head_dim"],
        value_width=found["linear_head_dim"],
        kernel=kernel,
        gate_bias=False,
        eps=eps,
    )


def _kinds(config: Fields, layers: int) -> list[str]:
    """LINEAR or FULL of each layer."""
    inside = config.part(INSIDE)
    full, linear = inside.get("full_attn_layers"), inside.get("kda_layers")
    found = [FULL if i and i % 4 == 0 else LINEAR for i in range(layers)]
    if full is not None and linear is not None:  # which count from 1
        if not all(isinstance(x, list | tuple) for x in (full, linear)) or sorted(
            [i for i in (*full, *linear) if type(i) is int]
        ) != list(range(1, layers + 1)):
            raise inside.refused("kda_layers", "and full_attn_layers do not name each layer once")
        found = [FULL if i + 1 in full else LINEAR for i in range(layers)]
    if config.get("layer_types") is None:
        return found
    told = listed(config, "layer_types", layers, LINEAR, FULL)
    if full is not None and linear is not None and told != found:
        raise config.refused("layer_types", f"is not what {INSIDE} says")
    return told


KIMI = Kimi(
    "KimiLinearForCausalLM",
    "kimi_linear",
    place="block_sparse_moe",
    units={"gate": "w1", "in": "w3", "out": "w2"},
    biases="all",
    eps=1e-5,
    scale=2.446,
    routed=256,
    hidden=1024,
)

FAMILIES = {KIMI.official: patterns.family(KIMI, Kimi.read_block, Kimi.write_block)}
"""Architecture of config.json -> how its folders are read and written."""
