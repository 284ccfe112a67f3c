"""The loss of a head with its gradients, by tokens and vocabulary, beside PyTorch's."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import ShapeDtypeStruct

from experiments.benchmark.timing import Quantity, Rows, medians, ratio
from gam_jax.ops.cross_entropy import Head, block_size, loss_sum
from gam_jax.training.progress import Progress

WIDTH = 512
TIMED = ((1024, 10_000), (4096, 10_000), (1024, 128_256))
"""Tokens and vocabulary; the first is the paper's."""
COUNTED = ((16_384, 32_768), (131_072, 32_768), (131_072, 128_256))
"""Those that are compiled and not run."""


def run(repeats: int, short: bool = False) -> Rows:
    """Mean cross-entropy and its gradients by hidden states and head; width 512, float32.

    Args:
      repeats: timed turns of each.
      short: 256 tokens of a vocabulary of 1,000 alone.

    Returns:
      A row for each number of tokens and size of the vocabulary: temporary bytes by the compiler's
      own count, and those of the logits of all tokens. Of smaller ones the time too, and where
      torch is installed that of its `cross_entropy`, on as many threads as there are cores.
    """
    rows: Rows = {}
    progress = Progress()
    timed, counted = (((256, 1000),), ()) if short else (TIMED, COUNTED)
    for tokens, vocab in (*timed, *counted):
        name = f"{tokens:,} tokens, {vocab:,} ids"
        progress.say(f"{name} ...")
        row = rows[name] = {}
        program = _compiled(tokens, vocab)
        if (tokens, vocab) in timed:
            row |= _times(program, tokens, vocab, repeats)
        temporary = program.memory_analysis().temp_size_in_bytes
        row["temporary"] = Quantity.exactly(temporary / 2**20, "MiB")
        row["all logits"] = Quantity.exactly(4 * tokens * vocab / 2**20, "MiB")
    return rows


def _compiled(tokens: int, vocab: int) -> Any:
    how = Head(block=block_size(None))

    def mean(hidden: Any, head: Any, targets: Any) -> Any:
        return loss_sum(hidden, head, targets, jnp.ones(tokens), how) / tokens

    shapes = [ShapeDtypeStruct((rows, WIDTH), jnp.float32) for rows in (tokens, vocab)]
    targets = ShapeDtypeStruct((tokens,), jnp.int32)
    return jax.jit(jax.value_and_grad(mean, argnums=(0, 1))).lower(*shapes, targets).compile()


def _times(program: Any, tokens: int, vocab: int, repeats: int) -> dict[str, Quantity]:
    random = np.random.default_rng(0)
    hidden = random.normal(size=(tokens, WIDTH)).astype(np.float32)
    head = (random.normal(size=(vocab, WIDTH)) / WIDTH**0.5).astype(np.float32)
    targets = random.integers(0, vocab, tokens).astype(np.int32)
    given = [jnp.asarray(x) for x in (hidden, head, targets)]
    calls = {"gam_jax": lambda: program(*given)}
    if importlib.util.find_spec("torch") is None:
        return medians(calls, repeats)
    times = medians({**calls, "torch": _torch(hidden, head, targets)}, repeats)
    return {**times, "time, ours over theirs": ratio(times["gam_jax"], times["torch"])}


def _torch(hidden: np.ndarray, head: np.ndarray, targets: np.ndarray) -> Callable[[], Any]:
    import torch  # type: ignore[import-not-found]

    rows, weight = (torch.tensor(x, requires_grad=True) for x in (hidden, head))
    wanted = torch.tensor(targets, dtype=torch.long)

    def call() -> float:
        rows.grad = weight.grad = None
        loss = torch.nn.functional.cross_entropy(rows @ weight.T, wanted)
        loss.backward()
        return loss.item()

    return call
