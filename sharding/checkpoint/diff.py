"""Compares two checkpoints, array by array."""

from __future__ import annotations

import fnmatch
from typing import Any

import numpy as np

from sharding.checkpoint.inspect import open_run
from sharding.checkpoint.store import Checkpoints


def diff(one: str, two: str, rtol: float = 0.0, only: str = "*") -> dict[str, Any]:
    """Where two checkpoints differ.

    Args:
      one: RUN or RUN@WHICH.
      two: likewise.
      rtol: what arrays of fractions may differ by, as a share of the larger of the two's largest
        magnitude; 0 for bit for bit. Integers and random keys are compared bit for bit always.
      only: a pattern of names.

    Returns:
      JSON values. "equal" says whether all is equal within `rtol`; "arrays" has a row for each
      that is not equal bit for bit.

    Raises:
      UserError: no such run or step.
      Damaged: one that cannot be read.
    """
    (first, a), (second, b) = _open(one), _open(two)
    left, right = first.manifest(a).arrays, second.manifest(b).arrays
    rows, compared = [], 0
    for name in sorted(left.keys() | right.keys()):
        if not fnmatch.fnmatchcase(name, only):
            continue
        compared += 1
        if name not in left or name not in right:
            row = {"difference": f"only in {one if name in left else two}", "within": False}
        elif left[name].fact != right[name].fact:
            row = {"difference": f"{left[name].fact} and {right[name].fact}", "within": False}
        else:
            exact = left[name].fact.key is not None
            row = compare(first.whole(a, name), second.whole(b, name), rtol, exact)
        if row:
            rows.append({"name": name, **row})
    return {
        "a": {"folder": str(first.folder), "step": a},
        "b": {"folder": str(second.folder), "step": b},
        "compared": compared,
        "rtol": rtol,
        "equal": compared > 0 and all(row["within"] for row in rows),
        "arrays": rows,
    }


def compare(a: np.ndarray, b: np.ndarray, rtol: float, exact: bool = False) -> dict[str, Any]:
    """How two arrays of one shape and dtype differ; empty if they are equal bit for bit."""
    if a.tobytes() == b.tobytes():
        return {}
    x, y = a.astype(np.float64), b.astype(np.float64)
    scale = float(np.max(np.maximum(np.abs(x), np.abs(y))))
    largest = float(np.max(np.abs(x - y)))
    relative = largest / scale if scale else 0.0
    fractions = a.dtype.kind not in "iub" and not exact
    return {
        "elements": int(np.sum(x != y)),
        "of": a.size,
        "largest": largest,
        "relative": relative,
        # Zeros of both signs differ in bits alone; what is not a number is never within.
        "within": fractions and rtol > 0 and relative <= rtol,
    }


def _open(text: str) -> tuple[Checkpoints, int]:
    checkpoints, which = open_run(text)
    return checkpoints, checkpoints.choose(which)
