"""OLMo Hybrid as Hugging Face transformers writes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from gam_jax.convert import patterns
from gam_jax.convert.attentions import FULL, Attentions
from gam_jax.convert.family import Config, check_plain, one, refuse
from gam_jax.convert.fields import LAYERS, Fields
from gam_jax.convert.folder import Reader
from gam_jax.convert.memories import read_apart, read_named, write_apart, write_named
from gam_jax.convert.parts import (
    read_attention,
    read_norms,
    read_units,
    write_attention,
    write_norms,
    write_units,
)
from gam_jax.convert.positions import rope
from gam_jax.convert.qwen_next import LINEAR, listed, written_kinds
from gam_jax.convert.same import check_same
from gam_jax.layers import MLP, Attention, Block, LinearMemory, RMSNorm
from gam_jax.models.language import LanguageModel
from gam_jax.ops.rotary import Positions
from gam_jax.params import Params

MIXER = "linear_attn"
NAMES = {
    "w_beta": "b_proj.weight",
    "w_decay": "a_proj.weight",
    "decay_bias": "dt_bias",
    "a_log": "A_log",
    "w_gate": "g_proj.weight",
    "norm": "o_norm.weight",
    "w_out": "o_proj.weight",
}
OF_MEMORY = {"mixer_norm": "attention_layer_norm", "ffn_norm": "feedforward_layer_norm"}
OF_ATTENTION = {
    "mixer_out_norm": "feedforward_layer_norm",
    "ffn_out_norm": "post_feedforward_layernorm",
}
"""Norms as transformers 5.24 writes them: it renames the first one of attention's blocks too."""
BEFORE = {"mixer_out_norm": "post_attention_layernorm"}
"""As it called that one before, and reads it still."""
NORM_EPS = 1e-5
"""Of the norms in memories, whatever config.json says of the others."""


@dataclasses.dataclass(frozen=True)
class Hybrid(Attentions):
    """Gated delta rules behind norms, and attention whose output is normed."""

    def read(self, values: Config) -> LanguageModel:
        """The model of a config.json; a UserError where this project cannot express it."""
        config = Fields.of(values)
        refuse(config, hidden_act="silu")
        width, layers = config.size("hidden_size"), config.size("num_hidden_layers", most=LAYERS)
        norm = RMSNorm(eps=config.number("rms_norm_eps", 1e-6, least=0))
        hidden = config.size("intermediate_size")
        ffn = MLP(activation="swiglu", hidden=hidden, bias=False)
        memory = Block(_memory(config, width), ffn, norm)
        attention = Block(self.attentions(config, width, layers, norm.eps)[0], ffn, norm)
        attention = dataclasses.replace(attention, norms="out")
        kinds = _kinds(config, layers)
        return LanguageModel(
            **patterns.in_order([memory if kind == LINEAR else attention for kind in kinds]),
            width=width,
            vocab=config.size("vocab_size"),
            norm=norm,
            tied=config.flag("tie_word_embeddings", False),
        )

    def attentions(
        self, config: Fields, width: int, layers: int, eps: float
    ) -> Sequence[Attention]:
        """Those of all layers are equal; rope_theta null turns nothing."""
        found, given = super().attentions(config, width, layers, eps), rope(config)
        if "rope_theta" not in given or given["rope_theta"] is not None:
            return found
        return [dataclasses.replace(one, rotary=0.0, positions=Positions()) for one in found]

    def _windows(self, config: Fields, layers: int) -> tuple[list[str], int]:
        """layer_types says here which layers have attention at all."""
        return [FULL] * layers, 0

    def write(self, model: LanguageModel) -> dict[str, Any]:
        """The inverse of `read`; a UserError where transformers cannot express the model."""
        check_plain(model, self.official)
        blocks = [one(block, Block, self.official) for block in patterns.blocks_of(model)]
        mixers: list[Any] = [block.mixer for block in blocks]
        memory = next((x for x in mixers if isinstance(x, LinearMemory)), mixers[0])
        attention = next((x for x in mixers if not isinstance(x, LinearMemory)), mixers[0])
        memory = one(memory, LinearMemory, self.official)
        attention = one(attention, Attention, self.official)
        ffn, norm = one(blocks[0].ffn, MLP, self.official), one(model.norm, RMSNorm, self.official)
        config = {
            "architectures": [self.official],
            "model_type": self.kind,
            "hidden_size": model.width,
            "intermediate_size": ffn.hidden or ffn.expansion * model.width,
            "num_hidden_layers": len(blocks),
            "layer_types": written_kinds(mixers),
            "linear_num_value_heads": memory.heads,
            "linear_num_key_heads": memory.groups,
            "linear_key_head_dim": memory.keys,
            "linear_value_head_dim": memory.values,
            "linear_conv_kernel_dim": memory.recipe.kernel,
            "linear_allow_neg_eigval": memory.negative,
            "vocab_size": model.vocab,
            "rms_norm_eps": norm.eps,
            "tie_word_embeddings": model.tied,
            "hidden_act": "silu",
            **self.written([attention]),
        }
        if not attention.rotary:
            config["rope_parameters"] = {"rope_type": "default", "rope_theta": None}
            del config["rope_theta"]
        if (model.vocab or 0) <= PADDING:
            config["pad_token_id"] = None
        check_same(self.official, self.read, model, config)
        return config


