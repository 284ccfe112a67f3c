"""Ids on the host, tokens or classes: refused by name and place where there is no such id."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sharding.errors import UserError


def check_ids(name: str, ids: np.ndarray, count: int, axes: Sequence[str]) -> None:
    """Refuses ids below 0 or from `count` on, whatever their weight.

    Args:
      name: of the array, for the message.
      ids: whole numbers of any type.
      count: how many ids there are.
      axes: what each dimension of the array is called, for the message, such as "row".

    Raises:
      UserError: it names the first such id in reading order and its place; or no whole numbers.
    """
    if ids.dtype.kind not in "iu":
        raise UserError(f"{name}: ids must be whole numbers, not {ids.dtype}")
    ids = ids if ids.dtype.itemsize >= 4 else ids.astype(np.int32)
    # As unsigned numbers, negative ones are too large: one pass over the array finds both.
    if not ids.size or int(ids.view(ids.dtype.str.replace("i", "u")).max()) < count:
        return
    places = np.unravel_index(np.argmax((ids < 0) | (ids >= count)), ids.shape)
    where = ", ".join(f"{axis} {place}" for axis, place in zip(axes, places, strict=False))
    raise UserError(
        f"{name}: id {ids[places]} at {where} is outside of 0 to {count - 1}; where the weight is "
        f"0, too, ids must be ones that there are"
    )
