"""Tokens per second while writing, by how much was read before."""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np

from gam_jax import decode
from gam_jax.layers import GAM, Block
from gam_jax.model import LanguageModel
from gam_jax.params import rule_specs, shardings
from sharding.layout import Layout

CONTEXTS = (1024, 16_384, 262_144)
MODEL = LanguageModel(Block(GAM(slots=128)), width=128, depth=4, vocab=256)
WRITTEN = 256


def run(repeats: int, layout: Layout) -> dict[str, Any]:
    """Reads a context of each length, then times the writing of 256 tokens, batch 1.

    Returns:
      A row a context: seconds to read it, median tokens/s, bytes of the carry; and the largest
      over the smallest speed.
    """
    placed = shardings(rule_specs(MODEL.table(), layout), layout)
    params = jax.device_put(MODEL.init_params(jax.random.key(0)), placed)
    random = np.random.default_rng(0)
    contexts = {}
    for context in CONTEXTS:
        tokens = random.integers(0, MODEL.vocab, (1, context)).astype(np.int32)
        start = time.perf_counter()
        jax.block_until_ready(found := decode.prefill(MODEL, params, tokens, layout=layout))
        contexts[context] = (found, time.perf_counter() - start)
    speeds: dict[int, list[float]] = {context: [] for context in CONTEXTS}
    for turn in range(repeats + 1):
        for context, ((logits, carry), _) in contexts.items():
            start = time.perf_counter()
            key = jax.random.key(turn)
            for _ in decode.write(MODEL, params, logits, carry, WRITTEN, key, layout=layout):
                pass
            if turn:
                speeds[context].append(WRITTEN / (time.perf_counter() - start))
    rows = [
        {
            "context": context,
            "read_seconds": read,
            "tokens_per_second": float(np.median(speeds[context])),
            "carry_bytes": decode.carry_bytes(carry),
        }
        for context, ((_, carry), read) in contexts.items()
    ]
    all_speeds = [row["tokens_per_second"] for row in rows]
    return {"rows": rows, "spread": max(all_speeds) / min(all_speeds)}
