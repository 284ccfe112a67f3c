"""A tiny random ParScale model, and what the official modelling code computes.

    python tests/golden/parscale.py FOLDER tests/golden

FOLDER holds a package `official` with modeling_qwen2_parscale.py and
configuration_qwen2_parscale.py of QwenLM/ParScale, which run under transformers 4.48 with torch
and einops. Written is hf_parscale: config.json, model.safetensors, and expected.npz with tokens,
logits and greedy continuations (with the official cache, which counts no prefix).
"""

from __future__ import annotations

import importlib
import json
import pathlib
import sys

import numpy as np

CONFIG = {
    "vocab_size": 48,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_theta": 5000.0,
    "tie_word_embeddings": True,
    "parscale_n": 3,
    "parscale_n_tokens": 5,
    "parscale_attn_smooth": 0.05,
}


def write(code: pathlib.Path, folder: pathlib.Path) -> None:
    """The model with every weight random, and what it computes."""
    import safetensors.torch
    import torch

    sys.path.insert(0, str(code))
    configuration = importlib.import_module("official.configuration_qwen2_parscale")
    modeling = importlib.import_module("official.modeling_qwen2_parscale")
    config = configuration.Qwen2ParScaleConfig(**CONFIG)
    torch.manual_seed(0)
    model = modeling.Qwen2ParScaleForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.uniform_(0.5, 1.5)
            else:
                torch.nn.init.normal_(weight, std=0.25)
    tokens = np.random.default_rng(0).integers(3, CONFIG["vocab_size"], (2, 19))
    with torch.no_grad():
        logits = model(torch.tensor(tokens)).logits
        given, cache, written = torch.tensor(tokens), None, []
        for _ in range(12):
            found = model(given, past_key_values=cache, use_cache=True)
            cache = found.past_key_values
            given = found.logits[:, -1].argmax(-1, keepdim=True)
            written.append(given.numpy())
    folder.mkdir(exist_ok=True)
    values = {"architectures": ["Qwen2ParScaleForCausalLM"], **config.to_diff_dict(), **CONFIG}
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")
    arrays = {n: x.contiguous() for n, x in model.state_dict().items() if n != "lm_head.weight"}
    safetensors.torch.save_file(arrays, folder / "model.safetensors")
    np.savez_compressed(
        folder / "expected.npz",
        tokens=tokens.astype(np.int32),
        logits=logits.float().numpy(),
        greedy=np.concatenate(written, axis=1).astype(np.int32),
    )


if __name__ == "__main__":
    write(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]) / "hf_parscale")
