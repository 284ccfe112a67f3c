"""Time and memory of a read by the number of slots: dense, the best few, product keys."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmark.timing import Quantity, Rows, medians
from gam_jax.ops.memory import memory_read
from gam_jax.ops.sparse_memory import product_read, sparse_read

SLOTS = (4096, 65_536, 1_048_576)
QUERIES, WIDTH, TOP = 256, 64, 32
DENSE_LIMIT = 65_536


def run(repeats: int, short: bool = False) -> Rows:
    """Forward and backward of one read by 256 queries of width 64; the best 32, one head.

    Returns:
      A row a kind of read and number of slots: time, microseconds per query, temporary bytes
      (the compiler's count) and bytes of the bank. The dense read, whose scores alone would be
      1 GiB at 1 Mi slots, stops at 65,536. Every read's gradient by the bank is one array of the
      bank's size, which is written whole.
    """
    rows: Rows = {}
    for slots in SLOTS[:1] if short else SLOTS:
        side, key = math.isqrt(slots), jax.random.key(0)
        x, bank = (jax.random.normal(key, (n, WIDTH)) for n in (QUERIES, slots))
        query = jax.random.normal(key, (QUERIES, 1, 2, WIDTH // 2))
        keys = jax.random.normal(key, (1, 2, side, WIDTH // 2))
        reads: dict[str, tuple[Callable[..., Any], tuple[jax.Array, ...]]] = {
            "dense": (memory_read, (x, bank)),
            "best 32": (lambda x, bank: sparse_read(x, bank, TOP), (x, bank)),
            "product keys": (lambda q, k, bank: product_read(q, k, bank, TOP), (query, keys, bank)),
        }
        if slots > DENSE_LIMIT:
            del reads["dense"]
        for name, (read, arrays) in reads.items():
            rows[f"{name}, {slots:,} slots"] = _row(slots, read, arrays, repeats)
    return rows


def _row(
    slots: int,
    read: Callable[..., Any],
    arrays: tuple[jax.Array, ...],
    repeats: int,
) -> dict[str, Quantity]:
    numbers = tuple(range(len(arrays)))
    loss = jax.grad(lambda *a: jnp.sum(jnp.square(read(*a))), argnums=numbers)
    forward, both = (jax.jit(f).lower(*arrays).compile() for f in (read, loss))
    times = medians(
        {"forward": lambda: forward(*arrays), "both": lambda: both(*arrays)}, repeats, warmup=1
    )
    memory = getattr(both.memory_analysis(), "temp_size_in_bytes", float("nan"))
    return {
        "forward": times["forward"],
        "both": times["both"],
        "of a query": times["both"].times(1e6 / QUERIES, "us/query"),
        "temporary": Quantity.exactly(memory, "B"),
        "bank": Quantity.exactly(slots * WIDTH * 4, "B"),
    }
