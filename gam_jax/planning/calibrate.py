"""Seconds of products, predicted: a roofline, corrected by a regression on what was measured.

Sources: S. Williams et al., "Roofline" (2009); arXiv 2411.16954 for what is learned from measured
products, and why a forest of trees alone does not do: it cannot leave the range of what it has
seen. The three errors are those of arXiv 2503.20481.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from sharding.bounds import NotNegative, Positive, check_bounds
from sharding.errors import UserError

FLOAT32 = 4
RIDGE = 1e-3
"""How strongly the regression is held to zero."""


@dataclasses.dataclass(frozen=True)
class Errors:
    """How far predictions are off, as parts of what was measured.

    Attributes:
      mean: of the absolute errors (MAPE).
      ninetieth: nine of ten are off by no more.
      worst: the largest.
    """

    mean: float
    ninetieth: float
    worst: float


def errors(predicted: np.ndarray, measured: np.ndarray) -> Errors:
    """The three errors of predictions [N].

    Raises:
      UserError: nothing was measured, or something that is not above 0.
    """
    predicted, measured = np.asarray(predicted, float), np.asarray(measured, float)
    if measured.size == 0 or predicted.shape != measured.shape or np.any(measured <= 0):
        raise UserError("errors: give as many predictions as measurements, which are above 0")
    off = np.abs(predicted / measured - 1)
    return Errors(float(np.mean(off)), float(np.percentile(off, 90)), float(np.max(off)))


@dataclasses.dataclass(frozen=True)
class Roofline:
    """What a machine reaches at most.

    Attributes:
      flops: operations a second.
      bandwidth: bytes a second.
      overhead: seconds that the smallest call takes.
    """

    flops: Positive
    bandwidth: Positive
    overhead: NotNegative = 0.0

    def __post_init__(self) -> None:
        check_bounds(self)

    def seconds(self, sizes: np.ndarray, itemsize: int = FLOAT32) -> np.ndarray:
        """Of products [N] of m x k by k x n, from sizes [N, 3]: m, n and k."""
        work, moved = _work(sizes, itemsize)
        return self.overhead + np.maximum(work / self.flops, moved / self.bandwidth)


def _work(sizes: np.ndarray, itemsize: int) -> tuple[np.ndarray, np.ndarray]:
    """Operations and bytes, each matrix read or written once."""
    m, n, k = np.asarray(sizes, float).T
    return 2 * m * n * k, itemsize * (m * k + k * n + m * n)


def reached(sizes: np.ndarray, seconds: np.ndarray, itemsize: int = FLOAT32) -> Roofline:
    """The roofline of the highest rates among measured products."""
    work, moved = _work(sizes, itemsize)
    return Roofline(float(np.max(work / seconds)), float(np.max(moved / seconds)))


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """A roofline and what measured products were slower by.

    Attributes:
      roofline: of the machine, with the time of the shortest product as overhead.
      low, high: logarithms of the smallest and largest m, n and k that were measured.
      weights: of the regression: of 1, of the three logarithms, of their squares and products.
      itemsize: bytes of a number.
    """

    roofline: Roofline
    low: tuple[float, ...]
    high: tuple[float, ...]
    weights: tuple[float, ...]
    itemsize: int = FLOAT32

    def seconds(self, sizes: np.ndarray) -> np.ndarray:
        """Predicted seconds [N] of products of sizes [N, 3].

        Outside of what was measured, the correction is that of the nearest size that was, so
        that time grows there as the roofline's does.
        """
        terms = _terms(sizes, np.array(self.low), np.array(self.high))
        slower = np.exp(terms @ np.array(self.weights))
        return self.roofline.seconds(sizes, self.itemsize) * slower


def calibrate(sizes: np.ndarray, seconds: np.ndarray, itemsize: int = FLOAT32) -> Calibrated:
    """Fits the logarithm of measured over roofline time, by least squares with a small ridge.

    Args:
      sizes: [N, 3], m, n and k of measured products, at least four.
      seconds: [N], above 0.
      itemsize: bytes of a number.

    Raises:
      UserError: too few products, or times that are not above 0.
    """
    sizes, seconds = np.asarray(sizes, float), np.asarray(seconds, float)
    if sizes.ndim != 2 or sizes.shape[1] != 3 or len(sizes) < 4 or len(sizes) != len(seconds):
        raise UserError("calibrate: give sizes [N, 3] and as many times, of four products or more")
    if np.any(seconds <= 0):
        raise UserError("calibrate: a measured time is not above 0")
    roofline = dataclasses.replace(
        reached(sizes, seconds, itemsize), overhead=float(np.min(seconds))
    )
    low, high = np.log(sizes).min(0), np.log(sizes).max(0)
    terms = _terms(sizes, low, high)
    slower = np.log(seconds / roofline.seconds(sizes, itemsize))
    held = RIDGE * len(sizes) * np.eye(terms.shape[1])
    held[0, 0] = 0.0  # the mean is free
    weights = np.linalg.solve(terms.T @ terms + held, terms.T @ slower)
    return Calibrated(roofline, tuple(low), tuple(high), tuple(weights), itemsize)


def _terms(sizes: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """[N, 10]: 1, logarithms scaled to [-1, 1], their squares and products."""
    middle, half = (low + high) / 2, np.maximum((high - low) / 2, 1e-9)
    x = (np.clip(np.log(np.asarray(sizes, float)), low, high) - middle) / half
    pairs = [x[:, i] * x[:, j] for i in range(3) for j in range(i, 3)]
    return np.stack([np.ones(len(x)), *x.T, *pairs], -1)
