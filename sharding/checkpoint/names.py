"""A tree of arrays as names and arrays, the way it is stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Fact:
    """What an array is.

    Attributes:
      shape: its global shape; of random keys, that of the integers they are made of.
      dtype: its name; of random keys, that of the integers.
      key: of random keys, the name of their kind.
    """

    shape: tuple[int, ...]
    dtype: str
    key: str | None = None

    def __str__(self) -> str:
        kind = f"keys of {self.key}, " if self.key else ""
        return f"{kind}{self.dtype} {list(self.shape)}"


def flat(tree: Any) -> dict[str, Any]:
    """{"params/blocks/ffn/w_in": leaf}: each leaf by its path, in the tree's order."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The names of `flat` as nested dicts."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *path, last = name.split("/")
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
        branch[last] = leaf
    return tree


def is_key(leaf: Any) -> bool:
    """Whether a leaf (or its shape) holds typed random keys."""
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def stored(leaf: Any) -> Any:
    """A leaf as it is stored: of random keys, their integers. Also of abstract leaves."""
    if not is_key(leaf):
        return leaf
    if isinstance(leaf, jax.Array):
        return jax.random.key_data(leaf)
    return jax.eval_shape(jax.random.key_data, leaf)


def key_kind(leaf: Any) -> str:
    """The name of the kind of random keys that a leaf holds: what `wrap_key_data` takes."""
    found: list[str] = []

    def look(keys: Any) -> Any:
        found.append(str(jax.random.key_impl(keys)))
        return jax.random.key_data(keys)

    jax.eval_shape(look, leaf)
    return found[0]


def fact(leaf: Any) -> Fact:
    """What a leaf is as it is stored."""
    words = stored(leaf)
    key = key_kind(leaf) if is_key(leaf) else None
    return Fact(tuple(words.shape), str(words.dtype), key)
