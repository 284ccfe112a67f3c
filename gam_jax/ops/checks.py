"""Refusals of the ops: one line that names the op, the argument, what it has and what it needs."""

from __future__ import annotations

from collections.abc import Iterable

import jax.numpy as jnp
from jax.typing import ArrayLike

from sharding.errors import UserError


def check_shape(op: str, name: str, x: ArrayLike | None, wanted: tuple[int, ...]) -> None:
    """Of an argument that may be None.

    Raises:
      UserError: another shape.
    """
    if x is not None and jnp.shape(x) != wanted:
        raise UserError(f"{op}: {name} {jnp.shape(x)} is not {wanted}")


def check_tokens(op: str, name: str, x: ArrayLike, axes: str) -> None:
    """Of the argument whose second axis is that of tokens.

    Args:
      op: its name.
      name: of the argument.
      x: the argument.
      axes: what they are, such as "[B, T, D]".

    Raises:
      UserError: another number of axes, or no tokens.
    """
    shape = jnp.shape(x)
    if len(shape) != axes.count(",") + 1:
        raise UserError(f"{op}: {name} {shape} is not {axes}")
    if not shape[1]:
        raise UserError(f"{op}: {name} {shape} has no tokens: give at least one")


def check_choice(op: str, name: str, value: str, choices: Iterable[str]) -> None:
    """Of an option with a few values.

    Raises:
      UserError: none of them.
    """
    if value not in choices:
        raise UserError(f"{op}: {name} '{value}' is not one of {', '.join(choices)}")


def check_chunk(op: str, chunk: int) -> None:
    """Of the tokens in a chunk.

    Raises:
      UserError: below 1.
    """
    if chunk < 1:
        raise UserError(f"{op}: chunk {chunk} is not at least 1")


def check_starts(op: str, starts: ArrayLike | None, wanted: tuple[int, ...]) -> None:
    """Of where documents begin: bool [B, T] or None.

    Raises:
      UserError: another shape, or another dtype, whose meaning would be a guess.
    """
    check_shape(op, "starts", starts, wanted)
    if starts is not None and jnp.result_type(starts) != jnp.bool_:
        raise UserError(
            f"{op}: starts is {jnp.result_type(starts)}, not bool: true at each document's first "
            f"token (of numbers of documents that is numbers[:, 1:] != numbers[:, :-1])"
        )
