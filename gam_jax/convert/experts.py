"""Transformers of Hugging Face with experts: one table of classes, and their arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from gam_jax.convert import patterns
from gam_jax.convert.attentions import Attentions
from gam_jax.convert.family import Config, check_plain, one
from gam_jax.convert.fields import LAYERS, NEEDED, Fields
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
from gam_jax.layers import MLP, Attention, Block, Layer, MoE, RMSNorm
from gam_jax.models.language import LanguageModel
from gam_jax.ops.routing import Router
from gam_jax.params import Params
from sharding.errors import UserError


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
      jitters: whether router_jitter_noise is told.
    """

    place: str = "mlp"
    units: Mapping[str, str] = dataclasses.field(default_factory=lambda: EXPERT)
    eps: float = 1e-6
    chosen: int = 8
    renormalises: bool = False
    mixed: bool = False
    jitters: bool = False
    mixer: ClassVar[type[Layer]] = Attention

    def read(self, values: Config) -> LanguageModel:
        """The model of a config.json; a UserError where this project cannot express it."""
        config = Fields.of(values)
        if self.biases == "never":
            config.only("attention_bias", False)
        width, layers = config.size("hidden_size"), config.size("num_hidden_layers", most=LAYERS)
        eps = config.number("rms_norm_eps", self.eps, least=0)
        norm = RMSNorm(eps=eps, centred=self.centred)
        sparse = self.experts(config)
        blocks = []
        attentions = self.attentions(config, width, layers, norm.eps)
        for attention, dense in zip(attentions, self.dense(config, layers), strict=True):
            ffn = hidden_units(config, "intermediate_size") if dense else sparse
            blocks.append(Block(attention, ffn, norm))
        return LanguageModel(
            **patterns.in_order(blocks),
            width=width,
            vocab=config.size("vocab_size"),
            norm=norm,
            tied=config.flag("tie_word_embeddings", False),
        )

    @property
    def hidden_name(self) -> str:
        """The field that tells the hidden units of an expert."""
        return "moe_intermediate_size" if self.mixed else "intermediate_size"

    def experts(self, config: Fields) -> MoE:
        """Those of a block that has some."""
        jitter = config.number("router_jitter_noise", 0.0, least=0) if self.jitters else 0.0
        return MoE(
            experts=count_experts(config, "num_local_experts", "num_experts"),
            chosen=config.size("num_experts_per_tok", self.chosen),
            ffn=hidden_units(config, self.hidden_name),
            router=Router(
                renormalise=self.renormalises or config.flag("norm_topk_prob", False),
                jitter=jitter,
                balance=config.number("router_aux_loss_coef", 0.001, least=0),
                balance_over="layers",
                z=0.0,
            ),
        )

    def dense(self, config: Fields, layers: int) -> list[bool]:
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
        mixers: list[Any] = [one(block.mixer, self.mixer, self.official) for block in blocks]
        dense = [isinstance(block.ffn, MLP) for block in blocks]
        sparse = [block.ffn for block in blocks if not isinstance(block.ffn, MLP)]
        norm = one(model.norm, RMSNorm, self.official)
        config = {
            "architectures": [self.official],
            "model_type": self.kind,
            "hidden_act": hidden_act(sparse[0] if sparse else blocks[0].ffn),
            "hidden_size": model.width,
            "num_hidden_layers": len(blocks),
            "vocab_size": model.vocab,
            "rms_norm_eps": norm.eps,
            "tie_word_embeddings": model.tied,
            **self.written(mixers),
            **self.written_experts(sparse[0] if sparse else blocks[0].ffn, dense),
        }
        if any(dense):
            first: Any = blocks[dense.index(True)].ffn
            config["intermediate_size"] = first.hidden or first.expansion * model.width
        check_same(self.official, self.read, self.bare(model), config)
        return config

    def bare(self, model: LanguageModel) -> LanguageModel:
        """The model with what config.json does not tell as `read` makes it."""
        return model

    def written_experts(self, layer: Layer, dense: Sequence[bool]) -> dict[str, Any]:
        """The inverse of `experts` and `dense`.

        Args:
          layer: a block's experts; its feed-forward where no block has some.
          dense: whether each block is dense.
        """
        ffn = one(layer, MoE, self.official)
        hidden, router = check_experts(ffn, self.official), ffn.router
        config: dict[str, Any] = {
            "num_local_experts": ffn.experts,
            "num_experts_per_tok": ffn.chosen,
            "router_aux_loss_coef": router.balance,
            self.hidden_name: hidden,
        }
        if self.jitters:
            config["router_jitter_noise"] = router.jitter
        if not self.mixed:
            return config
        return config | {
            "num_experts": ffn.experts,
            "norm_topk_prob": router.renormalise,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [i for i, plain in enumerate(dense) if plain],
        }

    def read_block(self, model: LanguageModel, reader: Reader) -> Params:
        """The parameters of a block of a folder."""
        block = one(patterns.blocks_of(model)[reader.index], Block, self.official)
        mixer = self.read_mixer(block.mixer, model.width, reader)
        ffn = self.read_ffn(block.ffn, model.width, reader)
        return {"mixer": mixer, "ffn": ffn, **read_norms(reader, model.width)}

    def write_block(self, model: LanguageModel, params: Params) -> dict[str, np.ndarray]:
        """The inverse of `read_block`."""
        mixer = self.write_mixer(params["mixer"], model.width)
        return {**write_norms(params), **mixer, **self.write_ffn(params["ffn"])}

    def read_mixer(self, mixer: Layer, width: int, reader: Reader) -> Params:
        """Attention's parameters."""
        return read_attention(one(mixer, Attention, self.official), width, reader)

    def write_mixer(self, params: Params, width: int) -> dict[str, np.ndarray]:
        """The inverse of `read_mixer`."""
        return write_attention(params, width)

    def read_ffn(self, ffn: Any, width: int, reader: Reader) -> Params:
        """The parameters of a feed-forward or of experts."""
        if isinstance(ffn, MLP):
            return read_units(reader, self.place, width, ffn)
        return {
            "router": reader.take(f"{self.place}.gate.weight", ffn.experts, width).T,
            "experts": read_experts(ffn, reader, self.place, self.units, width),
        }

    def write_ffn(self, params: Params) -> dict[str, np.ndarray]:
        """The inverse of `read_ffn`."""
        if "router" not in params:
            return write_units(params, self.place)
        experts = write_experts(params["experts"], self.place, self.units)
        return {f"{self.place}.gate.weight": params["router"].T, **experts}


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
        jitters=True,
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


