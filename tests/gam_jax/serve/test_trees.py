"""A tree of guesses is several rows from one state: its text is that of one row, of any mixer."""

import jax
import numpy as np
import pytest

from gam_jax import decode
from gam_jax.serve.executor import Draws
from gam_jax.serve.trees import step_tree
from tests.examples import random_like
from tests.gam_jax.serve.test_real import BLOCK, VOCAB, device_of

PROMPT, COUNT = [3, 1, 4, 1], 14


@pytest.mark.parametrize("mixer", ["gam", "attention"])
def test_a_tree_of_paths_writes_what_one_row_writes(mixer):
    """One path is right at random, another is right now and then; page 0 of each row is its own."""
    device, draws = device_of(mixer), Draws()
    model, rows = device._rows.model, device.sizes.rows
    pieces = decode.generate(
        model, random_like(model.table()), [np.asarray(PROMPT)], COUNT, jax.random.key(5)[None]
    )
    wanted = [*PROMPT, *decode.written(pieces)[0].tolist()]
    own = [
        [*range(1 + row * 12, 13 + row * 12)] if device.sizes.page else [] for row in range(rows)
    ]
    random, text, read = np.random.default_rng(0), list(PROMPT), 0
    for row in range(rows):
        device.seat(row, 5, draws, np.asarray(PROMPT))
    device.load(0, None)
    saved, stood, most = device.save(0), 0, 0
    while len(text) < len(wanted):
        known = text[read:]
        ahead = min(BLOCK - len(known), len(wanted) - len(text))
        right = [*wanted, *[0] * BLOCK][len(text) : len(text) + ahead]
        paths = [list(right) for _ in range(rows)]
        for path in paths[1:]:
            if path:
                at = random.integers(len(path))
                path[at] = (path[at] + 1) % VOCAB
        if paths[0]:
            paths[0][0] = (paths[0][0] + 1) % VOCAB
        for row in range(rows):
            device.seat(row, 5, draws, np.asarray(PROMPT), np.asarray(text[len(PROMPT) :], int))
        new, winner = step_tree(device, saved, known, paths, own)
        stood, most = stood + len(new) - 1, max(most, len(new))
        if winner >= 0:
            saved, read = device.save(winner), read + BLOCK
            used = -(-(read + 1) // device.sizes.page) if device.sizes.page else 0
            for row in set(range(rows)) - {winner}:
                for place in range(used):
                    device.copy_page(own[winner][place], own[row][place])
        text += new
    assert text[: len(wanted)] == wanted
    assert stood > 0
    assert most > 1
