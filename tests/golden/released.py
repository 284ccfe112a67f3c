"""Parameters of released models, as transformers counts them without any weight.

    python tests/golden/released.py CONFIG.PY tests/golden/released.json

reads sizes out of litgpt/config.py (github.com/Lightning-AI/litgpt, at SOURCE) and writes, for each
of NAMES and of OTHERS, the fields of its config.json that sizes make and the number of its
parameters. It needs torch and transformers.
"""

from __future__ import annotations

import json
import pathlib
import sys
import types
from typing import Any

SOURCE = "26857050fe3ff627cd714fe92f5838f51a3d5efa"
NAMES = {
    "Llama-3.1-8B": "Llama",
    "Llama-3.2-1B": "Llama",
    "Llama-3.2-3B": "Llama",
    "Llama-3.3-70B-Instruct": "Llama",
    "SmolLM2-135M": "Llama",
    "SmolLM2-1.7B": "Llama",
    "Mistral-7B-v0.1": "Mistral",
    "Mistral-7B-v0.3": "Mistral",
    "Qwen2.5-0.5B": "Qwen2",
    "Qwen2.5-1.5B": "Qwen2",
    "Qwen2.5-7B": "Qwen2",
    "QwQ-32B": "Qwen2",
    "Qwen3-0.6B": "Qwen3",
    "Qwen3-4B": "Qwen3",
    "Qwen3-8B": "Qwen3",
    "Qwen3-14B": "Qwen3",
    "Gemma-2b": "Gemma",
    "Gemma-7b": "Gemma",
    "Gemma-2-2b": "Gemma2",
    "Gemma-2-9b": "Gemma2",
    "Gemma-2-27b": "Gemma2",
    "Gemma-3-1b-it": "Gemma3",
    "Gemma-3-4b-it": "Gemma3",
    "Gemma-3-27b-it": "Gemma3",
    "OLMo-2-1124-7B": "Olmo2",
    "Phi-3-mini-4k-instruct": "Phi3",
    "phi-4": "Phi3",
    "Phi-4-mini-instruct": "Phi3",
    "Mixtral-8x7B-v0.1": "Mixtral",
    "Mixtral-8x22B-v0.1": "Mixtral",
    "Qwen3-30B-A3B": "Qwen3Moe",
    "Qwen3-235B-A22B": "Qwen3Moe",
}
"""Model -> its class in transformers."""
TIED = (
    "Llama-3.2",
    "SmolLM2",
    "Qwen2.5-0.5B",
    "Qwen2.5-1.5B",
    "Qwen3-0.6B",
    "Qwen3-4B",
    "Gemma-",
    "Phi-4-mini",
)
"""Models whose head is the embedding, which litgpt stores twice: as their model cards count."""

GPT_OSS: dict[str, Any] = {
    "vocab_size": 201_088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "num_experts_per_tok": 4,
    "sliding_window": 128,
}
GLM: dict[str, Any] = {
    "vocab_size": 151_552,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "attention_bias": True,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "partial_rotary_factor": 0.5,
    "rope_theta": 1e6,
}
DEEPSEEK: dict[str, Any] = {
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
DEEPSEEK_AT = (
    "github.com/deepseek-ai/DeepSeek-V3/blob/9b4e9788e4a3a731f7567338ed15d3ec549ce03b/"
    "inference/configs"
)
SLIME = "github.com/THUDM/slime/blob/624b824a898ab0ec1fcb4d373004c7f3852bf515/scripts/models"
OTHERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt-oss-20b": (
        "GptOss",
        "github.com/AI-Hypercomputer/maxtext/blob/e591f30cbbf217ed67ef71263ec0538239f9c3b8/src/"
        "maxtext/configs/models/gpt-oss-20b.yml",
        {**GPT_OSS, "num_hidden_layers": 24, "num_local_experts": 32},
    ),
    "gpt-oss-120b": (
        "GptOss",
        "github.com/openai/gpt-oss/blob/7b583341fe16729127f6d5b94a7b09ccae97e1a1/gpt_oss/torch/"
        "model.py",
        {**GPT_OSS, "num_hidden_layers": 36, "num_local_experts": 128},
    ),
    "GLM-4.5-Air": (
        "Glm4Moe",
        f"{SLIME}/glm4.5-106B-A12B.sh",
        {
            **GLM,
            "hidden_size": 4096,
            "intermediate_size": 10_944,
            "moe_intermediate_size": 1408,
            "num_hidden_layers": 46,
            "first_k_dense_replace": 1,
            "n_routed_experts": 128,
        },
    ),
    "GLM-4.5": (
        "Glm4Moe",
        f"{SLIME}/glm4.5-355B-A32B.sh",
        {
            **GLM,
            "hidden_size": 5120,
            "intermediate_size": 12_288,
            "moe_intermediate_size": 1536,
            "num_hidden_layers": 92,
            "first_k_dense_replace": 3,
            "n_routed_experts": 160,
            "routed_scaling_factor": 2.5,
            "use_qk_norm": True,
        },
    ),
    "DeepSeek-V2-Lite": (
        "DeepseekV2",
        f"{DEEPSEEK_AT}/config_16B.json",
        {
            **DEEPSEEK,
            "vocab_size": 102_400,
            "hidden_size": 2048,
            "intermediate_size": 10_944,
            "moe_intermediate_size": 1408,
            "num_hidden_layers": 27,
            "first_k_dense_replace": 1,
            "num_attention_heads": 16,
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "num_experts_per_tok": 6,
            "q_lora_rank": None,
        },
    ),
    "DeepSeek-V2": (
        "DeepseekV2",
        f"{DEEPSEEK_AT}/config_236B.json",
        {
            **DEEPSEEK,
            "vocab_size": 102_400,
            "hidden_size": 5120,
            "intermediate_size": 12_288,
            "moe_intermediate_size": 1536,
            "num_hidden_layers": 60,
            "first_k_dense_replace": 1,
            "num_attention_heads": 128,
            "n_routed_experts": 160,
            "n_shared_experts": 2,
            "num_experts_per_tok": 6,
            "topk_method": "group_limited_greedy",
            "n_group": 8,
            "topk_group": 3,
            "routed_scaling_factor": 16.0,
            "q_lora_rank": 1536,
        },
    ),
    "DeepSeek-V3": (
        "DeepseekV3",
        f"{DEEPSEEK_AT}/config_671B.json",
        {
            **DEEPSEEK,
            "vocab_size": 129_280,
            "hidden_size": 7168,
            "intermediate_size": 18_432,
            "moe_intermediate_size": 2048,
            "num_hidden_layers": 61,
            "first_k_dense_replace": 3,
            "num_attention_heads": 128,
            "num_key_value_heads": 128,
            "n_routed_experts": 256,
            "n_shared_experts": 1,
            "num_experts_per_tok": 8,
            "n_group": 8,
            "topk_group": 4,
            "routed_scaling_factor": 2.5,
            "q_lora_rank": 1536,
        },
    ),
}
"""Model -> its class in transformers, where its sizes are published, and those sizes."""


