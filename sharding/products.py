"""Operations in the products of a program, counted in its jaxpr without compiling it."""

from __future__ import annotations

import collections
import contextlib
import math
import re
from collections.abc import Collection
from typing import Any

import jax
from jax.interpreters import partial_eval

from sharding.messages import inner_jaxprs
from sharding.opaque import NAME as OPAQUE

RECOMPUTED = "rematted_computation"
"""The scope in which JAX computes again, in a backward pass, what `jax.checkpoint` did not keep."""
Flops = collections.Counter[str]
"""Operations by scope; "" for those in no scope that is counted apart."""

UNCOUNTABLE = {"while": "a while loop", "pallas_call": "a Pallas kernel"}
"""What turns a number of times that the jaxpr does not tell."""
CUDNN_FORWARD, CUDNN_BACKWARD = (f"dot_product_attention_{way}_wrapper" for way in ("fwd", "bwd"))
TURNS = re.compile(r"\bturns_(\d+)")


def turns(count: int) -> contextlib.AbstractContextManager[Any]:
    """A scope around a `while` loop that says how often it turns, for `product_flops`."""
    return jax.named_scope(f"turns_{count}")


def recomputed() -> contextlib.AbstractContextManager[Any]:
    """A scope for what a hand-written derivative computes again, as `jax.checkpoint` has one."""
    return jax.named_scope(RECOMPUTED)


def product_flops(jaxpr: Any, scopes: Collection[str] = (RECOMPUTED,)) -> Flops:
    """Multiplications and additions in the products that a program makes when it runs once.

    A product of [m, k] and [k, n] has 2 m k n. Counted are matrix products, products by group
    (`lax.ragged_dot`), convolutions and the attention of cuDNN, masked pairs too; not sums, norms,
    Fourier transforms and triangular solves. What no result depends on is left out, as compilers
    do. A loop counts as often as it turns, of a `cond` the branch with the most. Inside
    `jax.shard_map` the program is that of one device.

    Args:
      jaxpr: of the program, open: `jax.make_jaxpr(f)(...).jaxpr`.
      scopes: names of `jax.named_scope` whose products are counted apart; an outer one wins.

    Returns:
      Operations by scope; `.total()` of all.

    Raises:
      ValueError: a product in a Pallas kernel, or in a `while` loop that is not within `turns`.
    """
    live, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _walk(live, "", scopes)


def own_flops(eqn: Any) -> int:
    """Operations of one equation if it is a product, else 0; not what is inside it."""
    return sum(_own(eqn, "").values())


def _walk(jaxpr: Any, scope: str, scopes: Collection[str]) -> Flops:
    total = Flops()
    for eqn in jaxpr.eqns:
        stack = str(eqn.source_info.name_stack)
        named = (word for word in re.findall(r"\w+", stack) if word in scopes)
        inside = scope or next(named, "")
        total.update(_own(eqn, inside))
        within = () if eqn.primitive.name == OPAQUE else inner_jaxprs(eqn)
        parts = [_walk(part, inside, scopes) for part in within]
        if eqn.primitive.name == "cond":
            parts = [max(parts, key=Flops.total)]
        if any(parts):
            times = _times(eqn)
            for part in parts:
                total.update({name: times * count for name, count in part.items()})
    return total


def turns_of(eqn: Any) -> int | None:
    """How often a loop turns: what a scan says, what `turns` says of a `while` loop, or None."""
    if eqn.primitive.name == "scan":
        return eqn.params["length"]
    if eqn.primitive.name == "while" and (said := TURNS.findall(str(eqn.source_info.name_stack))):
        return int(said[-1])
    return None


def _times(eqn: Any) -> int:
    """How often what is inside an equation runs."""
    told, name = turns_of(eqn), eqn.primitive.name
    if told is None and name in UNCOUNTABLE:
        raise ValueError(f"a product in {UNCOUNTABLE[name]} cannot be counted")
    return 1 if told is None else told


def _own(eqn: Any, scope: str) -> dict[str, int]:
    """The operations of one equation that is a product."""
    name = eqn.primitive.name
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return {scope: _summed(eqn, contracted)}
    if name == "ragged_dot_general":
        numbers = eqn.params["ragged_dot_dimension_numbers"]
        (contracted, _), _ = numbers.dot_dimension_numbers
        # Where rows are summed by group, each is in the sum of one group alone.
        alone = numbers.lhs_ragged_dimensions[0] in contracted
        return {scope: _summed(eqn, contracted) // (eqn.invars[2].aval.shape[-1] if alone else 1)}
    if name == "conv_general_dilated":
        kernel, numbers = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"]
        summed = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
        return {scope: 2 * summed * math.prod(eqn.outvars[0].aval.shape)}
    if name == OPAQUE:
        all_of_it, again = eqn.params["flops"]
        found = Flops({scope: all_of_it - again})
        found.update({scope or RECOMPUTED: again})
        return found
    if name in (CUDNN_FORWARD, CUDNN_BACKWARD):
        query, key = (operand.aval.shape for operand in eqn.invars[:2])
        one = 2 * math.prod(query) * key[1 if eqn.params["layout"] == 0 else 2]
        if name == CUDNN_FORWARD:  # scores, and the sums of values
            return {scope: 2 * one}
        # Both products by both their sides, and the scores once more.
        found = Flops({scope: 4 * one})
        found.update({scope or RECOMPUTED: one})
        return found
    return {}


def _summed(eqn: Any, contracted: Collection[int]) -> int:
    left = eqn.invars[0].aval.shape
    return 2 * math.prod(left[dim] for dim in contracted) * math.prod(eqn.outvars[0].aval.shape)
