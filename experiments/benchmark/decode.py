"""Tokens per second while writing, by how much was read before."""

from __future__ import annotations

import time
from collections.abc import Sequence

import jax
import numpy as np

from experiments.benchmark.length import mixer_of
from experiments.benchmark.timing import Quantity, Rows
from gam_jax import decode
from gam_jax.layers import Block
from gam_jax.models.language import LanguageModel
from gam_jax.params import rule_specs, shardings
from gam_jax.training.progress import Progress
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
    progress = Progress()
    for name in mixers:
        progress.say(f"{name} ...")
        models = {context: _model(name, context) for context in contexts}
        rows = _rows(models, repeats, layout)
        speeds = [row["speed"].median for row in rows.values()]
        result |= {f"{name} after {context}": row for context, row in rows.items()}
        result[f"{name}, all"] = {
            "largest over smallest": Quantity.exactly(max(speeds) / min(speeds))
        }
    return result


def _model(name: str, context: int) -> LanguageModel:
    """Caches of attention have room for what is read and written, and no more."""
    mixer = mixer_of(name, context + WRITTEN, slots=WIDTH)
    return LanguageModel(Block(mixer), width=WIDTH, depth=DEPTH, vocab=VOCAB)


def _rows(models: dict[int, LanguageModel], repeats: int, layout: Layout) -> Rows:
    """Of models that differ at most in the room of their caches, by what they read."""
    random = np.random.default_rng(0)
    read = {}
    for context, model in models.items():
        placed = shardings(rule_specs(model.table(), layout), layout)
        params = jax.device_put(model.init_params(jax.random.key(0)), placed)
        tokens = random.integers(0, VOCAB, (1, context)).astype(np.int32)
        start = time.perf_counter()
        jax.block_until_ready(found := decode.prefill(model, params, tokens, layout=layout))
        read[context] = (params, found, time.perf_counter() - start)
    speeds: dict[int, list[float]] = {context: [] for context in models}
    for turn in range(repeats + 1):
        for context, (params, (logits, carry), _) in read.items():
            start = time.perf_counter()
            write = decode.write(
                models[context], params, logits, carry, WRITTEN, jax.random.key(turn), layout=layout
            )
            for _ in write:
                pass
            if turn:
                speeds[context].append(WRITTEN / (time.perf_counter() - start))
    return {
        f"{context:,} tokens": {
            "reading": Quantity.exactly(seconds, "s"),
            "speed": Quantity.of(speeds[context], "tokens/s"),
            "carry": Quantity.exactly(decode.carry_bytes(carry), "B"),
        }
        for context, (_, (_, carry), seconds) in read.items()
    }
