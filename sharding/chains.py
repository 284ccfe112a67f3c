"""How many steps of a program must follow one another, counted in its jaxpr."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jax.extend.core import Var
from jax.interpreters import partial_eval

from sharding.messages import PRIMITIVES, inner_jaxprs
from sharding.products import TURNS

Steps = Callable[[Any, int], int]
"""(an equation, steps of the longest way inside it) -> its own steps, one after another."""


def longest_chain(jaxpr: Any) -> int:
    """The longest way through a program by what depends on what, in turns of its loops.

    A loop of n turns is n steps, or n times those of a turn if there are loops in it; what is in no
    loop is none. Of loops that do not wait for each other the longest counts. A function that is
    called is one piece of the way, as long as the longest way in it. What no result depends on is
    left out.

    Args:
      jaxpr: of the program, open: `jax.make_jaxpr(f)(...).jaxpr`.

    Raises:
      ValueError: a `while` loop that does not say how often it turns, see `products.turns`.
    """
    return _of_program(jaxpr, _turns)


def longest_sums(jaxpr: Any, axis: str) -> int:
    """Likewise in sums over the devices of a mesh axis: those that wait for each other.

    A sum is an all-reduce or a reduce-scatter. A loop of n turns is n times a turn's.

    Args:
      jaxpr: as in `longest_chain`.
      axis: the mesh axis.

    Raises:
      ValueError: a sum in a `while` loop.
    """

    def steps(eqn: Any, inside: int) -> int:
        name, params = eqn.primitive.name, eqn.params
        if PRIMITIVES.get(name) in ("all_reduce", "reduce_scatter"):
            over = params.get("axes", params.get("axis_name"))
            return int(axis in (over if isinstance(over, tuple) else (over,)))
        if name == "while" and inside:
            raise ValueError("a sum in a while loop: nobody knows how often it turns")
        return inside * (params["length"] if name == "scan" else 1)

    return _of_program(jaxpr, steps)


def _of_program(jaxpr: Any, steps: Steps) -> int:
    live, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _longest(live, steps)


def _longest(jaxpr: Any, steps: Steps) -> int:
    ends: dict[Any, int] = {}
    for eqn in jaxpr.eqns:
        begin = max((ends.get(x, 0) for x in eqn.invars if isinstance(x, Var)), default=0)
        inside = max((_longest(part, steps) for part in inner_jaxprs(eqn)), default=0)
        ends.update(dict.fromkeys(eqn.outvars, begin + steps(eqn, inside)))
    return max(ends.values(), default=0)


def _turns(eqn: Any, inside: int) -> int:
    if eqn.primitive.name == "scan":
        return eqn.params["length"] * max(inside, 1)
    if eqn.primitive.name == "while":
        said = TURNS.findall(str(eqn.source_info.name_stack))
        if not said:
            raise ValueError("a while loop does not say how often it turns: use products.turns")
        return int(said[-1]) * max(inside, 1)
    return inside
