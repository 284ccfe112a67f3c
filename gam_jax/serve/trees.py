"""A tree of guesses as several rows that begin from one state: for any mixer, with no tree mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gam_jax.serve.executor import Executor, Saved, Work


def step_tree(
    executor: Executor,
    saved: Saved,
    known: Sequence[int],
    paths: Sequence[Sequence[int]],
    pages: Sequence[Sequence[int]],
) -> tuple[list[int], int]:
    """Reads each path of a tree in a row of its own, and takes the one that stands longest.

    Rows are to be seated with one key and one past: what stands is then what one row alone writes.

    Args:
      executor: with a row for each path.
      saved: the state that all begin from.
      known: tokens that follow it, the last of them the text's last; paths go on from it.
      paths: of guesses from the root to a leaf; with what is known, at most a block each.
      pages: of each row, those for its block too; its first pages are shared with the others, or
        hold the same, up to the state.

    Returns:
      The new tokens, one more than the guesses that stood, and the row that has read its whole
      block with them, or else -1.
    """
    sizes = executor.sizes
    shape = sizes.rows, sizes.block
    tokens, table = np.zeros(shape, np.int32), np.zeros((sizes.rows, sizes.row_pages), np.int32)
    counts, guesses = np.zeros((2, sizes.rows), np.int32)
    for row, path in enumerate(paths):
        executor.load(row, saved)
        block = [*known, *path]
        tokens[row, : len(block)], table[row, : len(pages[row])] = block, pages[row]
        counts[row], guesses[row] = len(known), len(path)
    drawn = executor.step(Work(tokens, counts, guesses, table)).result()
    best = int(np.argmax(drawn.right[: len(paths)]))
    right = int(drawn.right[best])
    new = drawn.tokens[best, len(known) - 1 : right].tolist()
    return new, best if right == sizes.block else -1
