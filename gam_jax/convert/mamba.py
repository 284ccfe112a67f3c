"""Mamba and Mamba-2 as Hugging Face transformers writes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gam_jax.convert.family import (
    Config,
    Family,
    check_plain,
    one,
    refuse,
)
from gam_jax.convert.fields import Fields, is_number
from gam_jax.convert.folder import Reader
from gam_jax.layers import Layer, Mamba, Mamba2, Residual, RMSNorm
from gam_jax.layers.mamba2 import Scales
from gam_jax.models.language import LanguageModel
from gam_jax.params import Params
from sharding.errors import UserError

CONV_BIAS = "use_conv_bias"

# Both have blocks of one residual step.


def _residual_model(config: Fields, mixer: Layer, tied: bool) -> LanguageModel:
    norm = RMSNorm(eps=config.number("layer_norm_epsilon", 1e-5, least=0))
    width, depth = config.size("hidden_size"), config.size("num_hidden_layers")
    # Folders that were made of the original code's have its names of the same facts too.
    refuse(config, d_model=width, n_layer=depth, rms_norm=True, ssm_cfg={})
    return LanguageModel(
        Residual(mixer, norm),
        width=width,
        depth=depth,
        vocab=config.size("vocab_size"),
        norm=norm,
        tied=config.flag("tie_word_embeddings", tied),
    )


def _residual_config(model: LanguageModel, kind: str, official: str) -> dict[str, Any]:
    block = one(model.block, Residual, official)
    norm = one(block.norm, RMSNorm, official)
    check_plain(model, official)
    check_one_norm(model, norm, official)
    return {
        "architectures": [official],
        "model_type": kind,
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "vocab_size": model.vocab,
        "layer_norm_epsilon": norm.eps,
        "tie_word_embeddings": model.tied,
        "hidden_act": "silu",
        "use_bias": False,
        "use_conv_bias": True,
    }


def check_one_norm(model: LanguageModel, norm: RMSNorm, official: str) -> None:
    """A UserError if the last norm is not like those of the blocks."""
    if model.norm != norm:
        raise UserError(
            f"{official} of transformers has one epsilon for all norms: this model cannot be "
            f"written as that"
        )


def _mamba_model(values: Config) -> LanguageModel:
    config = Fields.of(values)
    refuse(config, use_bias=False, hidden_act="silu")
    config.flag(CONV_BIAS, True)
    width, expand = config.size("hidden_size"), config.number("expand", None)
    inner = config.size("intermediate_size", None)
    if inner is None:
        inner = 2 * width if expand is None else expand * width
    if inner % width:
        raise UserError(f"config.json: expand={inner / width:g} is not a whole number")
    if expand is not None and inner != expand * width:
        raise config.refused("expand", f"is not intermediate_size / hidden_size, {inner // width}")
    refuse(config, d_inner=inner)
    rank = config.get("time_step_rank")
    mixer = Mamba(
        expansion=int(inner // width),
        state=config.size("state_size", 16),
        kernel=config.size("conv_kernel", 4),
        rank=0 if rank in (None, "auto") else config.size("time_step_rank"),
    )
    return _residual_model(config, mixer, tied=True)


def _mamba_config(model: LanguageModel) -> dict[str, Any]:
    config = _residual_config(model, "mamba", "MambaForCausalLM")
    mixer = one(model.block.inner, Mamba, "MambaForCausalLM")  # type: ignore[attr-defined]
    return config | {
        "expand": mixer.expansion,
        "intermediate_size": mixer.inner,
        "state_size": mixer.state,
        "conv_kernel": mixer.kernel,
        "time_step_rank": mixer.rank or math.ceil(model.width / 16),
    }


def _read_mamba(model: LanguageModel, reader: Reader) -> Params:
    mixer = one(model.block.inner, Mamba, "MambaForCausalLM")  # type: ignore[attr-defined]
    width, size, state = model.width, mixer.inner, mixer.state
    rank = mixer.rank or math.ceil(width / 16)
    convolution = reader.take("mixer.conv1d.weight", size, 1, mixer.kernel)
    inner = {
        "w_in": reader.take("mixer.in_proj.weight", 2 * size, width).T.reshape(width, 2, size),
        "conv": convolution[:, 0].T,
        "conv_bias": _bias(reader, "mixer.conv1d.bias", size, CONV_BIAS),
        "w_x": reader.take("mixer.x_proj.weight", rank + 2 * state, size).T,
        "w_dt": reader.take("mixer.dt_proj.weight", size, rank).T,
        "dt_bias": reader.take("mixer.dt_proj.bias", size),
        "a_log": reader.take("mixer.A_log", size, state).T,
        "skip": reader.take("mixer.D", size),
        "w_out": reader.take("mixer.out_proj.weight", width, size),
    }
    return {"norm": {"scale": reader.take("norm.weight", width)}, "inner": inner}


def _bias(reader: Reader, name: str, size: int, flag: str) -> np.ndarray:
    """A bias; zeros where config.json says that there is none, which is the same."""
    if not reader.config.flag(flag, True):
        return np.zeros(size, np.float32)
    return reader.take(name, size)


def _write_mamba(model: LanguageModel, params: Params) -> dict[str, np.ndarray]:
    inner, width = params["inner"], model.width
    return {
        "norm.weight": params["norm"]["scale"],
        "mixer.in_proj.weight": inner["w_in"].reshape(width, -1).T,
        "mixer.conv1d.weight": inner["conv"].T[:, None],
        "mixer.conv1d.bias": inner["conv_bias"],
        "mixer.x_proj.weight": inner["w_x"].T,
        "mixer.dt_proj.weight": inner["w_dt"].T,
        "mixer.dt_proj.bias": inner["dt_bias"],
        "mixer.A_log": inner["a_log"].T,
        "mixer.D": inner["skip"],
        "mixer.out_proj.weight": inner["w_out"],
    }


def _mamba2_model(values: Config) -> LanguageModel:
    config = Fields.of(values)
    refuse(config, use_bias=False, hidden_act="silu")
    config.flag(CONV_BIAS, True)
    low, high = step_limits(config)
    heads, head = config.size("num_heads"), config.size("head_dim")
    refuse(config, intermediate_size=heads * head)
    mixer = Mamba2(
        inner=heads * head,
        head=head,
        state=config.size("state_size"),
        groups=config.size("n_groups"),
        kernel=config.size("conv_kernel", 4),
        eps=config.number("layer_norm_epsilon", 1e-5, least=0),
        dt_min=low,
        dt_max=high,
    )
    model = _residual_model(config, mixer, tied=False)
    if config.number("expand", heads * head / model.width) * model.width != heads * head:
        raise config.refused("expand", "is not num_heads * head_dim / hidden_size")
    return model


def step_limits(config: Fields) -> tuple[float, float]:
    """(dt_min, dt_max) of a time_step_limit, in which infinity is written in several ways."""
    found = config.get("time_step_limit")
    if found is None:
        return 0.0, 0.0
    bounds = [_bound(x) for x in found] if isinstance(found, list | tuple) else []
    if len(bounds) != 2 or None in bounds or not 0 <= bounds[0] < bounds[1]:
        raise config.refused("time_step_limit", "is no list of two numbers, the smaller one first")
    return bounds[0], 0.0 if math.isinf(bounds[1]) else bounds[1]


def _bound(value: Any) -> Any:
    """A number or infinity; None for what is neither."""
    word: Any = value.get("__float__") if isinstance(value, Mapping) else value
    if word in ("Infinity", math.inf):
        return math.inf
    return float(word) if word is value and is_number(word) else None


def write_limits(mixer: Mamba2) -> list[Any]:
    """The inverse of `step_limits`; infinity as transformers itself writes it in JSON."""
    return [mixer.dt_min, mixer.dt_max or {"__float__": "Infinity"}]


def _mamba2_config(model: LanguageModel) -> dict[str, Any]:
    official = "Mamba2ForCausalLM"
    config = _residual_config(model, "mamba2", official)
    mixer = one(model.block.inner, Mamba2, official)  # type: ignore[attr-defined]
    same = mixer.eps == config["layer_norm_epsilon"] and mixer.scales == Scales()
    whole = mixer.heads * mixer.head % model.width == 0
    if mixer.norm != "gate_first" or not same or not whole:
        raise UserError(
            f"{official} of transformers norms after the gate, has one epsilon, no scales and a "
            f"whole expansion: this model cannot be written as that"
        )
    return config | {
        "expand": mixer.heads * mixer.head // model.width,
        "num_heads": mixer.heads,
        "head_dim": mixer.head,
        "state_size": mixer.state,
        "n_groups": mixer.groups,
        "conv_kernel": mixer.kernel,
        "time_step_limit": write_limits(mixer),
    }


def _read_mamba2(model: LanguageModel, reader: Reader) -> Params:
    mixer = one(model.block.inner, Mamba2, "Mamba2ForCausalLM")  # type: ignore[attr-defined]
    inner = read_ssm(mixer, "mixer", reader, model.width, CONV_BIAS)
    return {"norm": {"scale": reader.take("norm.weight", model.width)}, "inner": inner}


def _write_mamba2(model: LanguageModel, params: Params) -> dict[str, np.ndarray]:
    return {"norm.weight": params["norm"]["scale"], **write_ssm("mixer", params["inner"])}


def read_ssm(
    mixer: Mamba2, name: str, reader: Reader, width: int, flag: str
) -> dict[str, np.ndarray]:
    """A Mamba-2 mixer: in_proj holds z, x, B, C, dt one after another, conv1d x, B, C.

    Args:
      mixer: the layer.
      name: what its arrays' names begin with.
      reader: of its block.
      width: D.
      flag: the field of config.json that says whether the convolution has a bias.
    """
    heads, size = (mixer.heads, mixer.head), mixer.heads * mixer.head
    shared = (2, mixer.groups, mixer.state)
    mixed = size + math.prod(shared)
    into = reader.take(f"{name}.in_proj.weight", size + mixed + mixer.heads, width).T
    zx, bc, dt = np.split(into, (2 * size, size + mixed), axis=1)
    convolution = reader.take(f"{name}.conv1d.weight", mixed, 1, mixer.kernel)
    x, shared_x = np.split(convolution[:, 0].T, (size,), axis=1)
    bias, shared_bias = np.split(_bias(reader, f"{name}.conv1d.bias", mixed, flag), (size,))
    params = {
        "w_zx": zx.reshape(width, 2, *heads),
        "w_bc": bc.reshape(width, *shared),
        "w_dt": dt,
        "conv_x": x.reshape(-1, *heads),
        "conv_x_bias": bias.reshape(heads),
        "conv_bc": shared_x.reshape(-1, *shared),
        "conv_bc_bias": shared_bias.reshape(shared),
        "dt_bias": reader.take(f"{name}.dt_bias", mixer.heads),
        "a_log": reader.take(f"{name}.A_log", mixer.heads),
        "skip": reader.take(f"{name}.D", mixer.heads),
        "w_out": reader.take(f"{name}.out_proj.weight", width, size).reshape(width, *heads),
    }
    if mixer.norm != "none":
        params["norm"] = reader.take(f"{name}.norm.weight", size).reshape(heads)
    return params


def write_ssm(name: str, params: Params) -> dict[str, np.ndarray]:
    """The inverse of `read_ssm`."""
    width, taps = len(params["w_dt"]), len(params["conv_x"])
    into = [params[part].reshape(width, -1) for part in ("w_zx", "w_bc", "w_dt")]
    convolution = [params[part].reshape(taps, -1) for part in ("conv_x", "conv_bc")]
    biases = [params[part].reshape(-1) for part in ("conv_x_bias", "conv_bc_bias")]
    tensors = {
        "in_proj.weight": np.concatenate(into, axis=1).T,
        "conv1d.weight": np.concatenate(convolution, axis=1).T[:, None],
        "conv1d.bias": np.concatenate(biases),
        "dt_bias": params["dt_bias"],
        "A_log": params["a_log"],
        "D": params["skip"],
        "out_proj.weight": params["w_out"].reshape(width, -1),
    }
    if "norm" in params:
        tensors["norm.weight"] = params["norm"].reshape(-1)
    return {f"{name}.{part}": tensor for part, tensor in tensors.items()}


NAMES = ("backbone.embeddings.weight", "backbone.norm_f.weight", "backbone.layers.")

FAMILIES = {
    "MambaForCausalLM": Family(
        _mamba_model, _mamba_config, *NAMES, _read_mamba, _write_mamba, kind="mamba"
    ),
    "Mamba2ForCausalLM": Family(
        _mamba2_model, _mamba2_config, *NAMES, _read_mamba2, _write_mamba2, kind="mamba2"
    ),
}
"""Architecture of config.json -> how its folders are read and written."""
