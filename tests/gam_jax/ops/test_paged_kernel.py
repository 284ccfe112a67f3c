"""JAX's own paged attention on our pages: what it gives, and what a TPU's compiler says of it.

It is not used, see docs/serving.md; this is how that was found.
"""

from __future__ import annotations

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from gam_jax.ops.attention import attend_cache
from gam_jax.ops.pages import PagedKeys, Pages
from gam_jax.ops.tiles import Rule
from sharding.topology import compiles, topology

pytestmark = pytest.mark.slow
ROWS, HEADS, GROUPS, PAGES, TOKENS = 3, 4, 2, 9, 16


def by_kernel(q, k, v, lengths, table, pages=2):
    """A token of each row. A head's pages are pages of one head: nothing is moved."""
    from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention

    (rows, heads, size), groups = q.shape, k.shape[1]
    one = table[:, None, :] * groups + jnp.arange(groups)[None, :, None]
    found = paged_attention(
        q.reshape(rows * groups, heads // groups, size),
        *(x.reshape(1, -1, *x.shape[2:]) for x in (k, v)),
        jnp.repeat(lengths, groups),
        one.reshape(rows * groups, -1),
        pages_per_compute_block=pages,
    )
    return found.reshape(q.shape)


def drawn(size):
    random = np.random.default_rng(0)
    q = random.normal(size=(ROWS, HEADS, size)).astype(np.float32)
    k, v = random.normal(size=(2, PAGES, GROUPS, TOKENS, size)).astype(np.float32)
    table = np.array([[1, 0, 0, 0], [2, 3, 4, 0], [5, 6, 7, 8]], np.int32)
    return q, k, v, np.array([5, 33, 64], np.int32), table


def by_blocks(q, k, v, lengths, table):
    keys, values = (
        PagedKeys.of((Pages(jnp.asarray(x), jnp.asarray(table)),), jnp.asarray(lengths), q.dtype)
        for x in (k, v)
    )
    rule = Rule(q.shape[-1] ** -0.5)
    return attend_cache(rule, jnp.asarray(q)[:, None], keys, values, jnp.asarray(lengths) - 1)[0][
        :, 0
    ]


def test_it_reads_our_pages_and_rounds_keys_and_values_to_bfloat16():
    q, k, v, *where = drawn(128)
    rounded = [np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32) for x in (k, v)]
    with pltpu.force_tpu_interpret_mode():
        found, exact = (
            np.asarray(jax.jit(by_kernel)(q * q.shape[-1] ** -0.5, *own, *where))
            for own in ((k, v), rounded)
        )
    np.testing.assert_allclose(exact, by_blocks(q, *rounded, *where), atol=1e-5)
    np.testing.assert_array_equal(found, exact)
    assert np.max(np.abs(found - by_blocks(q, k, v, *where))) > 1e-3


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no compiler of TPUs")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [64, 128, 256])
def test_a_v5e_s_compiler_takes_heads_of_128_channels_or_more(size, dtype):
    rows, groups, pages = 8, 4, 257
    shape = jax.ShapeDtypeStruct
    pool, number = shape((pages, groups, 64, size), dtype), jnp.int32
    args = (shape((rows, 8, size), dtype), pool, pool)
    args += (shape((rows,), number), shape((rows, 32), number))
    reason = compiles(functools.partial(by_kernel, pages=4), args, topology("v5e:2x2"))
    if size < 128:
        assert reason is not None
        assert "divisible by 8 and 128" in reason
    else:
        assert reason is None
