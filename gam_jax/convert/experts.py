"""Mixtral and Qwen3-MoE as Hugging Face transformers writes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from gam_jax.convert import patterns
from gam_jax.convert.attentions import Attentions
from gam_jax.convert.family import Config, check_plain, one
from gam_jax.convert.fields import LAYERS, Fields
from gam_jax.convert.folder import Reader
from gam_jax.convert.parts import (
    EXPERT,
    read_attention,
    read_norms,
    read_units,
    write_attention,
    write_norms,
    write_units,
)
from gam_jax.convert.same import check_same
from gam_jax.layers import MLP, Attention, Block, MoE, RMSNorm
from gam_jax.models.language import LanguageModel
from gam_jax.ops.routing import Router
from gam_jax.params import Params
from sharding.errors import UserError


def _hidden(config: Fields, name: str) -> MLP:
    return MLP(activation="swiglu", hidden=config.size(name), bias=False)


@dataclasses.dataclass(frozen=True)
class Sparse(Attentions):
    """What tells a class of transformers with experts in its blocks from the others.

    Attributes:
      place: where the experts are in a block.
      units: our names of an expert's arrays -> theirs.
      eps, chosen: what is meant where config.json does not tell.
      renormalises: whether gates of the chosen experts always sum to 1; if not, norm_topk_prob says
        whether.
      mixed: whether some blocks may be dense, which mlp_only_layers and decoder_sparse_step say.
    """

    place: str = "mlp"
    units: Mapping[str, str] = dataclasses.field(default_factory=lambda: EXPERT)
    eps: float = 1e-6
    chosen: int = 8
    renormalises: bool = False
    mixed: bool = False

    def read(self, values: Config) -> LanguageModel:
        """The model of a config.json; a UserError where this project cannot express it."""
        config = Fields.of(values)
        config.only("hidden_act", "silu")
        if self.biases == "never":
            config.only("attention_bias", False)
        width, layers = config.size("hidden_size"), config.size("num_hidden_layers", most=LAYERS)
        norm = RMSNorm(eps=config.number("rms_norm_eps", self.eps, least=0))
        sparse = self._experts(config)
        blocks = []
        attentions = self.attentions(config, width, layers, norm.eps)
        for attention, dense in zip(attentions, self._dense(config, layers), strict=True):
            ffn = _hidden(config, "intermediate_size") if dense else sparse
            blocks.append(Block(attention, ffn, norm))
        return LanguageModel(
            **patterns.in_order(blocks),
            width=width,
            vocab=config.size("vocab_size"),
            norm=norm,
            tied=config.flag("tie_word_embeddings", False),
        )

    def _experts(self, config: Fields) -> MoE:
        names = ("num_local_experts", "num_experts")
        hidden = "moe_intermediate_size" if self.mixed else "intermediate_size"
        return MoE(
            experts=count_experts(config, *names),
            chosen=config.size("num_experts_per_tok", self.chosen),
            ffn=_hidden(config, hidden),
            router=Router(
                renormalise=self.renormalises or config.flag("norm_topk_prob", False),
                jitter=config.number("router_jitter_noise", 0.0, least=0),
                balance=config.number("router_aux_loss_coef", 0.001, least=0),
                balance_over="layers",
                z=0.0,
            ),
        )

    def _dense(self, config: Fields, layers: int) -> list[bool]:
        """Whether each block is dense."""
        if not self.mixed:
            return [False] * layers
        only, every = config.get("mlp_only_layers"), config.size("decoder_sparse_step", 1)
        only = [] if only is None else only
        if not isinstance(only, list | tuple) or not all(type(i) is int for i in only):
            raise config.refused("mlp_only_layers", "is no list of numbers of layers")
        return [i in only or (i + 1) % every != 0 for i in range(layers)]

    def write(self, model: LanguageModel) -> dict[str, Any]:
        """The inverse of `read`; a UserError where transformers cannot express the model."""
        check_plain(model, self.official)
        blocks = [one(block, Block, self.official) for block in patterns.blocks_of(model)]
        attentions = [one(block.mixer, Attention, self.official) for block in blocks]
        dense = [i for i, block in enumerate(blocks) if isinstance(block.ffn, MLP)]
        if len(dense) == len(blocks) or (dense and not self.mixed):
            one(blocks[dense[0]].ffn, MoE, self.official)
        sparse = next(block.ffn for block in blocks if not isinstance(block.ffn, MLP))
        ffn, norm = one(sparse, MoE, self.official), one(model.norm, RMSNorm, self.official)
        hidden = check_experts(ffn, self.official)
        config = {
            "architectures": [self.official],
            "model_type": self.kind,
            "hidden_size": model.width,
            "num_hidden_layers": len(blocks),
            "num_local_experts": ffn.experts,
            "num_experts_per_tok": ffn.chosen,
            "vocab_size": model.vocab,
            "rms_norm_eps": norm.eps,
            "router_aux_loss_coef": ffn.router.balance,
            "tie_word_embeddings": model.tied,
            "hidden_act": "silu",
            **self.written(attentions),
        }
        if not self.mixed:
            config |= {"intermediate_size": hidden, "router_jitter_noise": ffn.router.jitter}
        else:
            config |= {
                "moe_intermediate_size": hidden,
                "num_experts": ffn.experts,
                "norm_topk_prob": ffn.router.renormalise,
                "decoder_sparse_step": 1,
                "mlp_only_layers": dense,
            }
        if dense:
            first: Any = blocks[dense[0]].ffn
            config["intermediate_size"] = first.hidden or first.expansion * model.width
        check_same(self.official, self.read, model, config)
        return config


TABLE = (
    Sparse(
        "MixtralForCausalLM",
        "mixtral",
        context=131_072,
        kv_heads=8,
        theta=1e6,
        windows="all",
        place="block_sparse_moe",
        units={"gate": "w1", "in": "w3", "out": "w2"},
        eps=1e-5,
        chosen=2,
        renormalises=True,
    ),
    Sparse(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        context=32_768,
        kv_heads=4,
        biases="all",
        qk_norm="head",
        windows="all",
        window=4096,
        switch=True,
        mixed=True,
    ),
)
"""The classes that are read and written."""


def count_experts(config: Fields, *names: str) -> int:
    """How many experts there are, by the first of some names that is given.

    Raises:
      UserError: none is given, or two that differ.
    """
    given = [name for name in names if config.get(name) is not None] or list(names[-1:])
    counts = [config.size(name) for name in given]
    if len(set(counts)) > 1:
        raise config.refused(given[1], f"is not the same as {given[0]}={counts[0]}")
    return counts[0]


def check_experts(ffn: MoE, official: str) -> int:
    """The experts' hidden units; a UserError if they are no SwiGLUs, or have a capacity."""
    hidden = ffn.ffn.hidden or ffn.ffn.expansion * (ffn.ffn.width or 0)
    gated = MLP(
        width=ffn.ffn.width,
        expansion=ffn.ffn.expansion,
        dropout=ffn.ffn.dropout,
        activation="swiglu",
        hidden=ffn.ffn.hidden,
        bias=False,
    )
    if ffn.ffn != gated or ffn.capacity.factor:
        raise UserError(
            f"{official} of transformers has SwiGLU experts without biases or a capacity: this "
            f"model cannot be written as that"
        )
    return hidden