def _memory(config: Fields, width: int) -> LinearMemory:
    heads = config.size("num_attention_heads")
    keys, values = (config.size(f"linear_num_{x}_heads", heads) for x in ("key", "value"))
    if values % keys:
        raise config.refused("linear_num_key_heads", f"does not divide {values} heads of values")
    size = config.size("linear_key_head_dim", int(0.75 * width / keys))
    return LinearMemory(
        heads=values,
        key_heads=keys,
        key_width=size,
        value_width=config.size("linear_value_head_dim", 2 * size),
        kernel=config.size("linear_conv_kernel_dim", 4, least=2),
        negative=config.flag("linear_allow_neg_eigval", True),
        eps=NORM_EPS,
    )


def _kinds(config: Fields, layers: int) -> list[str]:
    """LINEAR or FULL of each layer; both are needed."""
    if config.get("layer_types") is None:
        return [FULL if i % 4 == 3 or i == layers - 1 < 3 else LINEAR for i in range(layers)]
    kinds = listed(config, "layer_types", layers, LINEAR, FULL)
    if len(set(kinds)) < 2:
        raise config.refused("layer_types", f"must have both {LINEAR} and {FULL}")
    return kinds


def _read(spec: Hybrid, model: LanguageModel, reader: Reader) -> Params:
    block, width = one(patterns.blocks_of(model)[reader.index], Block, spec.official), model.width

    def take(name: str, *shape: int) -> np.ndarray:
        return reader.take(f"{MIXER}.{name}", *shape)

    if isinstance(block.mixer, LinearMemory):
        memory, norms = block.mixer, OF_MEMORY
        mixer = {**read_apart(memory, take), **read_named(memory, take, NAMES)}
    else:
        before = f"{BEFORE['mixer_out_norm']}.weight" in reader
        norms = OF_ATTENTION | (BEFORE if before else {})
        mixer = read_attention(one(block.mixer, Attention, spec.official), width, reader)
    ffn = read_units(reader, "mlp", width, one(block.ffn, MLP, spec.official))
    return {"mixer": mixer, "ffn": ffn, **read_norms(reader, width, norms)}


def _write(spec: Hybrid, model: LanguageModel, params: Params) -> dict[str, np.ndarray]:
    mixer, units = params["mixer"], write_units(params["ffn"], "mlp")
    if "w_qkv" not in mixer:
        attention = write_attention(mixer, model.width)
        return {**write_norms(params, OF_ATTENTION), **attention, **units}
    own = {**write_apart(mixer), **write_named(mixer, NAMES)}
    own = {f"{MIXER}.{name}": x for name, x in own.items()}
    return {**write_norms(params, OF_MEMORY), **own, **units}


PADDING = 100_277
"""The id of padding where config.json does not tell."""
OLMO = Hybrid("OlmoHybridForCausalLM", "olmo_hybrid", context=65_536, biases="all", qk_norm="all")

FAMILIES = {OLMO.official: patterns.family(OLMO, _read, _write)}
"""Architecture of config.json -> how its folders are read and written."""
