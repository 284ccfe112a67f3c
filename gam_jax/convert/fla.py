"""GLA, DeltaNet, Gated DeltaNet and RetNet as flash-linear-attention writes them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gam_jax.convert.family import Config, Family, check_plain, one
from gam_jax.convert.fields import Fields
from gam_jax.convert.folder import Reader
from gam_jax.convert.memories import read_apart, read_named, write_apart, write_named
from gam_jax.convert.parts import read_norms, read_units, write_norms, write_units
from gam_jax.convert.same import check_same
from gam_jax.layers import MLP, Block, LinearMemory, RMSNorm
from gam_jax.models.language import LanguageModel
from gam_jax.params import Params

NORMS = {"mixer_norm": "attn_norm", "ffn_norm": "mlp_norm"}
OUT = {"w_gate": "g_proj.weight", "w_out": "o_proj.weight"}
DELTA = {"w_beta": "b_proj.weight", "norm": "o_norm.weight", **OUT}
GATED_NORM, NORM = "g_norm_swish_gate.weight", "g_norm.weight"
MULTIPLE = 256
"""Of hidden units, where config.json does not tell their number."""


@dataclasses.dataclass(frozen=True)
class Library:
    """What tells one class from the others.

    Attributes:
      official, kind: its name and its model_type.
      variant: of `LinearMemory`.
      names: of its arrays: ours, and theirs.
      heads: where config.json does not tell.
      keys, values: likewise expand_k and expand_v; keys 0 where config.json gives the size of a
        head, and values are in shares of that.
      ratio: likewise hidden_ratio.
      gate: the field that says whether the output is gated, and what it says if it is not given.
      only: fields and the one value of each that is known here.
    """

    official: str
    kind: str
    variant: str
    names: Mapping[str, str]
    heads: int
    keys: float
    values: float
    ratio: float = 4.0
    gate: tuple[str, bool] = ("use_output_gate", True)
    only: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def delta(self) -> bool:
        """Whether its memories are written by the delta rule."""
        return "w_beta" in self.names

    def read(self, values: Config) -> LanguageModel:
        """The model of a config.json; a UserError where this project cannot express it."""
        config = Fields.of(values)
        for name, value in {"hidden_act": "swish", "norm_first": False, **self.only}.items():
            config.only(name, value)
        width = config.size("hidden_size")
        norm = RMSNorm(eps=config.number("norm_eps", 1e-6, least=0))
        ffn = MLP(activation="swiglu", hidden=self._hidden(config, width), bias=False)
        return LanguageModel(
            Block(self._memory(config, width, norm.eps), ffn, norm),
            width=width,
            depth=config.size("num_hidden_layers"),
            vocab=config.size("vocab_size"),
            norm=norm,
            tied=config.flag("tie_word_embeddings", False),
        )

    def _hidden(self, config: Fields, width: int) -> int:
        share = 2 / 3 * width * config.number("hidden_ratio", self.ratio, above=0)
        return config.size("intermediate_size", MULTIPLE * math.ceil(int(share) / MULTIPLE))

    def _memory(self, config: Fields, width: int, eps: float) -> LinearMemory:
        heads = config.size("num_heads", self.heads)
        if self.keys:
            config.only("num_kv_heads", heads)
            keys = _share(config, "expand_k", self.keys, width, heads)
            values, memories = _share(config, "expand_v", self.values, width, heads), heads
        else:
            memories = config.size("num_v_heads", heads)
            if memories % heads:
                raise config.refused("num_v_heads", f"is not a multiple of num_heads={heads}")
            keys = config.size("head_dim", 256)
            values = _share(config, "expand_v", self.values, keys, 1)
        if self.delta:
            config.only("use_short_conv", True)
        convolved = config.flag("use_short_conv", self.delta)
        negative = self.delta and config.flag("allow_neg_eigval", False)
        config.flag("fuse_norm", True)
        return LinearMemory(
            heads=memories,
            key_heads=heads,
            variant=self.variant,
            key_width=keys,
            value_width=values,
            kernel=config.size("conv_size", 4, least=2) if convolved else 1,
            gated=config.flag(*self.gate),
            negative=negative,
            eps=eps,
            feature="" if self.delta else _feature(config),
        )

    def write(self, model: LanguageModel) -> dict[str, Any]:
        """The inverse of `read`; a UserError where the library cannot express the model."""
        check_plain(model, self.official)
        block = one(model.block, Block, self.official)
        memory = one(block.mixer, LinearMemory, self.official)
        ffn, norm = one(block.ffn, MLP, self.official), one(model.norm, RMSNorm, self.official)
        keys, values, kernel = memory.keys, memory.values, memory.recipe.kernel
        config: dict[str, Any] = {
            "architectures": [self.official],
            "model_type": self.kind,
            "hidden_size": model.width,
            "intermediate_size": ffn.hidden or ffn.expansion * model.width,
            "num_hidden_layers": model.depth,
            "num_heads": memory.groups,
            "use_short_conv": kernel > 1,
            self.gate[0]: memory.recipe.gate != "none",
            "norm_eps": norm.eps,
            "vocab_size": model.vocab,
            "tie_word_embeddings": model.tied,
            "hidden_act": "swish",
        }
        if self.keys:
            config["expand_k"] = _written_share(keys * memory.groups, model.width)
            config["expand_v"] = _written_share(values * memory.heads, model.width)
        else:
            config |= {"head_dim": keys, "expand_v": _written_share(values, keys)}
            config["num_v_heads"] = memory.heads
        if kernel > 1:
            config["conv_size"] = kernel
        if self.delta:
            config["allow_neg_eigval"] = memory.negative
        elif memory.recipe.feature != "identity":
            config["feature_map"] = memory.recipe.feature
        check_same(self.official, self.read, model, config)
        return config


def _share(config: Fields, name: str, default: float, whole: int, heads: int) -> int:
    """Channels of a head, of all heads' share of `whole`."""
    share = config.number(name, default, above=0)
    channels = int(whole * share)
    if not channels or channels % heads or not math.isclose(channels, whole * share, rel_tol=1e-5):
        raise config.refused(name, f"gives {whole * share:g} channels, which are no whole heads")
    return channels // heads


