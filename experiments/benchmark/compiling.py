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
from gam_jax.params import Params

DEPTHS = (4, 16, 40)
WIDTH, VOCAB, CONTEXT = 128, 256, 1024


def run(repeats: int, short: bool = False) -> Rows:
    """Compiling the programs that read 256 tokens and write, by depth (attention, width 128).

    Returns:
      A row a depth: processor time until each program is ready, tracing and placing included. The
      program that reads is a loop over layers; the one that reads with parameters of
      `decode.ready` and the one that writes have each layer written out.
    """
    rows: Rows = {}
    for depth in DEPTHS[:1] if short else DEPTHS:
        block = Block(mixer_of("Attention", CONTEXT))
        model = LanguageModel(block, width=WIDTH, depth=depth, vocab=VOCAB)
        found = [_once(model) for _ in range(repeats)]
        each = (Quantity.of(seconds, "s") for seconds in zip(*found, strict=True))
        names = "reading", "reading, parameters ready", "writing"
        rows[f"{depth} layers"] = dict(zip(names, each, strict=True))
    return rows


def _once(model: LanguageModel) -> tuple[float, float, float]:
    """Processor seconds that the first call of each takes beyond the second."""
    jax.clear_caches()
    params = model.init_params(jax.random.key(0))
    tokens = np.zeros((1, decode.PREFILL_CHUNK), np.int32)

    ready = decode.ready(model, params)

    def read(params: Params) -> None:
        jax.block_until_ready(decode.prefill(model, params, tokens))

    stacked, apart = (_beyond_the_second(lambda own=own: read(own)) for own in (params, ready))
    logits, carry = decode.prefill(model, params, tokens)

    def write() -> None:
        for _ in decode.write(model, params, logits, carry, decode.WRITE_CHUNK, jax.random.key(1)):
            pass

    return stacked, apart, _beyond_the_second(write)


def _beyond_the_second(call: Callable[[], None]) -> float:
    times = []
    for _ in range(2):
        begun = time.process_time()
        call()
        times.append(time.process_time() - begun)
    return times[0] - times[1]
