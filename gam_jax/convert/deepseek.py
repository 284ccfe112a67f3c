"""DeepSeek-V2 and V3 and GLM-4.5 as Hugging Face transformers writes them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from gam_jax.convert import patterns
from gam_jax.convert.experts import Sparse, check_experts, count_experts, hidden_units
from gam_jax.convert.family import one, refuse
from gam_jax.convert.fields import Fields
from gam_jax.convert.folder import Reader
from gam_jax.convert.latent import (
    flag,
    read_latent,
    read_latent_arrays,
    write_latent_arrays,
    written_latent,
)
from gam_jax.convert.parts import read_units, write_units
from gam_jax.layers import LatentAttention, Layer, MoE
from gam_jax.models.language import LanguageModel
from gam_jax.nested import with_held
from gam_jax.ops.routing import Router
from gam_jax.params import Params

# Of the training (arXiv 2412.19437, section 4.2), which config.json does not tell.
TRAINED: dict[str, Any] = {
    "balance": 1e-4,
    "balance_over": "sequence",
    "z": 0.0,
    "bias_step": 1e-3,
}
BALANCE_BIAS = "gate.e_score_correction_bias"
GREEDY, LIMITED = "greedy", "group_limited_greedy"


@dataclasses.dataclass(frozen=True)
class Deep(Sparse):
    """Dense blocks, then experts as DeepSeek-V3's (arXiv 2412.19437, section 2.1.2).

    They are chosen by sigmoids and a balance bias, in groups; and there are shared ones.

    Attributes:
      first, scale, groups, chosen_groups, routed, hidden, shared: what is meant where config.json
        does not tell: dense blocks, the scale of weights, groups, experts, their hidden units, and
        shared ones.
    """

    first: int = 1
    scale: float = 1.0
    groups: int = 1
    chosen_groups: int = 1
    routed: int = 128
    hidden: int = 1408
    shared: int = 1

    def experts(self, config: Fields) -> MoE:
        """Those of a block that has some."""
        refuse(config, moe_layer_freq=1)
        names = ("n_routed_experts", "num_local_experts")
        return MoE(
            experts=count_experts(config, *names, default=self.routed),
            chosen=config.size("num_experts_per_tok", self.chosen),
            ffn=hidden_units(config, "moe_intermediate_size", self.hidden),
            shared=config.size("n_shared_experts", self.shared, least=0),
            router=self.router(config),
        )

    def router(self, config: Fields) -> Router:
        """How experts are chosen."""
        refuse(config, scoring_func="sigmoid", topk_method="noaux_tc")
        predicted(config)
        return Router(
            score="sigmoid",
            renormalise=flag(config, "norm_topk_prob"),
            scale=config.number("routed_scaling_factor", self.scale, above=0),
            groups=config.size("n_group", self.groups),
            chosen_groups=config.size("topk_group", self.chosen_groups),
            **TRAINED,
        )

    def dense(self, config: Fields, layers: int) -> list[bool]:
        """Whether each block is dense."""
        first = config.size("first_k_dense_replace", self.first, least=0)
        return [i < first for i in range(layers)]

    def bare(self, model: LanguageModel) -> LanguageModel:
        """With the training that `experts` gives all routers."""

        def changed(config: Any) -> Any:
            if not isinstance(config, Router):
                return with_held(config, changed)
            return dataclasses.replace(config, **TRAINED) if config.bias_step else config

        return changed(model)

    def written_experts(self, layer: Layer, dense: Sequence[bool]) -> dict[str, Any]:
        """The inverse of `experts` and `dense`, which must be the first blocks."""
        config: dict[str, Any] = {"first_k_dense_replace": sum(dense)}
        if not isinstance(layer, MoE) and any(dense):
            return config
        ffn = one(layer, MoE, self.official)
        return config | {
            "moe_intermediate_size": check_experts(ffn, self.official),
            "n_routed_experts": ffn.experts,
            "n_shared_experts": ffn.shared,
            "num_experts_per_tok": ffn.chosen,
            **self.written_router(ffn.router),
        }

    def written_router(self, router: Router) -> dict[str, Any]:
        """The inverse of `router`."""
        return {
            "n_group": router.groups,
            "topk_group": router.chosen_groups or router.groups,
            "norm_topk_prob": router.renormalise,
            "routed_scaling_factor": router.scale,
        }

    def read_ffn(self, ffn: Any, width: int, reader: Reader) -> Params:
        """The parameters of a feed-forward or of experts."""
        params = super().read_ffn(ffn, width, reader)
        if not isinstance(ffn, MoE):
            return params
        found = {**params}
        if ffn.router.bias_step:
            found["balance_bias"] = reader.take(f"{self.place}.{BALANCE_BIAS}", ffn.experts)
        units = dataclasses.replace(ffn.ffn, hidden=ffn.shared * ffn.ffn.hidden)
        shared = read_units(reader, f"{self.place}.shared_experts", width, units)
        return found | ({"shared": shared} if ffn.shared else {})

    def write_ffn(self, params: Params) -> dict[str, np.ndarray]:
        """The inverse of `read_ffn`. Where no expert is shared, its arrays are empty."""
        tensors = super().write_ffn(params)
        if "router" not in params:
            return tensors
        none = np.zeros((len(params["router"]), 0), np.float32)
        shared = params.get("shared", {"w_gate": none, "w_in": none, "w_out": none})
        tensors |= write_units(shared, f"{self.place}.shared_experts")
        if "balance_bias" in params:
            tensors[f"{self.place}.{BALANCE_BIAS}"] = params["balance_bias"]
        return tensors


@dataclasses.dataclass(frozen=True)
class Latent(Deep):
    """With latent attention."""

    mixer: ClassVar[type[Layer]] = LatentAttention

    def attentions(self, config: Fields, width: int, layers: int, eps: float) -> Sequence[Any]:
        """That of each layer."""
        return [read_latent(config, self.context)] * layers

    def written(self, attentions: Sequence[Any]) -> dict[str, Any]:
        """The inverse of `attentions`."""
        return written_latent(self.official, attentions[0])

    def read_mixer(self, mixer: Layer, width: int, reader: Reader) -> Params:
        """Latent attention's parameters."""
        return read_latent_arrays(one(mixer, LatentAttention, self.official), width, reader)

    def write_mixer(self, params: Params, width: int) -> dict[str, np.ndarray]:
        """The inverse of `read_mixer`."""
        return write_latent_arrays(params)