ACTS = {"silu": "swiglu", "gelu": "geglu", "gelu_pytorch_tanh": "geglu_tanh"}
"""hidden_act -> the activation of a gated feed-forward."""


def hidden_units(config: Fields, name: str, default: Any = NEEDED) -> MLP:
    """A gated feed-forward without biases, of as many hidden units as a field says.

    Raises:
      UserError: an activation that is not known here.
    """
    act = config.get("hidden_act")
    if act is not None and (not isinstance(act, str) or act not in ACTS):
        raise config.refused("hidden_act", f"is not known here, {', '.join(ACTS)} alone")
    hidden = config.size(name, default)
    return MLP(activation=ACTS[act or "silu"], hidden=hidden, bias=False)


def hidden_act(layer: Layer) -> str:
    """What config.json calls the activation of experts or units; the usual where it has no such."""
    ffn = layer.ffn if isinstance(layer, MoE) else layer
    named = [name for name, ours in ACTS.items() if ours == getattr(ffn, "activation", "")]
    return named[0] if named else "silu"


def hidden_of(ffn: MoE) -> int:
    """Hidden units of an expert."""
    return ffn.ffn.hidden or ffn.ffn.expansion * (ffn.ffn.width or 0)


def count_experts(config: Fields, *names: str, default: Any = NEEDED) -> int:
    """How many experts there are, by the first of some names that is given.

    Raises:
      UserError: none is given, or two that differ.
    """
    given = [name for name in names if config.get(name) is not None] or list(names[-1:])
    counts = [config.size(name, default) for name in given]
    if len(set(counts)) > 1:
        raise config.refused(given[1], f"is not the same as {given[0]}={counts[0]}")
    return counts[0]


def check_experts(ffn: MoE, official: str) -> int:
    """The experts' hidden units; a UserError if they have biases, say, or a capacity."""
    gated = MLP(
        width=ffn.ffn.width,
        expansion=ffn.ffn.expansion,
        dropout=ffn.ffn.dropout,
        activation=ACTS[hidden_act(ffn)],
        hidden=ffn.ffn.hidden,
        bias=False,
    )
    if ffn.ffn != gated or ffn.capacity.factor:
        raise UserError(
            f"{official} of transformers has SwiGLU experts without biases or a capacity: this "
            f"model cannot be written as that"
        )
    return hidden_of(ffn)


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


FAMILIES = {
    spec.official: patterns.family(spec, type(spec).read_block, type(spec).write_block)
    for spec in TABLE
}
"""Architecture of config.json -> how its folders are read and written."""
