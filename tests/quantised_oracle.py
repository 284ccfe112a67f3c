"""Blocks of few bits from their equations, in float64; shares no code with the package."""

from __future__ import annotations

import numpy as np


def rounded(x, bits, block):
    """What a flat array becomes, and the step of each number's block."""
    x = np.asarray(x, np.float64)
    found, steps = np.empty_like(x), np.empty_like(x)
    for start in range(0, x.size, block):
        part = slice(start, start + block)
        largest = np.abs(x[part]).max()
        scale = 2**bits / (2 * largest) if largest else 1.0
        codes = np.clip(np.rint(x[part] * scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        found[part], steps[part] = codes / scale, 1 / scale
    return found, steps


def relative(found, wanted):
    """The error in the Euclidean norm, relative."""
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
