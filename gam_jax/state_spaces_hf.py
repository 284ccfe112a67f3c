"""Mamba, Mamba-2 and Falcon-H1 as Hugging Face transformers writes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from gam_jax.layers import MLP, Attention, Block, FalconH1, Layer, Mamba, Mamba2, Residual, RMSNorm
from gam_jax.layers.mamba2 import Scales
from gam_jax.model import LanguageModel
from gam_jax.params import Params
from sharding.errors import UserError

Config = Mapping[str, Any]
"""What a config.json holds."""

Tensors = Mapping[str, np.ndarray]
"""Arrays of one block by the names they have inside it."""

LayerType = TypeVar("LayerType", bound=Layer)


class Family(NamedTuple):
    """How a class of transformers becomes a model here, and back.

    Attributes:
      model: config.json -> model.
      config: model -> config.json; a UserError where transformers cannot express the model.
      embedding, norm, blocks: names of the embedding, the last norm and, before a number, blocks.
      read: (model, tensors of a block) -> parameters of a block.
      write: the inverse of `read`.
    """

    model: Callable[[Config], LanguageModel]
    config: Callable[[LanguageModel], dict[str, Any]]
    embedding: str
    norm: str
    blocks: str
    read: Callable[[LanguageModel, Tensors], Params]
    write: Callable[[LanguageModel, Params], dict[str, np.ndarray]]


def _refuse(config: Config, **only: Any) -> None:
    """A UserError for each field that is given and is not the one value that is known here."""
    for name, value in only.items():
        found = config.get(name)
        if found not in (None, value):
            raise UserError(
                f"config.json: {name}={found!r} of model_type {config.get('model_type')} is not "
                f"known here, {value!r} alone"
            )


def _one(model: LanguageModel, layer: Any, cls: type[LayerType], official: str) -> LayerType:
    if not isinstance(layer, cls):
        raise UserError(
            f"{official} of transformers has a {cls.__name__} where this model has a "
            f"{type(layer).__name__}: it cannot be written as that"
        )
    return layer


# Mamba and Mamba-2: blocks of one residual step.


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
    block = _one(model, model.block, Residual, official)
    norm = _one(model, block.norm, RMSNorm, official)
    _plain(model, official)
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


def _plain(model: LanguageModel, official: str, scaled: bool = False) -> None:
    scales = model.embedding_scale, model.logit_scale
    if model.context or not isinstance(model.norm, RMSNorm) or (not scaled and scales != (1, 1)):
        raise UserError(
            f"{official} of transformers has no learned positions, a last RMSNorm"
            f"{'' if scaled else ' and no scales'}: this model cannot be written as that"
        )


def _mamba_model(config: Config) -> LanguageModel:
    _refuse(config, use_bias=False, hidden_act="silu")
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
    mixer = _one(model, model.block.inner, Mamba, "MambaForCausalLM")  # type: ignore[attr-defined]
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
    _refuse(config, use_bias=False, hidden_act="silu")
    low, high = _step_limits(config)
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


def _step_limits(config: Config) -> tuple[float, float]:
    """(dt_min, dt_max) of a time_step_limit, in which infinity is written in several ways."""
    found = config.get("time_step_limit") or (0.0, math.inf)
    low, high = (float(x["__float__"] if isinstance(x, Mapping) else x) for x in found)
    return low, 0.0 if math.isinf(high) else high


def _mamba2_config(model: LanguageModel) -> dict[str, Any]:
    official = "Mamba2ForCausalLM"
    config = _residual_config(model, "mamba2", official)
    mixer = _one(model, model.block.inner, Mamba2, official)  # type: ignore[attr-defined]
    same = mixer.heads * mixer.head == 2 * model.width or mixer.inner % model.width == 0
    if mixer.norm != "gate_first" or mixer.scales != Scales() or not same:
        raise UserError(
            f"{official} of transformers norms after the gate, has no scales and a whole "
            f"expansion: this model cannot be written as that"
        )
    return config | {
        "expand": mixer.heads * mixer.head // model.width,
        "num_heads": mixer.heads,
        "head_dim": mixer.head,
        "state_size": mixer.state,
        "n_groups": mixer.groups,
        "conv_kernel": mixer.kernel,
        "time_step_limit": [mixer.dt_min, mixer.dt_max or math.inf],
    }


def _read_mamba2(model: LanguageModel, tensors: Tensors) -> Params:
    mixer = _one(model, model.block.inner, Mamba2, "Mamba2ForCausalLM")  # type: ignore[attr-defined]
    inner = _read_ssm(mixer, "mixer", tensors)
    return {"norm": {"scale": tensors["norm.weight"]}, "inner": inner}


def _write_mamba2(model: LanguageModel, params: Params) -> dict[str, np.ndarray]:
    return {"norm.weight": params["norm"]["scale"], **_write_ssm("mixer", params["inner"])}


def _read_ssm(mixer: Mamba2, name: str, tensors: Tensors) -> dict[str, np.ndarray]:
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


def _write_ssm(name: str, params: Params) -> dict[str, np.ndarray]:
    """The inverse of `_read_ssm`."""
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


# Falcon-H1: both mixers side by side, then a feed-forward layer.


def _falcon_model(config: Config) -> LanguageModel:
    biases = ("attention_bias", "mlp_bias", "projectors_bias", "mamba_proj_bias")
    _refuse(config, hidden_act="silu", **dict.fromkeys(biases, False))
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    _refuse({**rope, "model_type": "falcon_h1"}, rope_type="default", type="default")
    width, heads = config["hidden_size"], config["num_attention_heads"]
    size = config.get("head_dim") or width // heads
    key = config.get("key_multiplier", 1.0)
    attention = Attention(
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or 0,
        head_size=size,
        rotary=rope.get("rope_theta") or config.get("rope_theta", 10_000.0),
        context=config.get("max_position_embeddings", 8192),
        scale=0.0 if key == 1 else key * size**-0.5,
    )
    mixer = FalconH1(
        attention,
        _falcon_ssm(config),
        attention_in=config.get("attention_in_multiplier", 1.0),
        attention_out=config.get("attention_out_multiplier", 1.0),
        ssm_out=config.get("ssm_out_multiplier", 1.0),
    )
    gate, down = config.get("mlp_multipliers") or (1.0, 1.0)
    ffn = MLP(
        activation="swiglu",
        hidden=config["intermediate_size"],
        bias=False,
        gate_scale=gate,
        out_scale=down,
    )
    norm = RMSNorm(eps=config.get("rms_norm_eps", 1e-5))
    return LanguageModel(
        Block(mixer, ffn, norm),
        width=width,
        depth=config["num_hidden_layers"],
        vocab=config["vocab_size"],
        norm=norm,
        tied=config.get("tie_word_embeddings", False),
        embedding_scale=config.get("embedding_multiplier", 1.0),
        logit_scale=config.get("lm_head_multiplier", 1.0),
    )


def _falcon_ssm(config: Config) -> Mamba2:
    inner = config.get("mamba_d_ssm") or int(config["mamba_expand"] * config["hidden_size"])
    norm = "norm_first" if config.get("mamba_norm_before_gate", True) else "gate_first"
    low, high = _step_limits(config)
    scales = config.get("ssm_multipliers") or (1.0,) * 5
    return Mamba2(
        inner=inner,
        head=inner // config["mamba_n_heads"],
        state=config["mamba_d_state"],
        groups=config["mamba_n_groups"],
        kernel=config["mamba_d_conv"],
        norm=norm if config.get("mamba_rms_norm") else "none",
        eps=config.get("rms_norm_eps", 1e-5),
        dt_min=low,
        dt_max=high,
        scales=Scales(config.get("ssm_in_multiplier", 1.0), *scales),
    )


def _falcon_parts(model: LanguageModel) -> tuple[FalconH1, Attention, Mamba2, MLP, RMSNorm]:
    official = "FalconH1ForCausalLM"
    block = _one(model, model.block, Block, official)
    mixer = _one(model, block.mixer, FalconH1, official)
    return (
        mixer,
        _one(model, mixer.attention, Attention, official),
        _one(model, mixer.ssm, Mamba2, official),
        _one(model, block.ffn, MLP, official),
        _one(model, block.norm, RMSNorm, official),
    )


def _falcon_config(model: LanguageModel) -> dict[str, Any]:
    mixer, attention, ssm, ffn, norm = _falcon_parts(model)
    _plain(model, "FalconH1ForCausalLM", scaled=True)
    known = Attention(
        width=attention.width,
        heads=attention.heads,
        kv_heads=attention.kv_heads,
        head_size=attention.head_size,
        rotary=attention.rotary,
        context=attention.context,
        scale=attention.scale,
        dropout=attention.dropout,
    )
    if attention != known or not attention.rotary or ffn.activation != "swiglu" or ffn.bias:
        raise UserError(
            "FalconH1ForCausalLM of transformers has plain rotary attention and a SwiGLU without "
            "biases: this model cannot be written as that"
        )
    scales = ssm.scales
    return {
        "architectures": ["FalconH1ForCausalLM"],
        "model_type": "falcon_h1",
        "hidden_size": model.width,
        "intermediate_size": ffn.hidden or ffn.expansion * model.width,
        "num_hidden_layers": model.depth,
        "vocab_size": model.vocab,
        "rms_norm_eps": norm.eps,
        "tie_word_embeddings": model.tied,
        "hidden_act": "silu",
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.groups,
        "head_dim": attention.size,
        "max_position_embeddings": attention.context,
        "rope_theta": attention.rotary,
        "rope_parameters": {"rope_type": "default", "rope_theta": attention.rotary},
        "mamba_d_ssm": ssm.heads * ssm.head,
        "mamba_n_heads": ssm.heads,
        "mamba_d_head": ssm.head,
        "mamba_n_groups": ssm.groups,
        "mamba_d_state": ssm.state,
        "mamba_d_conv": ssm.kernel,
        "mamba_rms_norm": ssm.norm != "none",
        "mamba_norm_before_gate": ssm.norm != "gate_first",
        "time_step_limit": [ssm.dt_min, ssm.dt_max or math.inf],
        "embedding_multiplier": model.embedding_scale,
        "lm_head_multiplier": model.logit_scale,
        "attention_in_multiplier": mixer.attention_in,
        "attention_out_multiplier": mixer.attention_out,
        "key_multiplier": _rounded(attention.scale * attention.size**0.5) or 1.0,
        "mlp_multipliers": [ffn.gate_scale, ffn.out_scale],
        "ssm_in_multiplier": scales.input,
        "ssm_out_multiplier": mixer.ssm_out,
        "ssm_multipliers": [scales.z, scales.x, scales.b, scales.c, scales.dt],
    }


def _rounded(x: float) -> float:
    """Without what multiplying by a square root and back leaves in the last digits."""
    return float(f"{x:.12g}")


def _read_falcon(model: LanguageModel, tensors: Tensors) -> Params:
    _, attention, ssm, _, _ = _falcon_parts(model)
    width, size = model.width, attention.size

    def heads(name: str) -> np.ndarray:
        return tensors[f"self_attn.{name}_proj.weight"].T.reshape(width, -1, size)

    return {
        "mixer_norm": {"scale": tensors["input_layernorm.weight"]},
        "mixer": {
            "attention": {
                "query": heads("q"),
                "key": heads("k"),
                "value": heads("v"),
                "out": tensors["self_attn.o_proj.weight"].T.reshape(-1, size, width),
            },
            "ssm": _read_ssm(ssm, "mamba", tensors),
        },
        "ffn_norm": {"scale": tensors["pre_ff_layernorm.weight"]},
        "ffn": {
            "w_gate": tensors["feed_forward.gate_proj.weight"].T,
            "w_in": tensors["feed_forward.up_proj.weight"].T,
            "w_out": tensors["feed_forward.down_proj.weight"],
        },
    }


def _write_falcon(model: LanguageModel, params: Params) -> dict[str, np.ndarray]:
    attention, ffn, width = params["mixer"]["attention"], params["ffn"], model.width
    return {
        "input_layernorm.weight": params["mixer_norm"]["scale"],
        "pre_ff_layernorm.weight": params["ffn_norm"]["scale"],
        "self_attn.q_proj.weight": attention["query"].reshape(width, -1).T,
        "self_attn.k_proj.weight": attention["key"].reshape(width, -1).T,
        "self_attn.v_proj.weight": attention["value"].reshape(width, -1).T,
        "self_attn.o_proj.weight": attention["out"].reshape(-1, width).T,
        **_write_ssm("mamba", params["mixer"]["ssm"]),
        "feed_forward.gate_proj.weight": ffn["w_gate"].T,
        "feed_forward.up_proj.weight": ffn["w_in"].T,
        "feed_forward.down_proj.weight": ffn["w_out"],
    }


def read(config: Config, tensors: Tensors) -> tuple[LanguageModel, Params]:
    """A model and its float32 parameters from what a folder of transformers holds.

    Raises:
      UserError: a model_type or field that is not known here, or a missing array.
    """
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise UserError(f"config.json: model_type {kind!r} is not one of {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    tensors = {name: np.asarray(array, np.float32) for name, array in tensors.items()}
    try:
        model = family.model(config)
        blocks = [
            family.read(model, _within(tensors, f"{family.blocks}{i}.")) for i in range(model.depth)
        ]
        params: Params = {
            "embedding": tensors[family.embedding],
            "final_norm": {"scale": tensors[family.norm]},
            "blocks": jax.tree.map(lambda *arrays: np.stack(arrays), *blocks),
        }
        if not model.tied:
            params["head"] = tensors[HEAD]
    except KeyError as error:
        raise UserError(f"a folder of model_type {kind} without {error}") from error
    return model, jax.tree.map(jnp.asarray, params)


def write(kind: str, model: LanguageModel, params: Params) -> tuple[dict[str, Any], dict]:
    """The inverse of `read`: config.json and tensors of a model_type.

    Raises:
      UserError: a model that this class of transformers cannot express.
    """
    family = FAMILIES[kind]
    config = family.config(model)
    params = jax.tree.map(np.asarray, params)
    tensors = {
        family.embedding: params["embedding"],
        family.norm: params["final_norm"]["scale"],
    }
    if not model.tied:
        tensors[HEAD] = params["head"]
    for i in range(model.depth):
        block = family.write(model, jax.tree.map(lambda x, i=i: x[i], params["blocks"]))
        tensors.update({f"{family.blocks}{i}.{name}": x for name, x in block.items()})
    return config, {name: np.ascontiguousarray(x) for name, x in tensors.items()}


def _within(tensors: Tensors, prefix: str) -> dict[str, np.ndarray]:
    return {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}


HEAD = "lm_head.weight"
_BACKBONE = ("backbone.embeddings.weight", "backbone.norm_f.weight", "backbone.layers.")
_MODEL = ("model.embed_tokens.weight", "model.final_layernorm.weight", "model.layers.")

FAMILIES = {
    "mamba": Family(_mamba_model, _mamba_config, *_BACKBONE, _read_mamba, _write_mamba),
    "mamba2": Family(_mamba2_model, _mamba2_config, *_BACKBONE, _read_mamba2, _write_mamba2),
    "falcon_h1": Family(_falcon_model, _falcon_config, *_MODEL, _read_falcon, _write_falcon),
}
"""model_type -> how its folders are read and written."""