def sizes(path: str) -> dict[str, dict[str, Any]]:
    """The entries of litgpt's table by name; nothing else of litgpt is needed for it."""
    for name in ("torch", "yaml", "litgpt", "litgpt.utils"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["litgpt.utils"].find_multiple = lambda n, k: -(-n // k) * k  # type: ignore[attr-defined]
    module: Any = types.ModuleType("config")
    sys.modules["config"] = module  # dataclasses look for it there
    names = vars(module)
    exec(compile(pathlib.Path(path).read_text(), path, "exec"), names)
    for name in ("torch", "yaml", "config"):
        del sys.modules[name]
    return {entry["name"]: entry for entry in names["configs"]}


def config_of(name: str, kind: str, found: dict[str, Any]) -> dict[str, Any]:
    """Fields of a config.json; litgpt's defaults are 4,096 channels in 32 heads."""
    heads = found.get("n_head", 32)
    config: dict[str, Any] = {
        "vocab_size": found.get("padded_vocab_size", found.get("vocab_size")),
        "hidden_size": found.get("n_embd", 4096),
        "intermediate_size": found["intermediate_size"],
        "num_hidden_layers": found["n_layer"],
        "num_attention_heads": heads,
        "num_key_value_heads": found.get("n_query_groups", heads),
        **({"max_position_embeddings": found["block_size"]} if "block_size" in found else {}),
        "rope_theta": float(found.get("rope_base", 10_000)),
        "tie_word_embeddings": name.startswith(TIED),
    }
    config["head_dim"] = found.get("head_size", config["hidden_size"] // heads)
    if kind == "Mixtral":
        config |= {"num_local_experts": found["n_expert"]}
        config |= {"num_experts_per_tok": found["n_expert_per_token"]}
    if kind == "Qwen3Moe":
        config |= {"num_experts": found["n_expert"]}
        config |= {"num_experts_per_tok": found["n_expert_per_token"]}
        config |= {"moe_intermediate_size": found["moe_intermediate_size"]}
    if kind == "Phi3":
        del config["head_dim"]
        config["partial_rotary_factor"] = found["rotary_percentage"]
    return config


def count(kind: str, config: dict[str, Any]) -> int:
    """The parameters of the class and its balance biases, none of which is made."""
    import torch
    import transformers

    name = "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config"
    values = {**config, "pad_token_id": None}
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, name)(**values))
    named = dict(model.named_buffers())
    biases = [x for path, x in named.items() if path.endswith("e_score_correction_bias")]
    return sum(weight.numel() for weight in (*model.parameters(), *biases))


def entry(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    """What is written of a model."""
    named = {**config, "architectures": [f"{kind}ForCausalLM"]}
    return {"parameters": count(kind, config), "config": named}


def main(source: str, target: str) -> None:
    """Writes them."""
    table = sizes(source)
    found = {}
    for name, kind in NAMES.items():
        found[name] = entry(kind, config_of(name, kind, table[name]))
    for name, (kind, _, config) in OTHERS.items():
        found[name] = entry(kind, config)
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(x)}" for name, x in found.items())
    pathlib.Path(target).write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
