"""Tiny random models of flash-linear-attention, and what its plain code computes from them.

    git clone https://github.com/fla-org/flash-linear-attention
    PYTHONPATH=. python tests/golden/fla_models.py flash-linear-attention tests/golden [NAME ...]

writes folders as `gam convert --selftest` does. Configurations and mixers are the library's own
files, run as they are: fla/models/*/configuration_*.py and fla/layers/*.py. Their kernels need a
GPU; in their place stand the recurrences of fla/ops/*/naive.py, and plain PyTorch for norms,
convolutions and rotary positions. The blocks around are written here, as
fla/models/*/modeling_*.py has them. Made with commit bc3b101d; needs torch and transformers.
"""

from __future__ import annotations

import inspect
import pathlib
import runpy
import sys
import types
from typing import Any

import kimi_delta
import numpy as np
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

from experiments.selftest import official

SMALL = {
    "vocab_size": 32,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_heads": 3,
    "norm_eps": 1e-4,
    "pad_token_id": None,
}
MODELS = {
    "hf_gla": ("gla", "GLA", "gla", "GatedLinearAttention", {**SMALL, "expand_v": 1.25}),
    "hf_gla_convolved": (
        "gla",
        "GLA",
        "gla",
        "GatedLinearAttention",
        {
            **SMALL,
            "use_short_conv": True,
            "conv_size": 3,
            "use_output_gate": False,
            "feature_map": "relu",
            "expand_k": 1.0,
            "tie_word_embeddings": True,
        },
    ),
    "hf_delta_net": (
        "delta_net",
        "DeltaNet",
        "delta_net",
        "DeltaNet",
        {**SMALL, "expand_k": 0.5, "conv_size": 2, "allow_neg_eigval": True, "use_gate": True},
    ),
    "hf_gated_deltanet": (
        "gated_deltanet",
        "GatedDeltaNet",
        "gated_deltanet",
        "GatedDeltaNet",
        {**SMALL, "num_heads": 2, "num_v_heads": 6, "head_dim": 4, "expand_v": 1.25},
    ),
    "hf_retnet": (
        "retnet",
        "RetNet",
        "multiscale_retention",
        "MultiScaleRetention",
        {**SMALL, "expand_k": 0.5, "expand_v": 1.5},
    ),
}
"""Folder -> (model_type, name of the model, file of the layer, its class, configuration)."""


class Convolution(kimi_delta.ShortConvolution):
    """No two have one backend, so that the library does not join them."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.backend = object()


class Norm(nn.Module):
    """RMS norm with a scale."""

    def __init__(self, hidden_size: int, eps: float, elementwise_affine: bool = True, **_: Any):
        super().__init__()
        assert elementwise_affine
        self.weight, self.eps = nn.Parameter(torch.ones(hidden_size)), eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Over the last axis."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class GatedNorm(Norm):
    """And times silu of a gate."""

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Over the last axis."""
        return super().forward(x) * functional.silu(gate)


