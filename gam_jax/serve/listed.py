"""Which programs serve a model, and what each takes: of arrays, or of shapes alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import ShapeDtypeStruct

from gam_jax.models.language import LanguageModel
from gam_jax.serve.executor import Sizes
from gam_jax.serve.programs import WHOLE, Programs, State, empty_seats
from gam_jax.serve.rows import Rows, has_growing_cache
from sharding.bounds import Count, Size, check_number
from sharding.errors import UserError
from sharding.layout import Layout

WIDTHS = (256, 64, 16, 4, 1)
"""Of the blocks of a prompt."""
PAGE = 64
"""Tokens of a page."""
FLAG, NUMBER = ShapeDtypeStruct((), bool), ShapeDtypeStruct((), np.int32)


class Listed(NamedTuple):
    """A program of one device of the mesh.

    Attributes:
      program: of the rows' state, and more.
      takes: how its arguments lie, the state first.
      gives: how its results lie.
      shapes: of all its arguments.
      changes: whether the state is among its results, in the place of the one before.
      whole: whether each of several processes needs all of its results.
    """

    program: Any
    takes: tuple[Any, ...]
    gives: Any
    shapes: tuple[Any, ...]
    changes: bool = True
    whole: bool = False


def rows_of(
    model: LanguageModel,
    layout: Layout,
    rows: int,
    *,
    limit: int = 0,
    tokens: int = 0,
    block: int = 1,
    page: int = PAGE,
    widths: tuple[int, ...] = WIDTHS,
) -> tuple[Rows, Sizes]:
    """The rows of a model and the sizes of their programs; the arguments are those of `Device`.

    Args:
      model: for texts of at most `limit` tokens, see `device.served`.
      layout: the mesh, which may be of no devices.
      rows: S.
      limit: the most tokens of a row; 0 for any number.
      tokens: of all rows together that growing caches have room for; 0 for S times the limit.
      block: W, tokens of a row in a step with guesses; 1 for none.
      page: tokens of a page.
      widths: of the blocks of a prompt, falling to 1.

    Raises:
      UserError: sizes that make no sense.
    """
    check_number("rows", rows, Size)
    check_number("block", block, Size)
    check_number("page", page, Size)
    check_number("limit", limit, Count)
    check_number("tokens", tokens, Count)
    if limit and block > limit:
        raise UserError(f"a block of {block} tokens is longer than a text of {limit}")
    page = page if has_growing_cache(model) else 0
    pages = 1 + max(-(-(tokens or rows * limit) // page), -(-limit // page)) if page else 0
    found = Rows(model, layout, rows, page, pages, limit)
    widths = tuple(w for w in widths if not limit or w <= limit)
    vocab = model.ids()["inputs"]
    return found, Sizes(rows, widths, block, page, pages, found.row_pages, limit, vocab)


def empty_state(programs: Programs) -> State:
    """Rows that have read nothing."""
    rows = programs.rows
    carry = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), rows.shapes(rows.rows))
    seats = empty_seats(rows.rows, rows.model.ids()["inputs"])
    return State(carry, seats, programs.no_features())  # type: ignore[call-arg]


def listed(programs: Programs, sizes: Sizes, params: Any, own: Any) -> dict[str, Listed]:
    """Every program that there is, by name.

    Args:
      programs: before they are compiled.
      sizes: of the rows.
      params: as `Programs.ready` gives them, or their shapes.
      own: parameters of a drafter, or their shapes.
    """
    rows, states = programs.rows, programs.state_specs
    state = jax.eval_shape(lambda: empty_state(programs))
    own_lie, pools = rows.parted(rows.specs(()))
    start, page = rows.parted(rows.shapes(1))[0], rows.parted(rows.page_shapes)[1]
    given, own = (jax.tree.map(_shape, x) for x in (params, own))
    found: dict[str, Listed] = {}

    def add(name: str, program: Any, gives: Any, *rest: tuple[Any, Any], **how: bool) -> None:
        shapes, lie = zip((state, states), *rest, strict=True)
        found[name] = Listed(program, lie, gives, shapes, **how)

    weights = given, programs.param_specs
    row, flag = (NUMBER, WHOLE), (FLAG, WHOLE)
    words = ShapeDtypeStruct((sizes.rows, -(-sizes.vocab // 32)), np.uint32), WHOLE
    told = states, WHOLE
    for width in sorted({1, sizes.block}):
        work = _ints(sizes.rows, width + 2 + sizes.row_pages), WHOLE
        add(f"step {width}", programs.step, told, weights, work, words, flag)
    for width in sizes.widths:
        work = _ints(sizes.together(width), 1 + 2 * width + sizes.row_pages), WHOLE
        add(f"read {width}", programs.read, told, weights, work, flag)
    if programs.drafter is not None and programs.passes:
        drafter = own, jax.tree.map(lambda _: WHOLE, own)
        work = _ints(sizes.rows, programs.drafter.window + 1), WHOLE
        add("guess", programs.guess, WHOLE, weights, drafter, work, changes=False)
    seats = jax.eval_shape(lambda: empty_seats(1, sizes.vocab)), WHOLE
    add("seat", programs.seat, states, row, seats)
    add("load", programs.load, states, row, (start, own_lie))
    add("save", programs.save, own_lie, row, changes=False)
    if sizes.page:
        add("copy a page", programs.copy_page, states, row, row)
        add("take a page", programs.page, pools, row, changes=False, whole=True)
        add("put a page", programs.put_page, states, row, (page, pools))
    return found


def _ints(*shape: int) -> ShapeDtypeStruct:
    return ShapeDtypeStruct(shape, np.int32)


def _shape(x: Any) -> ShapeDtypeStruct:
    return ShapeDtypeStruct(x.shape, x.dtype)
