"""Mamba and Mamba-2 as Hugging Face transformers writes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gam_jax.convert.family import Config, Family, check_plain, one, refuse
from gam_jax.convert.fields import Fields
from gam_jax.convert.folder import Reader
from gam_jax.convert.same import check_same
from gam_jax.convert.ssm import Names, read_mixer, write_mixer
from gam_jax.layers import Layer, Mamba, Mamba2, Residual, RMSNorm
from gam_jax.models.language import LanguageModel
from gam_jax.params import Params
from sharding.errors import UserError

MAMBA, MAMBA_2 = "MambaForCausalLM", "Mamba2ForCausalLM"
INSIDE = {Mamba: "mixer", Mamba2: "mixer"}
NAMES = Names(
    heads="num_heads",
    head="head_dim",
    state="state_size",
    groups="n_groups",
    kernel="conv_kernel",
    conv_bias="use_conv_bias",
    in_bias="use_bias",
    out_bias="use_bias",
    expand="expand",
)


def residual_model(
    mixer: Layer, width: int, depth: int, vocab: int, eps: float, tied: bool
) -> LanguageModel:
    """Equal blocks of one residual step, with one epsilon for all norms."""
    norm = RMSNorm(eps=eps)
    return LanguageModel(
        Residual(mixer, norm), width=width, depth=depth, vocab=vocab, norm=norm, tied=tied
    )


def _model(config: Fields, mixer: Layer, tied: bool) -> LanguageModel:
    width, depth = config.size("hidden_size"), config.size("num_hidden_layers")
    # Folders that were made of the original code's have its names of the same facts too.
    refuse(config, d_model=width, n_layer=depth, rms_norm=True, ssm_cfg={})
    eps = config.number("layer_norm_epsilon", 1e-5, least=0)
    tied = config.flag("tie_word_embeddings", tied)
    return residual_model(mixer, width, depth, config.size("vocab_size"), eps, tied)


def _written(
    model: LanguageModel, kind: str, official: str, read: Callable[[Config], LanguageModel]
) -> dict[str, Any]:
    """config.json, checked by reading it."""
    check_plain(model, official)
    mixer: Any = one(model.block, Residual, official).inner
    config: dict[str, Any] = {
        "architectures": [official],
        "model_type": kind,
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "vocab_size": model.vocab,
        "layer_norm_epsilon": one(model.norm, RMSNorm, official).eps,
        "tie_word_embeddings": model.tied,
        "hidden_act": "silu",
    }
    if official == MAMBA:
        config |= _written_mamba(one(mixer, Mamba, official))
    else:
        config |= NAMES.written(one(mixer, Mamba2, official), model.width)
    check_same(official, read, model, config)
    return config


def _written_mamba(mixer: Mamba) -> dict[str, Any]:
    return {
        "expand": mixer.expansion,
        "intermediate_size": mixer.inner,
        "state_size": mixer.state,
        "conv_kernel": mixer.kernel,
        "time_step_rank": mixer.steps,
        "use_bias": mixer.in_bias,
        "use_conv_bias": mixer.conv_bias,
    }


def _mamba_model(values: Config) -> LanguageModel:
    config = Fields.of(values)
    refuse(config, hidden_act="silu")
    width, expand = config.size("hidden_size"), config.number("expand", None)
    inner = config.size("intermediate_size", None)
    if inner is None:
        inner = 2 * width if expand is None else expand * width
    if inner % width:
        raise UserError(f"config.json: expand={inner / width:g} is not a whole number")
    if expand is not None and inner != expand * width:
        raise config.refused("expand", f"is not intermediate_size / hidden_size, {inner // width}")
    refuse(config, d_inner=inner)
    rank, biased = config.get("time_step_rank"), config.flag("use_bias", False)
    mixer = Mamba(
        expansion=int(inner // width),
        state=config.size("state_size", 16),
        kernel=config.size("conv_kernel", 4),
        rank=0 if rank in (None, "auto") else config.size("time_step_rank"),
        conv_bias=config.flag("use_conv_bias", True),
        in_bias=biased,
        out_bias=biased,
    )
    return _model(config, mixer, tied=True)


def _mamba2_model(values: Config) -> LanguageModel:
    config = Fields.of(values)
    refuse(config, hidden_act="silu")
    width = config.size("hidden_size")
    eps = config.number("layer_norm_epsilon", 1e-5, least=0)
    mixer = NAMES.read(config, width, eps=eps)
    refuse(config, intermediate_size=mixer.inner)
    return _model(config, mixer, tied=False)


def _mamba_config(model: LanguageModel) -> dict[str, Any]:
    return _written(model, "mamba", MAMBA, _mamba_model)


def _mamba2_config(model: LanguageModel) -> dict[str, Any]:
    return _written(model, "mamba2", MAMBA_2, _mamba2_model)


def read_block(model: LanguageModel, reader: Reader) -> Params:
    """Norm and mixer of a block, as the original code names them too."""
    mixer: Any = one(model.block, Residual, MAMBA).inner
    scale = reader.take("norm.weight", model.width)
    return {
        "norm": {"scale": scale},
        "inner": read_mixer(mixer, reader, model.width, MAMBA, INSIDE),
    }


def write_block(model: LanguageModel, params: Params) -> dict[str, np.ndarray]:
    """The inverse of `read_block`."""
    tensors = write_mixer(params["inner"], model.width, INSIDE)
    return {"norm.weight": params["norm"]["scale"], **tensors}


PLACES = ("backbone.embeddings.weight", "backbone.norm_f.weight", "backbone.layers.")

FAMILIES = {
    MAMBA: Family(_mamba_model, _mamba_config, *PLACES, read_block, write_block, kind="mamba"),
    MAMBA_2: Family(_mamba2_model, _mamba2_config, *PLACES, read_block, write_block, kind="mamba2"),
}
"""Architecture of config.json -> how its folders are read and written."""
