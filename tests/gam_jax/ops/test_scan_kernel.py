"""The memory scan as a kernel, interpreted, against the equations; and compiled for a TPU.

More cases of it are in `test_scan`, beside those of the other methods.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gam_jax.layers import LinearMemory
from gam_jax.ops import memory_scan
from gam_jax.ops.scan import RULES
from gam_jax.params import init_params
from gam_jax.planning.targets import topology
from sharding.errors import UserError
from sharding.mesh import make_mesh
from sharding.products import RECOMPUTED, product_flops
from sharding.topology import compiles
from tests import scan_oracle
from tests.gam_jax.ops.test_scan import DECAYS, assert_close, draw, packing
from tests.meshes import slow_unless_chosen
from tests.sharding.test_topology import there


@pytest.mark.parametrize(
    ("rule", "decay"),
    slow_unless_chosen(itertools.product(RULES, DECAYS), [("delta", "channel"), ("hebb", "head")]),
)
def test_documents_on_a_mesh_have_the_values_and_gradients_of_the_equations(rule, decay):
    """Rows are split over two devices; documents begin with a memory that is given."""
    args, starts = draw(2, 37, 1, 2, 4, 3, decay), packing(2, 37)
    random = np.random.default_rng(1)
    y, last = (
        random.normal(size=size).astype(np.float32) for size in ((2, 37, 2, 3), (2, 2, 4, 3))
    )
    begin = random.normal(size=last.shape).astype(np.float32)
    given = {
        name: x
        for name, x in zip(("q", "k", "v", "log_decay", "beta", "state"), args, strict=True)
        if x is not None
    } | {"begin": begin}

    def everything(given, starts, cotangents):
        scan = functools.partial(memory_scan, rule=rule, method="pallas", chunk=8, starts=starts)
        outputs, pull = jax.vjp(lambda given: scan(**given), given)
        return outputs, *pull(cotangents)

    rows = P("data")
    program = jax.shard_map(
        everything,
        mesh=make_mesh(data=2, devices=jax.devices()[:2]),
        in_specs=rows,
        out_specs=rows,
    )
    outputs, gradients = jax.jit(program)(given, starts, (y, last))
    *wanted, pull = scan_oracle.memory(*args, rule, starts, begin)
    assert_close(outputs, wanted)
    assert_close([gradients[name] for name in given], pull(y, last))


def test_as_many_tokens_as_keys_are_no_state():
    """Arrays of tokens then have the shape of a state, which a head has one of for all chunks."""
    arrays = draw(1, 16, 1, 2, 16, 3, "head")[:5]

    def total(method, *args):
        q, k, v, log, beta = args
        how = {"log_decay": log, "beta": beta, "rule": "hebb", "method": method, "chunk": 8}
        return jnp.sum(jnp.sin(memory_scan(q, k, v, **how)[0]))

    found, wanted = (
        jax.jit(jax.grad(functools.partial(total, method), range(4)))(*arrays)
        for method in ("pallas", "chunked")
    )
    assert_close(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_over_shards_of_tokens_it_gives_what_the_whole_gives(rule):
    arrays = draw(1, 64, 1, 2, 4, 4, "channel")[:5]

    def run(*args, axis=None, method="pallas"):
        q, k, v, log, beta = args
        how = {"log_decay": log, "beta": beta, "rule": rule, "method": method, "chunk": 16}
        return memory_scan(q, k, v, axis=axis, **how)[0]

    split = P(None, "seq")
    sharded = jax.shard_map(
        functools.partial(run, axis="seq"),
        mesh=make_mesh(seq=2, devices=jax.devices()[:2]),
        in_specs=split,
        out_specs=split,
    )

    def gradients(function):
        return jax.jit(jax.grad(lambda *x: jnp.sum(jnp.sin(function(*x))), range(5)))(*arrays)

    assert_close(gradients(sharded), gradients(functools.partial(run, method="chunked")))


def test_a_layer_that_asks_for_it_is_the_layer_row_by_row():
    layer = LinearMemory(width=8, heads=2, chunk=8)
    params = jax.jit(lambda key: init_params(layer.table(), key))(jax.random.key(0))
    x = np.random.default_rng(1).normal(size=(2, 1, 19, 8)).astype(np.float32)
    asking = dataclasses.replace(layer, method="pallas")
    found = jax.jit(jax.vmap(lambda row: asking(params, row)[0]))(x)
    wanted = jax.jit(lambda x: layer(params, x)[0])(x[:, 0])
    assert_close([np.asarray(found)[:, 0]], [np.asarray(wanted)])


def test_a_gpu_is_refused():
    q = np.ones((1, 4, 2, 4), np.float32)
    with pytest.raises(UserError, match=r"^memory_scan: method 'pallas' is for TPUs, not gpu"):
        memory_scan(q, q, q, method="pallas", backend="gpu")


def test_its_products_are_counted():
    """By hand, of linear attention: scores, what they read, what is read and written."""
    tokens, keys, width, chunk, heads = 256, 8, 4, 64, 6
    q, v = (jax.ShapeDtypeStruct((1, tokens, heads, n), jnp.float32) for n in (keys, width))

    def total(*qkv):
        return jnp.sum(memory_scan(*qkv, method="pallas", chunk=chunk)[0])

    pairs, cells = chunk * tokens * heads, keys * width * tokens * heads
    forward = 2 * (pairs * (keys + width) + 2 * cells)
    assert product_flops(jax.make_jaxpr(total)(q, q, v).jaxpr).total() == forward
    both = product_flops(jax.make_jaxpr(jax.grad(total, (0, 1, 2)))(q, q, v).jaxpr)
    assert both[RECOMPUTED] == forward
    assert both[""] == 3 * forward


COMPILED = [
    ("hebb", "none", 64, 64, 64),
    ("hebb", "channel", 64, 64, 64),
    ("delta", "none", 64, 64, 64),
    ("delta", "head", 96, 192, 64),
    ("delta", "channel", 128, 128, 64),
    ("delta", "channel", 6, 5, 8),
]


@there
@pytest.mark.slow
@pytest.mark.parametrize(("rule", "decay", "keys", "width", "chunk"), COMPILED)
def test_a_tpu_s_compiler_takes_it_forward_and_backward(rule, decay, keys, width, chunk):
    """On a mesh, with documents, two heads to a key."""
    machine = topology("v5e:2x2")
    mesh = make_mesh(data=4, devices=machine.devices)
    lead = (4, 8 * chunk + 1)
    log = {"none": None, "head": (4,), "channel": (4, keys)}[decay]
    sizes = [(2, keys), (2, keys), (4, width), (4,), log]
    shapes = [(*lead, *size) for size in sizes if size is not None]
    placed = jax.sharding.NamedSharding(mesh, P("data"))
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=placed) for shape in shapes]
    starts = jax.ShapeDtypeStruct(lead, bool, sharding=placed)

    def own(starts, q, k, v, beta, log=None):
        how = {"rule": rule, "method": "pallas", "chunk": chunk, "backend": machine.backend}
        y, last = memory_scan(q, k, v, log_decay=log, beta=beta, starts=starts, **how)
        return jnp.sum(jnp.sin(y)) + jnp.sum(last)

    def gradients(starts, *arrays):
        return jax.grad(functools.partial(own, starts), range(len(arrays)))(*arrays)

    program = jax.shard_map(gradients, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    assert compiles(jax.jit(program), (starts, *arrays), machine) is None
