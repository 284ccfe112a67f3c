"""What the plain code of flash-linear-attention makes of Kimi Delta Attention, in tiny numbers.

    git clone https://github.com/fla-org/flash-linear-attention
    python tests/golden/kimi_delta.py flash-linear-attention tests/golden/kimi_delta.npz

writes arguments, results and gradients of the recurrence in fla/ops/kda/naive.py ("op."), and the
state dict, an input and the output of the layer in fla/layers/kda.py ("layer."). Both files run as
they are. The layer's kernels need a GPU: the script gives it that recurrence, and plain PyTorch for
norms and convolutions, in their place. Made with commit bc3b101d; needs torch and einops.
"""

from __future__ import annotations

import pathlib
import runpy
import sys
import types
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

EPS = 1e-6


class ShortConvolution(nn.Conv1d):
    """A filter for each channel on this and earlier tokens, then silu."""

    def __init__(self, hidden_size: int, kernel_size: int, bias: bool, activation: str) -> None:
        assert activation == "silu"
        super().__init__(hidden_size, hidden_size, kernel_size, groups=hidden_size, bias=bias)

    def forward(self, x: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        """Of [B, T, D]."""
        padded = functional.pad(x.transpose(1, 2), (self.kernel_size[0] - 1, 0))
        return functional.silu(super().forward(padded)).transpose(1, 2), None


class GatedNorm(nn.Module):
    """RMS norm with a scale, times the activation of a gate."""

    def __init__(self, hidden_size: int, activation: str, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(hidden_size)), eps
        self.activation = {"sigmoid": torch.sigmoid, "swish": functional.silu}[activation]

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """Over the last axis."""
        size = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return x * size * self.weight * self.activation(gate)


def unit(x: torch.Tensor) -> torch.Tensor:
    """As fla/modules/l2norm.py has it."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + EPS)


def kernel_of(naive: Any) -> Any:
    """What the layer calls, of the plain recurrence."""

    def kernel(**given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        asked = ("use_qk_l2norm_in_kernel", "use_gate_in_kernel", "use_beta_sigmoid_in_kernel")
        assert all(given[name] for name in asked)
        assert not given["allow_neg_eigval"]
        assert given["lower_bound"] is None
        g = given["g"] + given["dt_bias"].view(given["g"].shape[-2:])
        g = -given["A_log"].exp()[:, None] * functional.softplus(g)
        q, k = unit(given["q"]), unit(given["k"])
        return naive(q, k, given["v"], g, given["beta"].sigmoid(), output_final_state=True)

    return kernel


def of_the_op(naive: Any) -> dict[str, torch.Tensor]:
    """Some decays are strong: e^-40 for a token."""
    draw = torch.Generator().manual_seed(0)
    rows, tokens, heads, keys, values = 2, 13, 2, 4, 3
    normal = {"generator": draw}
    q, k = (torch.randn(rows, tokens, heads, keys, **normal) for _ in range(2))
    v = torch.randn(rows, tokens, heads, values, **normal)
    g = -torch.exp(2 * torch.randn(rows, tokens, heads, keys, **normal) - 1)
    g = torch.where(torch.rand(g.shape, **normal) < 0.1, -40.0, g)
    beta = torch.rand(rows, tokens, heads, **normal)
    state = torch.randn(rows, heads, keys, values, **normal)
    given = {"q": q, "k": unit(k), "v": v, "g": g, "beta": beta, "state": state}
    for x in given.values():
        x.requires_grad_()
    q, k, v, g, beta, state = given.values()
    y, last = naive(q, k, v, g, beta, initial_state=state, output_final_state=True)
    by_y, by_last = torch.randn(y.shape, **normal), torch.randn(last.shape, **normal)
    found = torch.autograd.grad((y * by_y).sum() + (last * by_last).sum(), list(given.values()))
    gradients = {f"by_{name}": x for name, x in zip(given, found, strict=True)}
    return given | gradients | {"y": y, "last": last, "to_y": by_y, "to_last": by_last}


def of_the_layer(checkout: pathlib.Path, naive: Any) -> dict[str, torch.Tensor]:
    """Width 10, 2 heads of 4 keys and 6 values."""
    kernel = kernel_of(naive)

    def nothing(*_: Any, **__: Any) -> None:
        return None

    def as_given(x: torch.Tensor, *_: Any) -> tuple[torch.Tensor, None, None]:
        return x, None, None

    for name, content in {
        "fla": {},
        "fla.layers": {},
        "fla.layers.utils": {
            "get_layer_cache": nothing,
            "update_layer_cache": nothing,
            "repad_hidden_states": lambda x, *_: x,
            "unpad_hidden_states": as_given,
        },
        "fla.modules": {"FusedRMSNormGated": GatedNorm, "ShortConvolution": ShortConvolution},
        "fla.ops": {},
        "fla.ops.kda": {"chunk_kda": kernel, "fused_recurrent_kda": kernel},
    }.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(content)
    layer = runpy.run_path(str(checkout / "fla/layers/kda.py"))["KimiDeltaAttention"]
    torch.manual_seed(1)
    layer = layer(hidden_size=10, expand_v=1.5, head_dim=4, num_heads=2).eval()
    for name, parameter in layer.named_parameters():
        nn.init.normal_(parameter, 0.1, 1.0 if name == "dt_bias" else 0.5)
    x = torch.randn(2, 7, 10)
    return {**layer.state_dict(), "x": x, "y": layer(x)[0]}


def main(checkout: str, file: str) -> None:
    """Writes the file."""
    path = pathlib.Path(checkout)
    naive = runpy.run_path(str(path / "fla/ops/kda/naive.py"))["naive_recurrent_kda"]
    found = {f"op.{name}": x for name, x in of_the_op(naive).items()}
    found |= {f"layer.{name}": x for name, x in of_the_layer(path, naive).items()}
    np.savez_compressed(file, **{name: x.detach().numpy() for name, x in found.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
