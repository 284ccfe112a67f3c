"""Tiny random models of the package mamba_ssm, and what its own code computes.

    python tests/golden/official_mamba.py MAMBA tests/golden

takes a copy of github.com/state-spaces/mamba at SOURCE. Its kernels need a GPU, so its reference
functions stand in their place. Arrays are written as safetensors, of which the package itself
writes a pickle. It needs torch, transformers, triton and einops.
"""

from __future__ import annotations

import importlib
import json
import pathlib
import sys
import types
from typing import Any

import numpy as np

from experiments.selftest.official import expected

SOURCE = "e9594ce1c732d97440f0332fdc43170a2294dbfa"
COMMON = {"d_model": 16, "n_layer": 2, "rms_norm": True, "residual_in_fp32": True}
CONFIGS = {
    "hf_state_spaces_mamba": {  # the fields of state-spaces/mamba-130m
        **COMMON,
        "vocab_size": 29,
        "ssm_cfg": {"d_state": 5, "d_conv": 3, "expand": 3, "dt_rank": 2, "bias": True},
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 8,
    },
    "hf_state_spaces_mamba2": {  # and of state-spaces/mamba2-130m
        **COMMON,
        "d_intermediate": 0,
        "vocab_size": 30,
        "ssm_cfg": {
            "layer": "Mamba2",
            "d_state": 6,
            "headdim": 4,
            "ngroups": 2,
            "norm_before_gate": True,
            "conv_bias": False,
        },
        "attn_layer_idx": [],
        "attn_cfg": {},
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 16,
        "tie_embeddings": False,
    },
}
"""Folder -> config.json."""


def official_models(code: str) -> Any:
    """Its module of models, with reference functions for kernels."""
    sys.path.insert(0, code)
    nothing: Any = types.ModuleType("mamba3")
    nothing.Mamba3 = None  # imports kernels that no CPU has
    sys.modules["mamba_ssm.modules.mamba3"] = nothing
    models = importlib.import_module("mamba_ssm.models.mixer_seq_simple")
    first, second, scan, gated, plain, combined = (
        importlib.import_module(f"mamba_ssm.{name}")
        for name in (
            "modules.mamba_simple",
            "modules.mamba2",
            "ops.selective_scan_interface",
            "ops.triton.layernorm_gated",
            "ops.triton.layer_norm",
            "ops.triton.ssd_combined",
        )
    )
    first.selective_scan_fn = scan.selective_scan_ref
    gated.rmsnorm_fn = gated.rms_norm_ref

    def normed(self: Any, x: Any) -> Any:
        return plain.rms_norm_ref(x, self.weight, self.bias, eps=self.eps)

    plain.RMSNorm.forward = normed

    def scanned(*args: Any, seq_idx: None, cu_seqlens: None, **given: Any) -> Any:
        for name in ("return_final_states", "return_varlen_states"):
            assert not given.pop(name)
        given["chunk_size"] = 1  # it takes whole chunks alone
        return combined.ssd_chunk_scan_combined_ref(*args, **given)

    second.mamba_chunk_scan_combined = scanned
    return models


def write(models: Any, name: str, folder: pathlib.Path) -> None:
    """One folder."""
    import safetensors.torch
    import torch

    values: dict[str, Any] = CONFIGS[name]
    slow = {"use_mem_eff_path": False} if values["ssm_cfg"].get("layer") else {}
    ran = {**values, "ssm_cfg": {**values["ssm_cfg"], **slow}, "fused_add_norm": False}
    torch.manual_seed(0)
    model = models.MambaLMHeadModel(models.MambaConfig(**ran)).eval()
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if path.endswith(("A_log", "dt_bias", "dt_proj.bias")):
                weight.uniform_(-2.0, 1.0)
            elif weight.ndim == 1:
                weight.uniform_(0.5, 1.5)
            else:
                torch.nn.init.normal_(weight, std=0.25)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values, indent=4))
    arrays = {name: x.clone().contiguous() for name, x in model.state_dict().items()}
    if model.config.tie_embeddings:  # one array has two names, of which safetensors keeps one
        del arrays["lm_head.weight"]
    safetensors.torch.save_file(arrays, folder / "model.safetensors")
    np.savez_compressed(folder / "expected.npz", **expected(model))


if __name__ == "__main__":
    for folder in CONFIGS:
        write(official_models(sys.argv[1]), folder, pathlib.Path(sys.argv[2]) / folder)
