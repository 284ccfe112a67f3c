"""Mamba and Mamba-2 as Hugging Face transformers writes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gam_jax.convert.family import (
    Config,
    Family,
    Tensors,
    check_plain,
    one,
    refuse,
)
from gam_jax.layers import Layer, Mamba, Mamba2, Residual, RMSNorm
from gam_jax.layers.mamba2 import Scales
from gam_jax.models.language import LanguageModel
from gam_jax.params import Params
from sharding.errors import UserError

# Both have blocks of one residual step.


def _residual_model(config: Config, mixer: Layer, tied: bool) -> LanguageModel:
    norm = RMSNorm(eps=config.get("layer_norm_epsilon", 1e-5))
    return LanguageModel(
        Residual(mixer, norm),
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        vocab=config["vocab_size"],
        norm=norm,
        tied=config.get("tie_word_embeddings", tied),
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


def _mamba_model(config: Config) -> LanguageModel:
    refuse(config, use_bias=False, hidden_act="silu")
    width, expand = config["hidden_size"], config.get("expand", 2)
    inner = config.get("intermediate_size", int(expand * width))
    if inner % width:
        raise UserError(f"config.json: expand={expand} is not a whole number")
    rank = config.get("time_step_rank", "auto")
    mixer = Mamba(
        expansion=inner // width,
        state=config.get("state_size", 16),
        kernel=config.get("conv_kernel", 4),
        rank=0 if rank == "auto" else rank,
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


def _read_mamba(model: LanguageModel, tensors: Tensors) -> Params:
    convolution, width = tensors["mixer.conv1d.weight"], model.width
    inner = {
        "w_in": tensors["mixer.in_proj.weight"].T.reshape(width, 2, -1),
        "conv": convolution[:, 0].T,
        "conv_bias": _bias(tensors, "mixer.conv1d", len(convolution)),
        "w_x": tensors["mixer.x_proj.weight"].T,
        "w_dt": tensors["mixer.dt_proj.weight"].T,
        "dt_bias": tensors["mixer.dt_proj.bias"],
        "a_log": tensors["mixer.A_log"].T,
        "skip": tensors["mixer.D"],
        "w_out": tensors["mixer.out_proj.weight"],
    }
    return {"norm": {"scale": tensors["norm.weight"]}, "inner": inner}


def _bias(tensors: Tensors, name: str, size: int) -> np.ndarray:
    """A bias; zeros where there is none, which is the same."""
    return tensors.get(f"{name}.bias", np.zeros(size, np.float32))


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


def _mamba2_model(config: Config) -> LanguageModel:
    refuse(config, use_bias=False, hidden_act="silu")
    low, high = step_limits(config)
    mixer = Mamba2(
        inner=config["num_heads"] * config["head_dim"],
        head=config["head_dim"],
        state=config["state_size"],
        groups=config["n_groups"],
        kernel=config.get("conv_kernel", 4),
        eps=config.get("layer_norm_epsilon", 1e-5),
        dt_min=low,
        dt_max=high,
    )
    return _residual_model(config, mixer, tied=False)


def step_limits(config: Config) -> tuple[float, float]:
    """(dt_min, dt_max) of a time_step_limit, in which infinity is written in several ways."""
    found = config.get("time_step_limit") or (0.0, math.inf)
    low, high = (float(x["__float__"] if isinstance(x, Mapping) else x) for x in found)
    return low, 0.0 if math.isinf(high) else high


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


def _read_mamba2(model: LanguageModel, tensors: Tensors) -> Params:
    mixer = one(model.block.inner, Mamba2, "Mamba2ForCausalLM")  # type: ignore[attr-defined]
    inner = read_ssm(mixer, "mixer", tensors)
    return {"norm": {"scale": tensors["norm.weight"]}, "inner": inner}


def _write_mamba2(model: LanguageModel, params: Params) -> dict[str, np.ndarray]:
    return {"norm.weight": params["norm"]["scale"], **write_ssm("mixer", params["inner"])}


def read_ssm(mixer: Mamba2, name: str, tensors: Tensors) -> dict[str, np.ndarray]:
    """A Mamba-2 mixer: in_proj holds z, x, B, C, dt one after another, conv1d x, B, C."""
    heads, size = (mixer.heads, mixer.head), mixer.heads * mixer.head
    shared = (2, mixer.groups, mixer.state)
    into = tensors[f"{name}.in_proj.weight"].T
    width = len(into)
    zx, bc, dt = np.split(into, (2 * size, into.shape[1] - mixer.heads), axis=1)
    convolution = tensors[f"{name}.conv1d.weight"]
    x, shared_x = np.split(convolution[:, 0].T, (size,), axis=1)
    bias, shared_bias = np.split(_bias(tensors, f"{name}.conv1d", len(convolution)), (size,))
    params = {
        "w_zx": zx.reshape(width, 2, *heads),
        "w_bc": bc.reshape(width, *shared),
        "w_dt": dt,
        "conv_x": x.reshape(-1, *heads),
        "conv_x_bias": bias.reshape(heads),
        "conv_bc": shared_x.reshape(-1, *shared),
        "conv_bc_bias": shared_bias.reshape(shared),
        "dt_bias": tensors[f"{name}.dt_bias"],
        "a_log": tensors[f"{name}.A_log"],
        "skip": tensors[f"{name}.D"],
        "w_out": tensors[f"{name}.out_proj.weight"].reshape(width, *heads),
    }
    if mixer.norm != "none":
        params["norm"] = tensors[f"{name}.norm.weight"].reshape(heads)
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
    "MambaForCausalLM": Family(_mamba_model, _mamba_config, *NAMES, _read_mamba, _write_mamba),
    "Mamba2ForCausalLM": Family(_mamba2_model, _mamba2_config, *NAMES, _read_mamba2, _write_mamba2),
}
"""Architecture of config.json -> how its folders are read and written."""
