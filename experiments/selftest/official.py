"""Random models of Hugging Face transformers, and what they compute. It needs torch."""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

PROMPT, WRITTEN = 19, 12
"""Tokens that are read, and that are written after them."""
OF_TEXT = ("Gemma3", "Qwen3_5", "Qwen3_5Moe")
"""Classes with another configuration for pictures."""


def config_class(kind: str) -> str:
    """The name of a class's configuration, of its text alone where there are pictures too."""
    return f"{kind}TextConfig" if kind in OF_TEXT else f"{kind}Config"


def random_model(kind: str, values: Mapping[str, Any], seed: int = 0) -> Any:
    """A model with every weight random, none at a neutral start.

    Args:
      kind: "Llama", the class without its ending.
      values: fields of its configuration.
      seed: of the weights.

    Raises:
      ValueError: transformers refuses the values.
    """
    import torch  # type: ignore[import-not-found]
    import transformers  # type: ignore[import-not-found]

    transformers.utils.logging.disable_progress_bar()
    config = getattr(transformers, config_class(kind))(
        **copy.deepcopy(dict(values))
    )  # it writes into them
    torch.manual_seed(seed)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    randomise(model)
    return model


def randomise(model: Any) -> None:
    """Gives every weight a random value away from a neutral start."""
    import torch  # type: ignore[import-not-found]

    with torch.no_grad():
        for path, weight in model.named_parameters():
            if path.endswith(("A_log", "dt_bias", "dt_proj.bias")):
                weight.uniform_(-2.0, 1.0)
            elif weight.ndim == 1:
                weight.uniform_(0.5, 1.5)
            else:
                torch.nn.init.normal_(weight, std=0.25)
        for path, state in model.named_buffers():
            if path.endswith("e_score_correction_bias"):
                state.uniform_(-0.3, 0.3)


def expected(model: Any, seed: int = 0) -> dict[str, np.ndarray]:
    """Tokens [2, PROMPT], their logits, and the greedy continuation of each."""
    import torch  # type: ignore[import-not-found]

    tokens = np.random.default_rng(seed).integers(3, model.config.vocab_size, (2, PROMPT))
    rows = torch.tensor(tokens)
    uncached = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
    with torch.no_grad():
        logits = model(rows).logits
        for _ in range(WRITTEN):  # without a cache
            step = model(rows, **uncached).logits[:, -1].argmax(-1, keepdim=True)
            rows = torch.cat([rows, step], dim=1)
    return {
        "tokens": tokens.astype(np.int32),
        "logits": logits.float().numpy(),
        "greedy": rows[:, PROMPT:].numpy().astype(np.int32),
    }


def logits_of(folder: pathlib.Path, kind: str, tokens: np.ndarray) -> np.ndarray:
    """What transformers computes from a folder."""
    import torch  # type: ignore[import-not-found]
    import transformers  # type: ignore[import-not-found]

    model = getattr(transformers, f"{kind}ForCausalLM").from_pretrained(folder).eval()
    with torch.no_grad():
        return model(torch.tensor(tokens, dtype=torch.long)).logits.float().numpy()


def write_folder(folder: pathlib.Path, model: Any, found: Mapping[str, np.ndarray]) -> None:
    """config.json and model.safetensors as transformers saves them, and expected.npz."""
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    np.savez_compressed(folder / "expected.npz", **found)  # type: ignore[arg-type]
