"""What the ops of `gam_jax.ops` set aside, forward and backward, by the length of the sequence."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import ShapeDtypeStruct

from experiments.benchmark.timing import Quantity, Rows
from gam_jax import ops
from gam_jax.training.progress import Progress

LENGTHS, SHORT = (16_384, 65_536), (256, 1024)
HEADS, SIZE, TAPS, NUMBERS, WINDOW = 4, 64, 4, 16, 1024
WIDTH = HEADS * SIZE
MEMORIES = {
    "linear attention": ("hebb", 0, False),
    "decay a head": ("hebb", 1, False),
    "decay a channel": ("hebb", SIZE, False),
    "delta rule": ("delta", 0, True),
    "gated delta rule": ("delta", 1, True),
    "Kimi delta rule": ("delta", SIZE, True),
}
"""Rule, decays of a head, and whether writes have a strength."""

Case = tuple[Callable[..., Any], Callable[[int], dict[str, Any]]]
"""An op, and its arguments for a number of tokens."""


def run(repeats: int, short: bool = False) -> Rows:
    """Each op by itself: batch 1, width 256 (4 heads of 64), float32. Nothing runs.

    Args:
      repeats: not used, since the compiler's count has no noise.
      short: the smallest lengths.

    Returns:
      A row an op and length: temporary bytes of the program that gives the gradients by all
      arguments, the same a token, and over those of a quarter of the tokens.
    """
    rows: Rows = {}
    progress = Progress()
    few, many = SHORT if short else LENGTHS
    for name, case in cases().items():
        progress.say(f"{name} ...")
        rows[f"{name}, {many:,} tokens"] = row(case, few, many)
    return rows


def row(case: Case, few: int, many: int) -> dict[str, Quantity]:
    """The bytes of one op at `many` tokens, and over those at `few`."""
    function, arguments = case
    less, more = (_temporary(function, arguments(tokens)) for tokens in (few, many))
    return {
        "temporary": Quantity.exactly(more / 2**20, "MiB"),
        "a token": Quantity.exactly(more / many, "B/token"),
        f"over {few:,} tokens": Quantity.exactly(more / less),
    }


def cases() -> dict[str, Case]:
    """The ops by name."""
    found: dict[str, Case] = {
        name: (functools.partial(ops.memory_scan, rule=rule), _memory(decays, strong))
        for name, (rule, decays, strong) in MEMORIES.items()
    }

    def selective(tokens: int) -> dict[str, Any]:
        x, b = _array(1, tokens, WIDTH), _array(1, tokens, NUMBERS)
        return {"x": x, "dt": x, "a": _array(NUMBERS, WIDTH), "b": b, "c": b}

    def heads(tokens: int) -> dict[str, Any]:
        return dict.fromkeys("qkv", _array(1, tokens, HEADS, SIZE))

    def conv(tokens: int) -> dict[str, Any]:
        return {"x": _array(1, tokens, WIDTH), "weight": _array(TAPS, WIDTH)}

    found["selective scan"] = ops.selective_scan, selective
    found["convolution"] = ops.causal_conv, conv
    found["attention"] = ops.attend, heads
    found["attention in a window"] = functools.partial(ops.attend, window=WINDOW), heads
    return found


def _memory(decays: int, strong: bool) -> Callable[[int], dict[str, Any]]:
    def arguments(tokens: int) -> dict[str, Any]:
        given = dict.fromkeys("qkv", _array(1, tokens, HEADS, SIZE))
        if decays:
            shape = (1, tokens, HEADS, decays)
            given["log_decay"] = _array(*(shape if decays > 1 else shape[:3]))
        if strong:
            given["beta"] = _array(1, tokens, HEADS)
        return given

    return arguments


def _array(*shape: int) -> ShapeDtypeStruct:
    return ShapeDtypeStruct(shape, jnp.float32)


def _temporary(function: Callable[..., Any], arguments: dict[str, Any]) -> float:
    gradient = jax.grad(lambda given: jnp.sum(jnp.square(function(**given)[0])))
    analysis = jax.jit(gradient).lower(arguments).compile().memory_analysis()
    return float(getattr(analysis, "temp_size_in_bytes", float("nan")))
