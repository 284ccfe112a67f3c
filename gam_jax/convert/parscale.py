"""ParScale models as the official code writes them: Qwen2 with parallel streams.

Source: github.com/QwenLM/ParScale, modeling_qwen2_parscale.py. Its aggregator flattens streams
feature-major: column f P + p of its first matrix is feature f of stream p.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from gam_jax.convert import dense
from gam_jax.convert.family import Config, one
from gam_jax.convert.fields import Fields
from gam_jax.convert.folder import Reader
from gam_jax.layers import Attention, Block
from gam_jax.models.language import LanguageModel
from gam_jax.params import Params
from sharding.errors import UserError

OFFICIAL = "Qwen2ParScaleForCausalLM"
QWEN2 = dense.FAMILIES["Qwen2ForCausalLM"]

PREFIX = {"mixer.prefix_key": "prefix_k", "mixer.prefix_value": "prefix_v"}
AGGREGATE = "model.aggregate_layer."


def _model(values: Config) -> LanguageModel:
    config = Fields.of(values)
    return dataclasses.replace(
        QWEN2.model(config),
        streams=config.size("parscale_n", 1),
        prefix=config.size("parscale_n_tokens", 48, least=0),
        smoothing=config.number("parscale_attn_smooth", 0.01),
    )


def _config(model: LanguageModel) -> dict[str, Any]:
    if model.streams == 1:
        raise UserError(f"{OFFICIAL} is for models of more than one stream: this one has one")
    attention = one(one(model.block, Block, OFFICIAL).mixer, Attention, OFFICIAL)
    if attention.prefix:
        raise UserError(f"{OFFICIAL}: the prefix is LanguageModel.prefix, not Attention.prefix")
    return QWEN2.config(dataclasses.replace(model, streams=1)) | {
        "architectures": [OFFICIAL],
        "model_type": "qwen2_parscale",
        "parscale_n": model.streams,
        "parscale_n_tokens": model.prefix,
        "parscale_attn_smooth": model.smoothing,
    }


def _read(model: LanguageModel, reader: Reader) -> Params:
    """Starts and aggregator."""
    width, streams = model.width, model.streams
    if streams == 1:
        return {}
    attention = one(one(model.block, Block, OFFICIAL).mixer, Attention, OFFICIAL)
    shape = (streams, attention.groups, model.prefix, attention.size)
    starts = {
        ours: np.stack(
            [
                reader.take(f"{QWEN2.blocks}{i}.self_attn.{name}", *shape).transpose(0, 2, 1, 3)
                for i in range(model.depth)
            ]
        )
        for ours, name in PREFIX.items()
    }
    w_in = reader.take(f"{AGGREGATE}0.weight", width, width * streams)
    aggregator = {
        "w_in": w_in.reshape(width, width, streams).transpose(2, 1, 0),
        "b_in": reader.take(f"{AGGREGATE}0.bias", width),
        "w_out": reader.take(f"{AGGREGATE}2.weight", streams, width).T,
        "b_out": reader.take(f"{AGGREGATE}2.bias", streams),
    }
    return {"starts": starts, "aggregator": aggregator}


def _write(model: LanguageModel, params: Params) -> dict[str, np.ndarray]:
    """The inverse of `_read`."""
    mixed = params["aggregator"]
    tensors = {
        f"{AGGREGATE}0.weight": mixed["w_in"].transpose(2, 1, 0).reshape(model.width, -1),
        f"{AGGREGATE}0.bias": mixed["b_in"],
        f"{AGGREGATE}2.weight": mixed["w_out"].T,
        f"{AGGREGATE}2.bias": mixed["b_out"],
    }
    for ours, name in PREFIX.items():
        for i, prefix in enumerate(params["starts"][ours]):
            tensors[f"{QWEN2.blocks}{i}.self_attn.{name}"] = prefix.transpose(0, 2, 1, 3)
    return tensors


FAMILIES = {
    OFFICIAL: QWEN2._replace(
        model=_model, config=_config, apart=(_read, _write), kind="qwen2_parscale"
    )
}
"""Architecture of config.json -> how its folders are read and written."""
