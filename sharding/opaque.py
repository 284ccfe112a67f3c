"""Programs that do not say over which mesh axes their results vary, made to fit `jax.shard_map`.

Under `check_vma=True` every operation types its results as varying over mesh axes. JAX's own Pallas
kernels do not (0.10.2), so that calling one there raises an error. `opaque` puts such a program
behind one primitive, whose results vary as its arguments do, and which becomes the program when it
is compiled. It must hold no collective: what it computes is one device's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import core
from jax._src import config
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import batching, mlir
from jax.sharding import PartitionSpec
from jaxtyping import Array

from sharding import collectives

NAME = "opaque"
Function = Callable[..., tuple[Array, ...]]


def opaque(
    fn: Function, given: Sequence[Array], varied: Sequence[Array], flops: tuple[int, int, int]
) -> tuple[Array, ...]:
    """fn(*given, *varied), which can be derived by `varied`.

    Args:
      fn: a function of arrays that gives several, without collectives, that JAX can derive.
      given: arguments without a derivative, as integers.
      varied: arguments.
      flops: operations in its products: forward; backward; and of those again that the backward
        pass computes a second time. See `products.product_flops`.
    """
    arguments = collectives.vary_alike(*given, *varied)
    given, varied = arguments[: len(given)], arguments[len(given) :]
    forward_flops, backward_flops, again = flops

    @jax.custom_vjp
    def call(given: tuple[Array, ...], varied: tuple[Array, ...]) -> tuple[Array, ...]:
        return _bind(fn, (*given, *varied), (forward_flops, 0))

    def forward(given: tuple[Array, ...], varied: tuple[Array, ...]) -> Any:
        trees = []

        def kept(*arguments: Array) -> tuple[Array, ...]:
            given_now, varied_now = arguments[: len(given)], arguments[len(given) :]
            found, back = jax.vjp(lambda *own: fn(*given_now, *own), *varied_now)
            leaves, tree = jax.tree.flatten(back)
            trees.append((len(found), tree))
            return (*found, *leaves)

        found = _bind(kept, (*given, *varied), (forward_flops, 0))
        count, tree = trees[-1]
        return found[:count], jax.tree.unflatten(tree, found[count:])

    def backward(back: Any, gradients: tuple[Array, ...]) -> Any:
        leaves, tree = jax.tree.flatten(back)
        gradients = collectives.vary_alike(*leaves, *gradients)[len(leaves) :]

        def pulled(*arguments: Array) -> tuple[Array, ...]:
            kept, own = arguments[: len(leaves)], arguments[len(leaves) :]
            return jax.tree.unflatten(tree, kept)(own)

        return None, _bind(pulled, (*leaves, *gradients), (backward_flops, again))

    call.defvjp(forward, backward)
    return call(tuple(given), tuple(varied))


def _bind(fn: Function, arguments: Sequence[Array], flops: tuple[int, int]) -> tuple[Array, ...]:
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arguments]
    with config._check_vma(False):
        program = jax.make_jaxpr(fn)(*shapes)
    return tuple(_primitive.bind(*arguments, program=program, flops=flops))


def _typed(*arguments: Any, program: Any, flops: tuple[int, int]) -> list[Any]:
    """The types of the results: shapes of the program, axes of the first argument."""
    first = arguments[0]

    def like(own: Any) -> core.AbstractValue:
        spec = PartitionSpec(*(None,) * len(own.shape))
        sharding = first.sharding.update(spec=spec)
        return first.update(shape=own.shape, dtype=own.dtype, weak_type=False, sharding=sharding)

    return [like(own) for own in program.out_avals]


def _lowered(ctx: Any, *arguments: Any, program: Any, flops: tuple[int, int]) -> Any:
    with config._check_vma(False):
        lower = mlir.lower_fun(jaxpr_as_fun(program), multiple_results=True)
        untyped = ctx.replace(avals_in=program.in_avals, avals_out=program.out_avals)
        return lower(untyped, *arguments)


def _computed(*arguments: Array, program: Any, flops: tuple[int, int]) -> Any:
    return jax.jit(jaxpr_as_fun(program))(*arguments)


def _batched(
    arguments: Sequence[Array], dims: Sequence[Any], *, program: Any, flops: tuple[int, int]
) -> Any:
    size = next(x.shape[d] for x, d in zip(arguments, dims, strict=True) if d is not None)
    many = jax.vmap(jaxpr_as_fun(program), tuple(dims))
    found = _bind(lambda *own: tuple(many(*own)), arguments, (size * flops[0], size * flops[1]))
    return found, (0,) * len(found)


_primitive = Primitive(NAME)
_primitive.multiple_results = True
_primitive.def_abstract_eval(_typed)
_primitive.def_impl(_computed)
mlir.register_lowering(_primitive, _lowered)
batching.primitive_batchers[_primitive] = _batched