def _written_share(channels: int, whole: int) -> float:
    """The share of `whole` that channels are; rounded so that it gives them again."""
    share = channels / whole
    return share if int(whole * share) == channels else math.nextafter(share, math.inf)


def _feature(config: Fields) -> str:
    found = config.get("feature_map")
    if found not in (None, "relu"):
        raise config.refused("feature_map", "is not known here, 'relu' or null alone")
    return found or "identity"


def _names(spec: Library, memory: LinearMemory, fused: bool = True) -> Mapping[str, str]:
    """Where norm and gate are not one function of the library, the norm has another name."""
    if spec.names.get("norm") != GATED_NORM or (fused and memory.recipe.gate != "none"):
        return spec.names
    return {**spec.names, "norm": NORM}


def _memory_of(spec: Library, model: LanguageModel) -> tuple[LinearMemory, MLP]:
    block = one(model.block, Block, spec.official)
    return one(block.mixer, LinearMemory, spec.official), one(block.ffn, MLP, spec.official)


def _read(spec: Library, model: LanguageModel, reader: Reader) -> Params:
    def take(name: str, *shape: int) -> np.ndarray:
        return reader.take(f"attn.{name}", *shape)

    memory, ffn = _memory_of(spec, model)
    names = _names(spec, memory, reader.config.flag("fuse_norm", True))
    return {
        "mixer": {**read_apart(memory, take), **read_named(memory, take, names)},
        "ffn": read_units(reader, "mlp", model.width, ffn),
        **read_norms(reader, model.width, NORMS),
    }


def _write(spec: Library, model: LanguageModel, params: Params) -> dict[str, np.ndarray]:
    memory, _ = _memory_of(spec, model)
    mixer = params["mixer"]
    own = {**write_apart(mixer), **write_named(mixer, _names(spec, memory))}
    return {
        **write_norms(params, NORMS),
        **{f"attn.{name}": x for name, x in own.items()},
        **write_units(params["ffn"], "mlp"),
    }


TABLE = (
    Library(
        "GLAForCausalLM",
        "gla",
        "gla",
        {
            "w_decay_in": "gk_proj.0.weight",
            "w_decay_out": "gk_proj.1.weight",
            "decay_bias": "gk_proj.1.bias",
            "norm": GATED_NORM,
            **OUT,
        },
        heads=4,
        keys=0.5,
        values=1.0,
        only={"elementwise_affine": True},
    ),
    Library(
        "DeltaNetForCausalLM",
        "delta_net",
        "deltanet",
        DELTA,
        heads=16,
        keys=1.0,
        values=1.0,
        gate=("use_gate", False),
        only={"qk_activation": "silu", "qk_norm": "l2", "use_beta": True},
    ),
    Library(
        "GatedDeltaNetForCausalLM",
        "gated_deltanet",
        "gated_deltanet",
        {"w_decay": "a_proj.weight", "decay_bias": "dt_bias", "a_log": "A_log", **DELTA},
        heads=6,
        keys=0.0,
        values=2.0,
        gate=("use_gate", True),
    ),
    Library(
        "RetNetForCausalLM",
        "retnet",
        "retnet",
        {"norm": GATED_NORM, **OUT},
        heads=8,
        keys=1.0,
        values=2.0,
        ratio=2.0,
        only={"elementwise_affine": True},
    ),
)
"""The classes that are read and written."""


def _family(spec: Library) -> Family:
    return Family(
        spec.read,
        spec.write,
        "model.embeddings.weight",
        "model.norm.weight",
        "model.layers.",
        functools.partial(_read, spec),
        functools.partial(_write, spec),
        kind=spec.kind,
    )


FAMILIES = {spec.official: _family(spec) for spec in TABLE}
"""Architecture of config.json -> how its folders are read and written."""
