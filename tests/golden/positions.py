"""Angles of rotary positions as Hugging Face transformers computes them.

    python tests/golden/positions.py tests/golden/positions.npz

writes, for each of CONFIGS and LENGTHS, the angle of each pair from a token to the next and the
factor on queries and keys. It needs torch and transformers.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

LENGTHS = (48, 64, 65, 1000)
"""Tokens of a sequence: below, at, just above and far above the training's 64."""
SIZE = 16
ORIGINAL = {"original_max_position_embeddings": 64}
CONFIGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "yarn": {"rope_type": "yarn", "factor": 8.0, **ORIGINAL},
    "yarn not whole": {
        "rope_type": "yarn",
        "factor": 4.0,
        "beta_fast": 8.0,
        "beta_slow": 0.5,
        "truncate": False,
        **ORIGINAL,
    },
    "yarn weighed": {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.1}
    | ORIGINAL,
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        **ORIGINAL,
    },
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
        "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 9.0],
        **ORIGINAL,
    },
}
"""Name -> rope_parameters."""


def config_of(name: str) -> dict[str, Any]:
    """What a config.json says with them; dynamic positions begin at the declared limit."""
    return {
        "model_type": "llama",
        "max_position_embeddings": 64 if name == "dynamic" else 512,
        "rope_parameters": {"rope_theta": 200.0, **CONFIGS[name]},
    }


def angles(name: str, length: int) -> tuple[np.ndarray, float]:
    """The angles, and the factor."""
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(hidden_size=2 * SIZE, num_attention_heads=2, **config_of(name))
    rotary = LlamaRotaryEmbedding(config)
    rotary(torch.zeros(1, 1, SIZE), torch.arange(length)[None])
    return rotary.inv_freq.numpy().copy(), float(rotary.attention_scaling)


def main(path: str) -> None:
    """Writes them."""
    found: dict[str, Any] = {}
    for name in CONFIGS:
        for length in LENGTHS:
            found[f"{name}/{length}/speeds"], found[f"{name}/{length}/scale"] = angles(name, length)
    np.savez_compressed(path, **found)


if __name__ == "__main__":
    main(sys.argv[1])
