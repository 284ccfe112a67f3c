"""How many turns of loops must follow one another in a program, counted in its jaxpr."""

from __future__ import annotations

from typing import Any

from jax.extend.core import Var
from jax.interpreters import partial_eval

from sharding.messages import inner_jaxprs
from sharding.products import TURNS


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
    live, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _longest(live)


def _longest(jaxpr: Any) -> int:
    ends: dict[Any, int] = {}
    for eqn in jaxpr.eqns:
        begin = max((ends.get(x, 0) for x in eqn.invars if isinstance(x, Var)), default=0)
        end = begin + _turns(eqn)
        ends.update(dict.fromkeys(eqn.outvars, end))
    return max(ends.values(), default=0)


def _turns(eqn: Any) -> int:
    """Steps of one equation, one after another."""
    inside = max((_longest(part) for part in inner_jaxprs(eqn)), default=0)
    if eqn.primitive.name == "scan":
        return eqn.params["length"] * max(inside, 1)
    if eqn.primitive.name == "while":
        said = TURNS.findall(str(eqn.source_info.name_stack))
        if not said:
            raise ValueError("a while loop does not say how often it turns: use products.turns")
        return int(said[-1]) * max(inside, 1)
    return inside