class Rotary(nn.Module):
    """Plain rotary positions of halves of a head, with base 10,000 (arXiv 2104.09864)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.speeds = 10_000.0 ** (-torch.arange(0, dim, 2) / dim)

    def forward(self, q: torch.Tensor, k: torch.Tensor, **_: Any) -> tuple[torch.Tensor, ...]:
        """Of [B, T, H, K]."""
        angles = torch.arange(q.shape[1])[:, None, None] * self.speeds
        turn = torch.polar(torch.ones_like(angles), angles)

        def turned(x: torch.Tensor) -> torch.Tensor:
            pairs = torch.complex(*x.chunk(2, -1)) * turn
            return torch.cat([pairs.real, pairs.imag], dim=-1)

        return turned(q), turned(k)


def kernels(checkout: pathlib.Path) -> dict[str, dict[str, Any]]:
    """What layers import of fla.ops, by module."""

    def naive(path: str, name: str) -> Any:
        return runpy.run_path(str(checkout / "fla/ops" / path / "naive.py"))[name]

    gla, retention = naive("gla", "naive_recurrent_gla"), naive("retention", "naive_retention")
    delta = naive("delta_rule", "delta_rule_recurrence")
    gated = naive("gated_delta_rule", "naive_recurrent_gated_delta_rule")

    def by_heads(run: Any, *arrays: torch.Tensor) -> torch.Tensor:
        found = run(*(x.transpose(1, 2) for x in arrays))
        return (found[0] if isinstance(found, tuple) else found).transpose(1, 2)

    def run_gla(q: Any, k: Any, v: Any, gk: Any, **_: Any) -> Any:
        return gla(q, k, v, gk)

    def run_delta(q: Any, k: Any, v: Any, beta: Any, **given: Any) -> Any:
        assert given["use_qk_l2norm_in_kernel"]
        return by_heads(delta, kimi_delta.unit(q), kimi_delta.unit(k), v, beta), None

    def run_gated(q: Any, k: Any, v: Any, g: Any, beta: Any, **given: Any) -> Any:
        asked = ("use_qk_l2norm_in_kernel", "use_gate_in_kernel", "use_beta_sigmoid_in_kernel")
        assert all(given[name] for name in asked)
        times = v.shape[2] // q.shape[2]  # the kernel's head of keys is its head over `times`
        q, k = (kimi_delta.unit(x).repeat_interleave(times, dim=2) for x in (q, k))
        g = -given["A_log"].exp() * functional.softplus(g + given["dt_bias"])
        beta = beta.sigmoid() * (2 if given["allow_neg_eigval"] else 1)
        return gated(q, k, v, beta, g)

    def run_retention(q: Any, k: Any, v: Any, **_: Any) -> Any:
        return by_heads(retention, q, k, v), None

    return {
        "fla.ops.gla": dict.fromkeys(
            ("chunk_gla", "fused_chunk_gla", "fused_recurrent_gla"), run_gla
        ),
        "fla.ops.delta_rule": dict.fromkeys(
            ("chunk_delta_rule", "fused_recurrent_delta_rule"), run_delta
        ),
        "fla.ops.gated_delta_rule": dict.fromkeys(
            ("chunk_gated_delta_rule", "fused_recurrent_gated_delta_rule"), run_gated
        ),
        "fla.ops.retention": dict.fromkeys(
            [f"{way}_retention" for way in ("chunk", "fused_chunk", "fused_recurrent", "parallel")],
            run_retention,
        ),
    }


def stand_in(checkout: pathlib.Path) -> None:
    """Modules of the names that its files import."""

    def nothing(*_: Any, **__: Any) -> None:
        return None

    def as_given(x: torch.Tensor, *_: Any) -> tuple[torch.Tensor, None, None]:
        return x, None, None

    norms = {"FusedRMSNormGated": GatedNorm, "RMSNorm": Norm}
    activations = {"swish": functional.silu, "relu": functional.relu}
    contents: dict[str, dict[str, Any]] = {
        "fla": {},
        "fla.layers": {},
        "fla.layers.utils": {
            "get_layer_cache": nothing,
            "update_layer_cache": nothing,
            "repad_hidden_states": lambda x, *_: x,
            "unpad_hidden_states": as_given,
        },
        "fla.modules": {**norms, "ShortConvolution": Convolution},
        "fla.modules.activations": {"ACT2FN": activations},
        "fla.modules.convolution": {"causal_conv1d": nothing},
        "fla.modules.rotary": {"RotaryEmbedding": Rotary},
        "fla.ops": {},
        "fla.ops.utils": {},
        "fla.ops.utils.index": {"prepare_lens_from_mask": nothing},
        "fla.models": {},
        "fla.models.hybrid": runpy.run_path(str(checkout / "fla/models/hybrid.py")),
        **kernels(checkout),
    }
    for name, content in contents.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(content)


class Units(nn.Module):
    """A SwiGLU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of [B, T, D]."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Model(nn.Module):
    """The blocks of a configuration, with mixers of that class."""

    def __init__(self, config: Any, mixer: Any) -> None:
        super().__init__()
        self.config, width = config, config.hidden_size
        given = {**vars(config), "mode": config.attn_mode, "gate_fn": config.hidden_act}
        names = inspect.signature(mixer).parameters
        given = {name: value for name, value in given.items() if name in names}
        self.model = nn.Module()
        self.model.embeddings = nn.Embedding(config.vocab_size, width)
        self.model.layers = nn.ModuleList()
        for i in range(config.num_hidden_layers):
            block = nn.Module()
            block.attn_norm, block.mlp_norm = (Norm(width, config.norm_eps) for _ in range(2))
            block.attn = mixer(**given, layer_idx=i)
            block.mlp = Units(width, config.intermediate_size)
            self.model.layers.append(block)
        self.model.norm = Norm(width, config.norm_eps)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(width, config.vocab_size, bias=False)

    def forward(self, tokens: torch.Tensor, use_cache: bool = False) -> types.SimpleNamespace:
        """The logits."""
        x = self.model.embeddings(tokens)
        for block in self.model.layers:
            x = x + block.attn(block.attn_norm(x))[0]
            x = x + block.mlp(block.mlp_norm(x))
        tied = self.config.tie_word_embeddings
        head = self.model.embeddings.weight if tied else self.lm_head.weight
        return types.SimpleNamespace(logits=self.model.norm(x) @ head.T)


def main(checkout: str, folder: str, *only: str) -> None:
    """Writes the folders of these names; all if there is none."""
    path = pathlib.Path(checkout)
    stand_in(path)
    for name in only or MODELS:
        kind, title, file, mixer, values = MODELS[name]
        source = path / "fla/models" / kind / f"configuration_{kind}.py"
        config = runpy.run_path(str(source))[f"{title}Config"](**values)
        config.architectures = [f"{title}ForCausalLM"]
        layer = runpy.run_path(str(path / "fla/layers" / f"{file}.py"))[mixer]
        torch.manual_seed(0)
        model = Model(config, layer).eval()
        official.randomise(model)
        target = pathlib.Path(folder) / name
        config.save_pretrained(target)
        safetensors.torch.save_file(model.state_dict(), target / "model.safetensors")
        np.savez_compressed(target / "expected.npz", **official.expected(model))


if __name__ == "__main__":
    main(*sys.argv[1:])