def read_experts(
    ffn: MoE, reader: Reader, place: str, names: Mapping[str, str], width: int
) -> dict[str, np.ndarray]:
    """All experts' arrays, stacked; `names` are those of gate, in and out."""
    found, hidden = {}, ffn.ffn.hidden
    for ours, name in names.items():
        shape = (width, hidden) if ours == "out" else (hidden, width)
        own = [
            reader.take(f"{place}.experts.{e}.{name}.weight", *shape) for e in range(ffn.experts)
        ]
        found[f"w_{ours}"] = np.stack([x if ours == "out" else x.T for x in own])
    return found


def write_experts(params: Params, place: str, names: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The inverse of `read_experts`."""
    return {
        f"{place}.experts.{e}.{name}.weight": x if ours == "out" else x.T
        for ours, name in names.items()
        for e, x in enumerate(params[f"w_{ours}"])
    }


def _read(spec: Sparse, model: LanguageModel, reader: Reader) -> Params:
    block, width = one(patterns.blocks_of(model)[reader.index], Block, spec.official), model.width
    attention = one(block.mixer, Attention, spec.official)
    ffn: Any = block.ffn
    if isinstance(ffn, MLP):
        units: Params = read_units(reader, spec.place, width, ffn)
    else:
        units = {
            "router": reader.take(f"{spec.place}.gate.weight", ffn.experts, width).T,
            "experts": read_experts(ffn, reader, spec.place, spec.units, width),
        }
    mixer = read_attention(attention, width, reader)
    return {"mixer": mixer, "ffn": units, **read_norms(reader, width)}


def _write(spec: Sparse, model: LanguageModel, params: Params) -> dict[str, np.ndarray]:
    ffn = params["ffn"]
    tensors = {**write_norms(params), **write_attention(params["mixer"], model.width)}
    if "router" not in ffn:
        return tensors | write_units(ffn, spec.place)
    tensors[f"{spec.place}.gate.weight"] = ffn["router"].T
    return tensors | write_experts(ffn["experts"], spec.place, spec.units)


FAMILIES = {spec.official: patterns.family(spec, _read, _write) for spec in TABLE}
"""Architecture of config.json -> how its folders are read and written."""
