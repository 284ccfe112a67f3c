"""The project's programs in float64, where whatever is not rounding shows."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax.models import language
from gam_jax.serve.rows import Rows


@contextlib.contextmanager
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All arithmetic in float64, that of norms and softmaxes too."""
    with jax.enable_x64(True), monkeypatch.context() as patched:
        patched.setattr(jnp, "float32", jnp.float64)
        patched.setattr(np, "float32", np.float64)
        yield


@contextlib.contextmanager
def double_rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same; models may be of dtype float64, and so is what is stored of rows."""
    stored = Rows._stored

    def wide(self, param):
        found = stored(self, param)
        wide = "float64" if found.dtype == "float32" else found.dtype
        return dataclasses.replace(found, dtype=wide)

    with double(monkeypatch), monkeypatch.context() as patched:
        patched.setattr(language, "DTYPES", ("float64",))
        patched.setattr(Rows, "_stored", wide)
        yield


def of_double(tree):
    """Arrays of a tree in float64, integers as they are."""
    return jax.tree.map(
        lambda x: np.asarray(x, np.float64) if np.issubdtype(x.dtype, np.floating) else x, tree
    )
