"""Tokens per second while writing, by how much was read before."""

from __future__ import annotations

import time
from collections.abc import Sequence

import jax
import numpy as np

from experiments.benchmark.length import mixer_of
from experiments.benchmark.timing import Figure, Rows
from experiments.progress import Progress
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
) -> Rows:
    """Reads a context of each length, then times the writing of 256 tokens, batch 1, width 128.

    Args:
      repeats: timed runs of each; contexts take turns.
      layout: the mesh.
      mixers: names of the blocks' mixer, see `length.mixer_of`.
      contexts: tokens read before.

    Returns:
      For each mixer a row a context: seconds to read it, tokens/s, bytes of the carry; and the
      largest over the smallest speed.
    """
    result: Rows = {}
    progress = Progress(0)
    for name in mixers:
        progress.say(f"{name} ...")
        model = LanguageModel(Block(mixer_of(name, WIDTH)), width=WIDTH, depth=DEPTH, vocab=VOCAB)
        rows = _rows(model, repeats, layout, contexts)
        speeds = [row["speed"].median for row in rows.values()]
        result |= {f"{name} after {context}": row for context, row in rows.items()}
        result[f"{name}, all"] = {
            "largest over smallest": Figure.exactly(max(speeds) / min(speeds))
        }
    return result


def _rows(model: LanguageModel, repeats: int, layout: Layout, contexts: Sequence[int]) -> Rows:
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
    return {
        f"{context:,} tokens": {
            "reading": Figure.exactly(seconds, "s"),
            "speed": Figure.of(speeds[context], "tokens/s"),
            "carry": Figure.exactly(decode.carry_bytes(carry), "B"),
        }
        for context, ((_, carry), seconds) in read.items()
    }
