"""Adapters that PEFT writes for three of the golden folders, and what it computes with them.

    python tests/golden/peft_adapters.py tests/golden

It needs torch, transformers and peft (0.21). Written are peft_llama, peft_qwen2 and peft_mamba2:
adapter_config.json, adapter_model.safetensors, and expected.npz with the logits of the tokens of
the folder that the adapters are for.
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np

SETTINGS = {
    "llama": {
        "r": 2,
        "lora_alpha": 6,
        "target_modules": ["q_proj", "v_proj", "o_proj", "down_proj"],
    },
    "qwen2": {"r": 3, "lora_alpha": 4, "target_modules": "all-linear", "use_rslora": True},
    "mamba2": {"r": 2, "lora_alpha": 3, "target_modules": ["in_proj"]},
}


def write(name: str, golden: pathlib.Path) -> None:
    """Random adapters of a model, none of them zero."""
    import peft
    import torch
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(golden / f"hf_{name}")
    config = peft.LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.1, **SETTINGS[name])
    model = peft.get_peft_model(base, config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(weight, std=0.2)
    folder = golden / f"peft_{name}"
    model.peft_config["default"].base_model_name_or_path = f"tests/golden/hf_{name}"
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    np.savez_compressed(folder / "expected.npz", logits=logits(model, golden / f"hf_{name}"))


def logits(model: object, folder: pathlib.Path) -> np.ndarray:
    """What a model of torch computes of a golden folder's tokens."""
    import torch

    tokens = np.load(folder / "expected.npz")["tokens"]
    with torch.no_grad():
        return model(torch.tensor(tokens.astype(np.int64))).logits.float().numpy()  # type: ignore


if __name__ == "__main__":
    for name in SETTINGS:
        write(name, pathlib.Path(sys.argv[1]))
