"""Parameters of released models, as transformers counts them without any weight.

    python tests/golden/released.py CONFIG.PY tests/golden/released.json

reads sizes out of litgpt/config.py (github.com/Lightning-AI/litgpt, at SOURCE) and writes, for each
of NAMES, the fields of its config.json that sizes make and the number of its parameters. It needs
torch and transformers.
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
    """The parameters of the class, none of which is made."""
    import torch
    import transformers

    name = "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config"
    values = {**config, "pad_token_id": None}
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, name)(**values))
    return sum(weight.numel() for weight in model.parameters())


def main(source: str, target: str) -> None:
    """Writes them."""
    table = sizes(source)
    found = {}
    for name, kind in NAMES.items():
        config = config_of(name, kind, table[name])
        parameters = count(kind, config)
        config["architectures"] = [f"{kind}ForCausalLM"]
        found[name] = {"parameters": parameters, "config": config}
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(x)}" for name, x in found.items())
    pathlib.Path(target).write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
