"""The code on the page of the ops runs as it stands, top to bottom, and says what is so."""

from __future__ import annotations

import pathlib
import re

import numpy as np
import pytest

PAGE = pathlib.Path(__file__).parents[2] / "docs/ops.md"


@pytest.fixture(scope="module")
def names():
    pytest.importorskip("equinox", reason="the extra `test` has it")
    found: dict = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(code, found)
    return found


@pytest.mark.slow
def test_the_equinox_module_is_the_same_over_rows_and_documents(names):
    run, model, x, begin = (names[name] for name in ("run", "model", "x", "begin"))
    alone, last = run(model, x[:, 5:], np.zeros((1, 7), bool), begin)
    np.testing.assert_allclose(names["rows"][:, 5:], alone, atol=1e-5)
    np.testing.assert_allclose(names["last"], last, atol=1e-5)


def test_starts_can_be_made_of_numbers_of_documents(names):
    (code,) = re.findall(r"`starts = (numbers != .*?)`", PAGE.read_text())
    numbers = np.array([[0, 0, 1, 1, 2], [3, 3, 3, 4, 4]])
    found = eval(code, {"numbers": numbers, "jnp": names["jnp"]})
    np.testing.assert_array_equal(found, [[1, 0, 1, 0, 1], [1, 0, 0, 1, 0]])
