"""What parallel streams cost when text is written here: seconds and bytes, measured."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gam_jax import decode
from gam_jax.layers import MLP, Attention, Block, RMSNorm
from gam_jax.models.language import LanguageModel
from gam_jax.params import count_params

WIDTH, DEPTH, VOCAB = 512, 4, 256
READ, WRITTEN = 128, 32
PREFIX = 48


def model_of(streams: int) -> LanguageModel:
    """A transformer too large for a processor's cache: weights are read for every token."""
    attention = Attention(heads=8, kv_heads=2, context=READ + WRITTEN)
    block = Block(attention, MLP(activation="swiglu", bias=False), RMSNorm())
    return LanguageModel(block, WIDTH, DEPTH, VOCAB, streams=streams, prefix=PREFIX, unroll=DEPTH)


def table(
    repeats: int, batches: Sequence[int] = (1, 8), streams: Sequence[int] = (1, 2, 4, 8)
) -> list[dict[str, Any]]:
    """For each batch and number of streams, medians over repeats that take turns.

    bytes are those of parameters and carry, and of temporaries of a token by the compiler.
    """
    jobs = {(batch, count): _Job(model_of(count), batch) for batch in batches for count in streams}
    timed: dict[tuple[int, int], list[float]] = {key: [] for key in jobs}
    for turn in range(repeats + 1):
        for key, job in jobs.items():
            seconds = job.seconds()
            if turn:  # the first compiles
                timed[key].append(seconds)
    rows = []
    for (batch, count), job in jobs.items():
        seconds, one = (float(np.median(timed[batch, n])) for n in (count, min(streams)))
        rows.append(
            {
                "batch": batch,
                "streams": count,
                "parameters": count_params(job.model.table()),
                "carry_bytes": decode.carry_bytes(job.carry),
                "bytes": job.held(),
                "ms_per_token": 1e3 * seconds,
                "times_one_stream": seconds / one,
            }
        )
    return rows


class _Job:
    """A model that has read a prompt and writes on."""

    def __init__(self, model: LanguageModel, batch: int) -> None:
        self.model, self.batch = model, batch
        self.params = model.init_params(jax.random.key(0))
        prompt = np.random.default_rng(0).integers(0, VOCAB, (batch, READ)).astype(np.int32)
        self.logits, self.carry = decode.prefill(model, self.params, prompt)

    def seconds(self) -> float:
        """Of one token, while `WRITTEN` are written."""
        start = time.perf_counter()
        key = jax.random.key(0)
        for _ in decode.write(self.model, self.params, self.logits, self.carry, WRITTEN, key):
            pass
        return (time.perf_counter() - start) / WRITTEN

    def held(self) -> int:
        """Bytes that a step of one token needs."""
        token = jax.ShapeDtypeStruct((self.batch, 1), jnp.int32)
        lowered = jax.jit(self.model.last_logits).lower(self.params, token, self.carry)
        memory: Any = lowered.compile().memory_analysis()
        return memory.argument_size_in_bytes + memory.temp_size_in_bytes
