"""The operations of a program's products are those that its shapes ask for, counted by hand."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.sharding import PartitionSpec

from gam_jax.ops.attention import attend_tokens
from gam_jax.ops.tiles import Rule
from sharding.mesh import make_mesh
from sharding.products import RECOMPUTED, product_flops, turns
from tests.arrays import put

M, K, N = 3, 5, 7
ONE = 2 * M * K * N
"""A product of [M, K] and [K, N]."""
SHAPES = (M, K), (K, N)


def arrays(*shapes, dtype=jnp.float32):
    return [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]


def flops(function, *args, **options):
    return dict(+product_flops(jax.make_jaxpr(function)(*args).jaxpr, **options))


def dot(x, w):
    return x @ w


def looped(x, w):
    """Four turns, each a product of [M, K] and [K, K]."""
    return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()


def branched(x, w):
    """One product, or three."""
    return lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: (x @ w) + (2 * x @ w) + (3 * x @ w))


def unused(x, w):
    _ = jnp.sin(x @ w)
    return x


def by_hand(x, w):
    """Its own derivative, with three products where autodiff has two."""

    @jax.custom_vjp
    def product(x, w):
        return x @ w

    product.defvjp(
        lambda x, w: (x @ w, (x, w)),
        lambda saved, g: (jnp.cos(saved[0] @ saved[1]) * g @ saved[1].T, saved[0].T @ g),
    )
    return product(x, w).sum()


LAYERS = 2 * M * K * K * 4


@pytest.mark.parametrize(
    ("function", "shapes", "count"),
    [
        (dot, SHAPES, ONE),
        (jax.jit(dot), SHAPES, ONE),
        (lambda x, w: jnp.einsum("bmk,bkn->bmn", x, w), ((2, M, K), (2, K, N)), 2 * ONE),
        (jax.grad(lambda x, w: dot(x, w).sum(), (0, 1)), SHAPES, 2 * ONE),
        (jax.value_and_grad(lambda x, w: jnp.sin(dot(x, w)).sum(), (0, 1)), SHAPES, 3 * ONE),
        (by_hand, SHAPES, ONE),
        (jax.value_and_grad(by_hand, (0, 1)), SHAPES, 4 * ONE),
        (looped, ((M, K), (4, K, K)), LAYERS),
        (jax.grad(looped, (0, 1)), ((M, K), (4, K, K)), 3 * LAYERS),
        (branched, SHAPES, 3 * ONE),
        (unused, SHAPES, 0),
        (
            lambda x, w: lax.fori_loop(0, 6, lambda _, y: y @ w, x),
            ((M, K), (K, K)),
            6 * 2 * M * K * K,
        ),
        (
            lambda x, w: lax.conv_general_dilated(x, w, (1,), "SAME", feature_group_count=2),
            ((1, 4, 9), (6, 2, 3)),  # 6 x 9 numbers, each a sum of 2 channels x 3 places
            2 * 6 * 9 * 2 * 3,
        ),
    ],
)
def test_products_are_counted_through_whatever_they_stand_in(function, shapes, count):
    assert sum(flops(function, *arrays(*shapes)).values()) == count


def test_rows_by_group_cost_what_rows_cost_forward_and_backward():
    sizes = put([3, 3, 2])
    args = arrays((8, K), (3, K, N))
    step = jax.value_and_grad(lambda x, w: jnp.sin(lax.ragged_dot(x, w, sizes)).sum(), (0, 1))
    assert flops(step, *args) == {"": 3 * 2 * 8 * K * N}


def test_a_device_has_its_own_part_inside_shard_map():
    mesh, split = make_mesh(data=4), PartitionSpec("data")
    program = jax.shard_map(dot, mesh=mesh, in_specs=(split, PartitionSpec()), out_specs=split)
    assert flops(program, *arrays((4 * M, K), (K, N))) == {"": ONE}


def test_what_is_recomputed_is_told_apart_from_the_model():
    args = arrays((M, K), (4, K, K))

    def kept(x, w):
        return lax.scan(jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None)), x, w)[0].sum()

    found = flops(jax.value_and_grad(kept, (0, 1)), *args)
    assert found == {"": 3 * LAYERS, RECOMPUTED: LAYERS}
    assert flops(jax.value_and_grad(looped, (0, 1)), *args) == {"": 3 * LAYERS}


def test_a_scope_is_counted_apart_with_all_that_is_in_it():
    def both(x, w):
        with jax.named_scope("optimizer"):
            y = lax.scan(lambda x, _: (x @ w, None), x, None, length=3)[0]
        return y, 2 * x @ w

    found = flops(both, *arrays((M, K), (K, K)), scopes=("optimizer",))
    assert found == {"optimizer": 3 * 2 * M * K * K, "": 2 * M * K * K}


def test_what_nobody_can_count_is_an_error_and_not_a_wrong_number():
    def until(x, w):
        return lax.while_loop(lambda y: y.sum() < 9, lambda y: y @ w, x)

    args = arrays((M, K), (K, K))
    with pytest.raises(ValueError, match="while loop"):
        flops(until, *args)

    def bounded(x, w):
        with turns(5):
            return until(x, w)

    assert flops(bounded, *args) == {"": 5 * 2 * M * K * K}


@pytest.mark.parametrize(("window", "blocks"), [(0, 4), (3, 2), (9, 3)])
def test_attention_in_blocks_counts_the_blocks_that_are_seen(window, blocks):
    """Forward two products a pair of blocks; backward four, and the scores once more."""
    rule = Rule(scale=1.0, causal=True, window=window, block=4)
    shapes = [(1, 16, 2, 3)] * 3
    pair = 2 * 2 * 3 * 4 * 4  # heads x channels x queries x keys of one product

    def step(q, k, v):
        return jnp.sin(attend_tokens(rule, q, k, v)[0]).sum()

    found = flops(jax.value_and_grad(step, (0, 1, 2)), *arrays(*shapes))
    assert found == {"": 6 * pair * 4 * blocks, RECOMPUTED: pair * 4 * blocks}


def test_the_attention_of_cudnn_counts_as_the_same_products():
    """Its program is one call that has no products inside; it is traced here, not run."""
    shape = (2, 64, 4, 8)
    none = [jax.ShapeDtypeStruct((0,), jnp.float32)] * 7
    options = {"scale": 1.0, "seed": 0, "dropout_rate": 0.0, "variadic_args": (False, False)}
    options |= {"mask_type": cudnn.MaskType.CAUSAL, "layout": cudnn.AttentionLayout.BTNH.value}
    options |= {"sliding_window_length": None}

    def forward(*args):
        return cudnn._dot_product_attention_fwd_p_wrapper.bind(*args, **options, is_training=True)

    def backward(*args):
        return cudnn._dot_product_attention_bwd_p_wrapper.bind(*args, **options)

    one = 2 * math.prod(shape) * shape[1]
    qkv = arrays(*[shape] * 3, dtype=jnp.bfloat16)
    assert flops(forward, *qkv, *none) == {"": 2 * one}
    lse, out = arrays((2, 4, 64)), arrays(shape, shape, dtype=jnp.bfloat16)
    assert flops(backward, *qkv, *none, *lse, *out) == {"": 4 * one, RECOMPUTED: one}
