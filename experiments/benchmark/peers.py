"""Prompts, writing, layers and training steps, beside transformers and PyTorch."""

from __future__ import annotations

import importlib.util
import itertools
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from experiments.benchmark import peer_layers, peer_steps
from experiments.benchmark.timing import Quantity, Rows, samples
from gam_jax import decode
from gam_jax.convert import from_hf
from gam_jax.models.language import LanguageModel
from gam_jax.params import Params
from gam_jax.training.progress import Progress
from sharding.errors import UserError

SIZES = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "tie_word_embeddings": True,
}
HEADS = {
    "intermediate_size": 688,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}
MODELS: Mapping[str, Mapping[str, Any]] = {
    "Llama": HEADS,
    "Mixtral": {**HEADS, "num_local_experts": 8, "num_experts_per_tok": 2},
    "Mamba": {},
    "Mamba2": {"num_heads": 8, "head_dim": 64, "n_groups": 1, "state_size": 64},
    "FalconH1": {
        **HEADS,
        "mamba_d_ssm": 256,
        "mamba_n_heads": 8,
        "mamba_d_head": 32,
        "mamba_d_state": 64,
    },
}
"""Class of transformers -> fields of its configuration besides SIZES."""
ROWS = (1, 8)
READ, WRITTEN, PROMPT = 128, 128, 512
"""Tokens before those that are written; these; and of a prompt whose reading is timed."""


def installed() -> bool:
    """Whether torch and transformers are there."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))


def run(repeats: int, short: bool = False) -> Rows:
    """Greedy writing after 128 tokens, a prompt of 512, layers, and training steps.

    Both take turns, on the cores that this process may use, and times are the processor's: what
    else runs on the machine counts little. Of an even comparison, give it one core.

    Args:
      repeats: timed turns of each.
      short: Llama alone, one row, and the smallest attention.

    Returns:
      For each work tokens or calls a second of the processor here and there, and the ratio of the
      times, above 1 where this is slower.

    Raises:
      UserError: torch or transformers is missing.
    """
    if not installed():
        raise UserError("benchmark peers needs torch: pip install 'gam_jax[official]'")
    use_own_cores()
    result: Rows = {}
    progress = Progress()
    for kind in list(MODELS)[: 1 if short else None]:
        for rows in ROWS[: 1 if short else None]:
            progress.say(f"{kind}, rows {rows} ...")
            result |= _rows(kind, rows, repeats)
    for name, ours, theirs in itertools.chain(
        peer_layers.pairs(short), () if short else peer_steps.pairs()
    ):
        progress.say(f"{name} ...")
        times = samples({"ours": ours, "theirs": theirs}, repeats, clock=time.process_time)
        result[name] = _beside(times["ours"], times["theirs"], 1, ("PyTorch", "calls/s"))
    return result


def use_own_cores() -> None:
    """Gives PyTorch a thread for each core that this process may use."""
    import torch  # type: ignore[import-not-found]

    if hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(len(os.sched_getaffinity(0)))


def _rows(kind: str, rows: int, repeats: int) -> Rows:
    theirs = transformers_model(kind)
    model, params = converted(theirs)
    params = decode.ready(model, params)
    random = np.random.default_rng(0)
    before, prompt = (random.integers(3, 4096, (rows, size)) for size in (READ, PROMPT))
    times = samples(
        {
            "write": _writing(model, params, before),
            "generate": generating(theirs, before, WRITTEN + 1),
            "generate one": generating(theirs, before, 1),
            "prefill": lambda: decode.prefill(model.for_length(PROMPT), params, prompt),
            "forward": _reading(theirs, prompt),
        },
        repeats,
        clock=time.process_time,
    )
    written = [
        long - one for long, one in zip(times["generate"], times["generate one"], strict=True)
    ]
    return {
        f"{kind}, {rows} rows, writing": _beside(times["write"], written, rows * WRITTEN),
        f"{kind}, {rows} rows, a prompt of {PROMPT}": _beside(
            times["prefill"], times["forward"], rows * PROMPT
        ),
    }


def _beside(
    ours: list[float],
    theirs: list[float],
    count: int,
    of: tuple[str, str] = ("transformers", "tokens/s"),
) -> dict[str, Quantity]:
    """Speeds of two that took turns, `count` of something a call, and the ratio of times."""
    peer, unit = of
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return {
        "gam_jax": Quantity.of([count / x for x in ours], unit),
        peer: Quantity.of([count / x for x in theirs], unit),
        "time, ours over theirs": Quantity.of(ratios, ""),
    }


def transformers_model(kind: str) -> Any:
    """A model of transformers with random weights, of the sizes above; `kind` is one of MODELS."""
    import torch  # type: ignore[import-not-found]
    import transformers  # type: ignore[import-not-found]

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES, **MODELS[kind])
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    model.generation_config.eos_token_id = None  # it writes as many tokens as it is asked to
    model.generation_config.pad_token_id = 0
    return model


def converted(theirs: Any) -> tuple[LanguageModel, Params]:
    """The same model here, with the same weights."""
    with tempfile.TemporaryDirectory() as place:
        theirs.save_pretrained(place)
        (pathlib.Path(place) / "generation_config.json").unlink(missing_ok=True)
        return from_hf(place)


def _writing(model: Any, params: Any, tokens: np.ndarray) -> Callable[[], Any]:
    fitted = model.for_length(READ + WRITTEN)
    logits, carry = decode.prefill(fitted, params, tokens)

    def call() -> list[np.ndarray]:
        key = jax.random.key(0)
        return list(decode.write(fitted, params, logits, carry, WRITTEN, key, temperature=0.0))

    return call


def generating(
    model: Any, tokens: np.ndarray, count: int, mask: np.ndarray | None = None
) -> Callable[[], np.ndarray]:
    """Writes so many likeliest tokens, all of them; `mask` is 0 where `tokens` are filled up."""
    import torch  # type: ignore[import-not-found]

    given = torch.tensor(tokens)
    attended = torch.ones_like(given) if mask is None else torch.tensor(mask)

    def call() -> np.ndarray:
        with torch.no_grad():
            found = model.generate(
                given,
                attention_mask=attended,
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
            )
        return found[:, given.shape[1] :].numpy()

    return call


def _reading(model: Any, tokens: np.ndarray) -> Callable[[], Any]:
    import torch  # type: ignore[import-not-found]

    given = torch.tensor(tokens)

    def call() -> float:
        with torch.no_grad():
            return model(given, use_cache=True, logits_to_keep=1).logits.sum().item()

    return call
