"""A row's state and its pages as bytes: a mark of the model, a checksum, and the arrays."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sharding.errors import UserError

SIZE = hashlib.sha256().digest_size


def to_bytes(mark: bytes, arrays: Sequence[np.ndarray]) -> bytes:
    """The arrays, one behind the other.

    Args:
      mark: of the model and of what its arrays are like, `SIZE` bytes.
      arrays: of shapes and dtypes that the mark stands for.
    """
    body = mark + b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    return hashlib.sha256(body).digest() + body


def from_bytes(mark: bytes, data: bytes, shapes: Sequence[Any]) -> list[np.ndarray]:
    """The inverse.

    Args:
      mark: as it was.
      data: what `to_bytes` made.
      shapes: of the arrays, each with a shape and a dtype.

    Raises:
      UserError: data that are damaged, of another model, or of another number of pages.
    """
    if hashlib.sha256(data[SIZE:]).digest() != data[:SIZE]:
        raise UserError("a saved text is damaged: its checksum is not that of its bytes; delete it")
    if data[SIZE : 2 * SIZE] != mark:
        raise UserError("a saved text is of another model or another size of pages: delete it")
    sizes = [math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in shapes]
    if len(data) != 2 * SIZE + sum(sizes):
        raise UserError(
            f"a saved text has {len(data)} bytes, and the pages for it are of "
            f"{2 * SIZE + sum(sizes)}: give as many pages as were saved"
        )
    found, at = [], 2 * SIZE
    for x, size in zip(shapes, sizes, strict=True):
        found.append(np.frombuffer(data, x.dtype, math.prod(x.shape), at).reshape(x.shape))
        at += size
    return found
