"""How long the programs of reading and writing take to compile, by the depth of a model."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import numpy as np

from experiments.benchmark.length import mixer_of
from experiments.benchmark.timing import Quantity, Rows
from gam_jax import decode
from gam_jax.layers import Block
from gam_jax.models.language import LanguageModel

DEPTHS = (4, 16, 40)
WIDTH, VOCAB, CONTEXT = 128, 256, 1024


def run(repeats: int, short: bool = False) -> Rows:
    """Compiling the programs that read 256 tokens and write, by depth (attention, width 128).

    Returns:
      A row a depth: processor time until each program is ready, tracing and placing included. The
      program that reads is a loop over layers; the one that writes has each of them written out.
    """
    rows: Rows = {}
    for depth in DEPTHS[:1] if short else DEPTHS:
        block = Block(mixer_of("Attention", CONTEXT))
        model = LanguageModel(block, width=WIDTH, depth=depth, vocab=VOCAB)
        found = [_once(model) for _ in range(repeats)]
        reading, writing = (Quantity.of(seconds, "s") for seconds in zip(*found, strict=True))
        rows[f"{depth} layers"] = {"reading": reading, "writing": writing}
    return rows


def _once(model: LanguageModel) -> tuple[float, float]:
    """Processor seconds that the first call of each takes beyond the second."""
    jax.clear_caches()
    params = model.init_params(jax.random.key(0))
    tokens = np.zeros((1, decode.PREFILL_CHUNK), np.int32)

    def read() -> None:
        jax.block_until_ready(decode.prefill(model, params, tokens))

    reading = _beyond_the_second(read)
    logits, carry = decode.prefill(model, params, tokens)

    def write() -> None:
        for _ in decode.write(model, params, logits, carry, decode.WRITE_CHUNK, jax.random.key(1)):
            pass

    return reading, _beyond_the_second(write)


def _beyond_the_second(call: Callable[[], None]) -> float:
    times = []
    for _ in range(2):
        begun = time.process_time()
        call()
        times.append(time.process_time() - begun)
    return times[0] - times[1]