@dataclasses.dataclass(frozen=True)
class Softmax(Latent):
    """DeepSeek-V2's (arXiv 2405.04434): neighbours always turn, and no bias balances the router."""

    def attentions(self, config: Fields, width: int, layers: int, eps: float) -> Sequence[Any]:
        """That of each layer."""
        refuse(config, rope_interleave=True, mlp_bias=False)
        return super().attentions(config, width, layers, eps)

    def written(self, attentions: Sequence[Any]) -> dict[str, Any]:
        """The inverse of `attentions`."""
        told = super().written(attentions)
        del told["rope_interleave"]
        return told

    def router(self, config: Fields) -> Router:
        """By the best of all experts, or of those of the best groups."""
        refuse(config, scoring_func="softmax", norm_topk_prob=False)
        method = config.get("topk_method")
        if method not in (None, GREEDY, LIMITED):
            raise config.refused("topk_method", f"is not known here, {GREEDY} or {LIMITED} alone")
        groups, chosen = config.size("n_group", 1), config.size("topk_group", 1)
        limited = method == LIMITED and groups > 1
        return Router(
            renormalise=False,
            scale=config.number("routed_scaling_factor", self.scale, above=0),
            groups=groups if limited else 1,
            chosen_groups=chosen if limited else 0,
            group_best=1,
            balance=config.number("aux_loss_alpha", 0.001, least=0),
            balance_over="sequence" if config.flag("seq_aux", True) else "batch",
            z=0.0,
        )

    def written_router(self, router: Router) -> dict[str, Any]:
        """The inverse of `router`."""
        told = super().written_router(router) if router.groups > 1 else {}
        return {
            **told,
            "norm_topk_prob": False,
            "routed_scaling_factor": router.scale,
            "topk_method": LIMITED if router.groups > 1 else GREEDY,
            "aux_loss_alpha": router.balance,
            "seq_aux": router.balance_over == "sequence",
        }


def predicted(config: Fields) -> int:
    """Blocks of the multi-token head, which is not read."""
    default = config.size("num_mtp_layers", 0, least=0)
    return config.size("num_nextn_predict_layers", default, least=0)


def _spare(reader: Reader) -> list[str]:
    """The arrays of the multi-token head: its blocks are those behind the last.

    They are known by an array that no other block has, so a config.json of too few blocks is not
    taken for one of such a head.
    """
    last, more = reader.config["num_hidden_layers"], predicted(reader.config)
    spare = []
    for name in reader.names():
        number = re.match(r"model\.layers\.(\d{1,9})\.", name, re.ASCII)
        if (
            number
            and last <= int(number[1]) < last + more
            and f"{number[0]}eh_proj.weight" in reader
        ):
            spare.append(name)
    return spare


TABLE = (
    Latent(
        "DeepseekV3ForCausalLM",
        "deepseek_v3",
        context=4096,
        biases="all",
        first=3,
        scale=2.5,
        groups=8,
        chosen_groups=4,
        routed=256,
        hidden=2048,
    ),
    Softmax(
        "DeepseekV2ForCausalLM",
        "deepseek_v2",
        biases="all",
        first=0,
        routed=64,
        hidden=1407,
        shared=2,
    ),
    Deep(
        "Glm4MoeForCausalLM",
        "glm4_moe",
        context=131_072,
        kv_heads=8,
        biases="inputs",
        qk_norm="head",
        norm_switch=True,
        partial=0.5,
        eps=1e-5,
    ),
)
"""The classes that are read and written."""

FAMILIES = {
    spec.official: patterns.family(spec, type(spec).read_block, type(spec).write_block, _spare)
    for spec in TABLE
}
"""Architecture of config.json -> how its folders are read and written."""
