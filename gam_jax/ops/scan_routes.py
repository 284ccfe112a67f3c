"""Orders in which a scan may visit the cells of an image, as static NumPy tables."""

from __future__ import annotations

import numpy as np

PATTERNS = "CXSZ"
"""C, serpentine; X, diagonal zig-zag; S, spiral; Z, raster. Each has two routes."""


def routes(pattern: str, rows: int, columns: int) -> np.ndarray:
    """Two routes over a grid as [2, rows * columns] places of row-major cells.

    C: along rows, turning at each end; along columns likewise. X: along anti-diagonals, turning;
    the same mirrored left to right. S: clockwise from the top left inwards; the same flipped top
    to bottom. Z: row by row; column by column. Source: MHS-VM (arXiv 2406.05992), section on
    scan patterns.

    Raises:
      ValueError: an unknown pattern.
    """
    grid = np.arange(rows * columns).reshape(rows, columns)
    if pattern == "C":
        pair = _serpentine(grid), _serpentine(grid.T)
    elif pattern == "X":
        pair = _diagonals(grid), _diagonals(grid[:, ::-1])
    elif pattern == "S":
        pair = _spiral(grid), _spiral(grid[::-1])
    elif pattern == "Z":
        pair = grid.reshape(-1), grid.T.reshape(-1)
    else:
        raise ValueError(f"scan pattern '{pattern}' is not one of {', '.join(PATTERNS)}")
    return np.stack(pair)


def both_ways(pattern: str, rows: int, columns: int) -> np.ndarray:
    """The two routes, and the two from their ends: [4, rows * columns]."""
    pair = routes(pattern, rows, columns)
    return np.concatenate([pair, pair[:, ::-1]])


def _serpentine(grid: np.ndarray) -> np.ndarray:
    return np.concatenate([row[:: -1 if i % 2 else 1] for i, row in enumerate(grid)])


def _diagonals(grid: np.ndarray) -> np.ndarray:
    rows, columns = grid.shape
    found = []
    for total in range(rows + columns - 1):
        line = [grid[i, total - i] for i in range(rows) if 0 <= total - i < columns]
        found += line[:: -1 if total % 2 else 1]
    return np.array(found)


def _spiral(grid: np.ndarray) -> np.ndarray:
    found = []
    while grid.size:
        found += list(grid[0])
        grid = np.rot90(grid[1:])  # what was the right side is now on top
    return np.array(found)
