"""gpt-oss as Hugging Face transformers writes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from gam_jax.convert import patterns
from gam_jax.convert.attentions import FULL, SLIDING
from gam_jax.convert.experts import Sparse, hidden_of
from gam_jax.convert.family import one
from gam_jax.convert.fields import Fields
from gam_jax.convert.folder import Reader
from gam_jax.layers import MLP, Layer, MoE
from gam_jax.layers.mlp import CLAMPED
from gam_jax.params import Params


@dataclasses.dataclass(frozen=True)
class Clamped(Sparse):
    """Experts with biases and the clamped SwiGLU, stored as one array each; a biased router."""

    def experts(self, config: Fields) -> MoE:
        """Those of a block."""
        config.only("hidden_act", "silu")
        plain = super().experts(config)
        ffn = dataclasses.replace(
            plain.ffn,
            activation=CLAMPED,
            bias=True,
            alpha=config.number("swiglu_alpha", 1.702, above=0),
            clamp=config.number("swiglu_limit", 7.0, above=0),
        )
        router = dataclasses.replace(plain.router, bias=True)
        return dataclasses.replace(plain, ffn=ffn, router=router)

    def written_experts(self, layer: Layer, dense: Sequence[bool]) -> dict[str, Any]:
        """The inverse of `experts`."""
        ffn = one(layer, MoE, self.official)
        plain = MLP(activation="swiglu", hidden=hidden_of(ffn), bias=False)
        told = super().written_experts(dataclasses.replace(ffn, ffn=plain), dense)
        return {**told, "swiglu_alpha": ffn.ffn.alpha, "swiglu_limit": ffn.ffn.clamp}

    def read_ffn(self, ffn: Any, width: int, reader: Reader) -> Params:
        """Columns of gate and in stand in turn; their inputs come first."""
        count, hidden = ffn.experts, ffn.ffn.hidden

        def take(name: str, *shape: int) -> np.ndarray:
            return reader.take(f"{self.place}.{name}", *shape)

        both = take("experts.gate_up_proj", count, width, 2 * hidden)
        bias = take("experts.gate_up_proj_bias", count, 2 * hidden)
        experts = {
            "w_gate": both[..., ::2],
            "b_gate": bias[..., ::2],
            "w_in": both[..., 1::2],
            "b_in": bias[..., 1::2],
            "w_out": take("experts.down_proj", count, hidden, width).swapaxes(1, 2),
            "b_out": take("experts.down_proj_bias", count, width),
        }
        return {
            "router": take("router.weight", count, width).T,
            "router_bias": take("router.bias", count),
            "experts": experts,
        }

    def write_ffn(self, params: Params) -> dict[str, np.ndarray]:
        """The inverse of `read_ffn`."""
        own = params["experts"]
        found = {
            "experts.gate_up_proj": _in_turn(own["w_gate"], own["w_in"]),
            "experts.gate_up_proj_bias": _in_turn(own["b_gate"], own["b_in"]),
            "experts.down_proj": own["w_out"].swapaxes(1, 2),
            "experts.down_proj_bias": own["b_out"],
            "router.weight": params["router"].T,
            "router.bias": params["router_bias"],
        }
        return {f"{self.place}.{name}": x for name, x in found.items()}


def _in_turn(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Columns of the one and of the other."""
    return np.stack([first, second], axis=-1).reshape(*first.shape[:-1], -1)


def _each_second(config: Fields, layers: int) -> list[str]:
    return [FULL if i % 2 else SLIDING for i in range(layers)]


SPEC = Clamped(
    "GptOssForCausalLM",
    "gpt_oss",
    context=131_072,
    kv_heads=8,
    head_size=64,
    theta=150_000.0,
    stretched={
        "rope_type": "yarn",
        "factor": 32.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
    biases="all",
    biased=True,
    sinks=True,
    windows="listed",
    window=128,
    kinds=_each_second,
    eps=1e-5,
    chosen=4,
    renormalises=True,
)

FAMILIES = {SPEC.official: patterns.family(SPEC, Clamped.read_block, Clamped.write_block)}
"""Architecture of config.json -> how its folders are read and written."""
