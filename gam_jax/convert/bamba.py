"""Bamba as Hugging Face transformers writes it."""

from __future__ import annotations

from typing import Any

import numpy as np

from gam_jax.convert import patterns
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
    no_ssm,
    read_heads,
    written_heads,
)
from gam_jax.convert.parts import read_norms, read_units, write_norms, write_units
from gam_jax.convert.positions import PARTIAL
from gam_jax.convert.same import check_same
from gam_jax.convert.ssm import Names, read_mixer, write_mixer
from gam_jax.layers import MLP, Attention, Block, Mamba2, RMSNorm
from gam_jax.models.language import LanguageModel
from gam_jax.params import Params

OFFICIAL = "BambaForCausalLM"
NAMES = Names()
TURNED = 0.5
"""The part of a head that is turned where rope_parameters do not tell."""


def _model(values: Config) -> LanguageModel:
    config = Fields.of(values)
    refuse(config, hidden_act="silu", **{PARTIAL: TURNED})
    width, layers = config.size("hidden_size"), config.size("num_hidden_layers", most=LAYERS)
    norm = RMSNorm(eps=config.number("rms_norm_eps", 1e-5, least=0))
    biased = config.flag("attention_bias", False)
    attention = read_heads(config, width, 262_144, partial=TURNED, bias=biased, out_bias=biased)
    config.only("attn_rotary_emb", attention.positions.turned or attention.size)
    mixer = NAMES.read(config, width, eps=norm.eps)
    ffn = MLP(
        activation="swiglu",
        hidden=config.size("intermediate_size"),
        bias=config.flag("mlp_bias", False),
    )
    full = _indices(config)
    blocks = [Block(attention if i in full else mixer, ffn, norm) for i in range(layers)]
    return LanguageModel(
        **patterns.in_order(blocks),
        width=width,
        vocab=config.size("vocab_size"),
        norm=norm,
        tied=config.flag("tie_word_embeddings", False),
    )


def _indices(config: Fields) -> list[int]:
    """The blocks that have attention."""
    found = config.get("attn_layer_indices")
    found = [] if found is None else found
    if not isinstance(found, list | tuple) or not all(type(i) is int for i in found):
        raise config.refused("attn_layer_indices", "is no list of numbers of layers")
    return list(found)


def _config(model: LanguageModel) -> dict[str, Any]:
    check_plain(model, OFFICIAL)
    blocks = [one(block, Block, OFFICIAL) for block in patterns.blocks_of(model)]
    mixers, ffn = [block.mixer for block in blocks], one(blocks[0].ffn, MLP, OFFICIAL)
    check_mixers(mixers, Mamba2, OFFICIAL)
    attention, mixer = first_of(mixers, Attention), first_of(mixers, Mamba2) or no_ssm(model.width)
    config = {
        "architectures": [OFFICIAL],
        "model_type": "bamba",
        "hidden_size": model.width,
        "intermediate_size": hidden_of(ffn, model.width),
        "num_hidden_layers": len(blocks),
        "vocab_size": model.vocab,
        "rms_norm_eps": one(model.norm, RMSNorm, OFFICIAL).eps,
        "tie_word_embeddings": model.tied,
        "hidden_act": "silu",
        "attn_layer_indices": [i for i, x in enumerate(mixers) if isinstance(x, Attention)],
        "attention_bias": attention is not None and attention.bias,
        "mlp_bias": ffn.bias,
        **written_heads(OFFICIAL, attention, model.width, partial=True),
        **NAMES.written(mixer, model.width),
    }
    check_same(OFFICIAL, _model, model, config)
    return config


def _read(model: LanguageModel, reader: Reader) -> Params:
    block, width = one(patterns.blocks_of(model)[reader.index], Block, OFFICIAL), model.width
    return {
        "mixer": read_mixer(block.mixer, reader, width, OFFICIAL, INSIDE),
        "ffn": read_units(reader, "feed_forward", width, one(block.ffn, MLP, OFFICIAL)),
        **read_norms(reader, width, NORMS),
    }


def _write(model: LanguageModel, params: Params) -> dict[str, np.ndarray]:
    return {
        **write_norms(params, NORMS),
        **write_mixer(params["mixer"], model.width, INSIDE),
        **write_units(params["ffn"], "feed_forward"),
    }


FAMILIES = {
    OFFICIAL: family(
        Spec("bamba", _model, _config), _read, _write, norm="model.final_layernorm.weight"
    )
}
"""Architecture of config.json -> how its folders are read and written."""
