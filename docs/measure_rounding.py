"""How far the forms of the delta rule are from a float64 reading near a strength of two.

  python docs/measure_rounding.py

Prints the table of docs/scan.md: the largest error after 1,024 tokens over orders of keys and
decays, relative to the largest value.
"""

from __future__ import annotations

import functools
import itertools
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from gam_jax.ops.scan import memory_scan
from tests import scan_oracle

TOKENS, HEADS, SIZE = 1024, 2, 32
STRENGTHS = (1.0, 1.5, 1.9, 1.95, 2.0)
ORDERS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "random": lambda k: k,
    "the same": lambda k: np.broadcast_to(k[:1], k.shape),
    "nearly the same": lambda k: k[:1] + 0.05 * k,
    "in turns": lambda k: k[np.arange(len(k)) % 2],
}
DECAYS = (1.0, 0.999)
FORMS: Mapping[str, Mapping[str, Any]] = {
    "recurrent": {"method": "recurrent"},
    "associative": {"method": "associative"},
    **{f"chunks of {size}": {"chunk": size} for size in (16, 32, 64, 128, 256)},
}


def cases() -> tuple[np.ndarray, ...]:
    """q, k, v, logarithms of decays, strengths; a row each combination, the strength outermost."""
    random = np.random.default_rng(3)
    q, k, v = random.normal(size=(3, TOKENS, HEADS, SIZE))
    rows = list(itertools.product(STRENGTHS, ORDERS.values(), DECAYS))
    keys = [order(k) for _, order, _ in rows]
    keys = [k / np.linalg.norm(k, axis=-1, keepdims=True) for k in keys]
    whole = np.ones((len(rows), TOKENS, HEADS))
    strengths, decays = (whole * np.reshape([row[i] for row in rows], (-1, 1, 1)) for i in (0, 2))
    q, v = (np.broadcast_to(x, (len(rows), *x.shape)) for x in (q, v))
    return tuple(x.astype(np.float32) for x in (q, np.stack(keys), v, np.log(decays), strengths))


def main() -> None:
    """Prints the table."""
    q, k, v, log_decay, beta = cases()
    state = np.zeros((len(q), HEADS, SIZE, SIZE))
    *wanted, _ = scan_oracle.memory(q, k, v, log_decay, beta, state, "delta")
    found = {}
    for name, how in FORMS.items():
        scan = jax.jit(functools.partial(memory_scan, rule="delta", **how))
        pairs = zip(scan(q, k, v, log_decay=log_decay, beta=beta), wanted, strict=True)
        found[name] = np.max([error(a, b) for a, b in pairs], axis=0)
    print("| beta |", " | ".join(FORMS), "|")
    for row, strength in enumerate(STRENGTHS):
        print(f"| {strength:g} |", " | ".join(f"{found[name][row]:.1e}" for name in FORMS), "|")


def error(found: Any, wanted: np.ndarray) -> np.ndarray:
    """The largest of each strength."""
    flat = len(wanted), -1
    off = np.abs(np.asarray(found, np.float64) - wanted).reshape(flat).max(axis=1)
    relative = off / np.abs(wanted).reshape(flat).max(axis=1)
    return relative.reshape(len(STRENGTHS), -1).max(axis=1)


if __name__ == "__main__":
    main()
