"""Tokens per second while writing, by how much was read before."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments.benchmark.length import mixer_of
from gam_jax import decode
from gam_jax.layers import Block
from gam_jax.model import LanguageModel
from gam_jax.params import rule_specs, shardings
from sharding.layout import Layout

CONTEXTS = (1024, 16_384, 262_144)
WIDTH, DEPTH, VOCAB = 128, 4, 256
WRITTEN = 256


def run(
    repeats: int,
    layout: Layout,
    mixers: Sequence[str] = ("GAM",),
    contexts: Sequence[int] = CONTEXTS,
) -> dict[str, Any]:
    """Reads a context of each length, then times the writing of 256 tokens, batch 1, width 128.

    Args:
      repeats: timed runs of each; contexts take turns.
      layout: the mesh.
      mixers: names of the blocks' mixer, see `length.mixer_of`.
      contexts: tokens read before.

    Returns:
      For each mixer a row a context: seconds to read it, median tokens/s, bytes of the carry; and
      the largest over the smallest speed.
    """
    result: dict[str, Any] = {}
    for name in mixers:
        model = LanguageModel(Block(mixer_of(name, WIDTH)), width=WIDTH, depth=DEPTH, vocab=VOCAB)
        prefix = f"{name}_" if len(mixers) > 1 else ""
        rows = _rows(model, repeats, layout, contexts)
        speeds = [row["tokens_per_second"] for row in rows]
        result[f"{prefix}rows"] = rows
        result[f"{prefix}spread"] = max(speeds) / min(speeds)
    return result


def _rows(
    model: LanguageModel, repeats: int, layout: Layout, contexts: Sequence[int]
) -> list[dict[str, Any]]:
    placed = shardings(rule_specs(model.table(), layout), layout)
    params = jax.device_put(model.init_params(jax.random.key(0)), placed)
    random = np.random.default_rng(0)
    read = {}
    for context in contexts:
        tokens = random.integers(0, VOCAB, (1, context)).astype(np.int32)
        start = time.perf_counter()
        jax.block_until_ready(found := decode.prefill(model, params, tokens, layout=layout))
        read[context] = (found, time.perf_counter() - start)
    speeds: dict[int, list[float]] = {context: [] for context in contexts}
    for turn in range(repeats + 1):
        for context, ((logits, carry), _) in read.items():
            start = time.perf_counter()
            key = jax.random.key(turn)
            for _ in decode.write(model, params, logits, carry, WRITTEN, key, layout=layout):
                pass
            if turn:
                speeds[context].append(WRITTEN / (time.perf_counter() - start))
    return [
        {
            "context": context,
            "read_seconds": seconds,
            "tokens_per_second": float(np.median(speeds[context])),
            "carry_bytes": decode.carry_bytes(carry),
        }
        for context, ((_, carry), seconds) in read.items()
    ]
