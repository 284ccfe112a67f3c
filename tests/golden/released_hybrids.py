"""Parameters of released state-space models and hybrids, counted without any weight.

    python tests/golden/released_hybrids.py MAMBA tests/golden/released_hybrids.json

takes a copy of github.com/state-spaces/mamba as `official_mamba.py` does. Sizes are told by the
sources of CONFIGS, and by the class where these do not tell. Mamba's own classes count theirs,
transformers the others. It needs torch, transformers, triton and einops.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

from official_mamba import SOURCE, official_models

MAMBA = f"github.com/state-spaces/mamba/blob/{SOURCE}/README.md"
BRIDGE = (
    "github.com/NVIDIA-NeMo/Megatron-Bridge/blob/160ccccbb49d8eb37d05197a9fd4c4390eb9f88e/src/"
    "megatron/bridge/models/nemotronh/nemotron_h_provider.py"
)
JAMBA = (
    "github.com/sdpython/experimental-experiment/blob/2573b678e1fddced8e78896056645b6182deddae/"
    "experimental_experiment/torch_models/llm_model_helper.py"
)
DIMS = {"130m": (24, 768), "370m": (48, 1024), "1.4b": (48, 2048), "2.8b": (64, 2560)}
DIMS_2 = {"130m": (24, 768), "370m": (48, 1024), "1.3b": (48, 2048), "2.7b": (64, 2560)}


def _mamba(layers: int, width: int, multiple: int, **own: Any) -> dict[str, Any]:
    return {
        "d_model": width,
        "n_layer": layers,
        "vocab_size": 50_277,
        "ssm_cfg": own,
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": multiple,
    }


def _nemotron(pattern: str, width: int, hidden: int, **sizes: int) -> dict[str, Any]:
    return {
        "architectures": ["NemotronHForCausalLM"],
        "vocab_size": 131_072,
        "hybrid_override_pattern": pattern,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "n_groups": 8,
        "mamba_num_heads": 128,
        "mamba_head_dim": 64,
        "ssm_state_size": 128,
        **sizes,
    }


SMALL = "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"
NANO = "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-"
LARGE = (
    "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-"
    "M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"
)
NANO_3 = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"mamba-{n}": (MAMBA, _mamba(*dims, 8)) for n, dims in DIMS.items()},
    **{f"mamba2-{n}": (MAMBA, _mamba(*dims, 16, layer="Mamba2")) for n, dims in DIMS_2.items()},
    "Nemotron-H-4B": (BRIDGE, _nemotron(SMALL, 3072, 12_288, mamba_num_heads=112)),
    "Nemotron-H-8B": (BRIDGE, _nemotron(SMALL, 4096, 21_504)),
    "Nemotron-H-56B": (
        BRIDGE,
        _nemotron(
            LARGE,
            8192,
            32_768,
            mamba_num_heads=256,
            ssm_state_size=256,
            num_attention_heads=64,
        ),
    ),
    "Nemotron-Nano-9B-v2": (
        BRIDGE,
        _nemotron(NANO, 4480, 15_680, num_attention_heads=40, mamba_head_dim=80),
    ),
    "Nemotron-3-Nano-30B-A3B": (
        BRIDGE,
        _nemotron(
            NANO_3,
            2688,
            1856,
            num_key_value_heads=2,
            mamba_num_heads=64,
            n_routed_experts=128,
            num_experts_per_tok=6,
            moe_intermediate_size=1856,
            moe_shared_expert_intermediate_size=3712,
        ),
    ),
    "AI21-Jamba-1.5-Mini": (
        JAMBA,
        {
            "architectures": ["JambaForCausalLM"],
            "vocab_size": 65_536,
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "attn_layer_offset": 4,
            "attn_layer_period": 8,
            "expert_layer_offset": 1,
            "expert_layer_period": 2,
            "num_experts": 16,
            "num_experts_per_tok": 2,
            "mamba_d_state": 16,
            "mamba_d_conv": 4,
            "mamba_dt_rank": 256,
            "mamba_expand": 2,
        },
    ),
}
"""Model -> where its sizes are told, and config.json."""


def count(models: Any, config: dict[str, Any]) -> int:
    """The parameters of the class and its balance biases, none of which is made."""
    import torch
    import transformers

    with torch.device("meta"):
        if "d_model" in config:
            given = {**config, "fused_add_norm": False}
            model = models.MambaLMHeadModel(models.MambaConfig(**given))
        else:
            name = config["architectures"][0].removesuffix("ForCausalLM")
            values = {key: x for key, x in config.items() if key != "architectures"}
            made = getattr(transformers, f"{name}Config")(**values)
            model = getattr(transformers, f"{name}ForCausalLM")(made)
    stored = [*model.parameters()]
    stored += [x for name, x in model.named_buffers() if name.endswith("e_score_correction_bias")]
    return sum(weight.numel() for weight in stored)


def main(code: str, target: str) -> None:
    """Writes them."""
    models = official_models(code)
    lines = []
    for name, (source, config) in CONFIGS.items():
        found = {"parameters": count(models, config), "source": source, "config": config}
        lines.append(f" {json.dumps(name)}: {json.dumps(found)}")
    pathlib.Path(target).write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
