"""Programs of scans for accelerators: the same numbers, and few turns that follow one another.

They are run here on the processor, told that it is a TPU.
"""

import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gam_jax.layers import MHS, FusedDelta, LinearMemory, Mamba, Mamba2
from gam_jax.ops import memory_scan, selective_scan
from gam_jax.ops.scan import RULES, chunks
from gam_jax.ops.selective import SEGMENT
from gam_jax.params import abstract_params
from gam_jax.planning.targets import topology
from sharding.axes import Axes
from sharding.chains import longest_chain
from tests import scan_oracle
from tests.gam_jax.ops import test_selective as selective
from tests.gam_jax.ops.test_scan import DECAYS, assert_close, draw, packing
from tests.meshes import layout_of, slow_unless_chosen
from tests.sharding.test_topology import there

MEMORIES = tuple(itertools.product(RULES, DECAYS, (False, True)))
CHOSEN = tuple((rule, decay, rule == "delta") for rule in RULES for decay in DECAYS)


def memory(args, starts=None, **how):
    q, k, v, log, beta, state = args
    return memory_scan(
        q, k, v, log_decay=log, beta=beta, state=state, starts=starts, backend="tpu", **how
    )


@pytest.mark.parametrize(("rule", "decay", "packed"), slow_unless_chosen(MEMORIES, CHOSEN))
def test_a_memory_equals_its_equations_with_its_gradients(rule, decay, packed, monkeypatch):
    """In one turn where all chunks fit, and in several."""
    args, random = draw(2, 37, 2, 4, 4, 3, decay), np.random.default_rng(1)
    starts = packing(2, 37) if packed else None
    cotangents = random.normal(size=(2, 37, 4, 3)), random.normal(size=(2, 4, 4, 3))
    cotangents = tuple(x.astype(np.float32) for x in cotangents)
    *wanted, pull = scan_oracle.memory(*args, rule, starts)
    slopes = pull(*cotangents)
    there = [i for i, x in enumerate(args) if x is not None]

    def function(*given):
        full = dict(enumerate(args)) | dict(zip(there, given, strict=True))
        return memory([full[i] for i in range(6)], starts, rule=rule, chunk=4)

    @jax.jit
    def everything(*given):
        outputs, pulled = jax.vjp(function, *given)
        return outputs, pulled(cotangents)

    given = [args[i] for i in there]
    most = 16 * 16 if decay == "head" else chunks.MOST_AT_ONCE
    monkeypatch.setattr(chunks, "MOST_AT_ONCE", most)
    outputs, gradients = everything(*given)
    assert_close(outputs, wanted)
    assert_close(gradients, slopes)


def turns(function, *shapes):
    """Of the program that gives a function's gradients by all arguments."""
    given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    gradient = jax.grad(
        lambda *args: jnp.sum(jnp.sin(function(*args))), argnums=tuple(range(len(given)))
    )
    return longest_chain(jax.make_jaxpr(gradient)(*given).jaxpr)


@pytest.mark.parametrize("rule", RULES)
def test_a_memory_takes_a_turn_a_chunk_forward_and_one_backward(rule):
    tokens = 8192
    array = (1, tokens, 16, 8)

    def found(backend):
        def y(q, k, v, log):
            return memory_scan(q, k, v, log_decay=log, rule=rule, backend=backend)[0]

        return turns(y, array, array, array, array[:3])

    assert found("tpu") == found("gpu") == 2 * tokens // 64
    assert found("cpu") > 2 * tokens // 64
    assert found("cpu") == found(None)


@pytest.mark.parametrize("packed", [False, True], ids=["one document", "packed"])
def test_the_selective_scan_equals_its_recurrence_with_its_gradients(packed):
    tokens = 2 * SEGMENT + 5
    given = selective.problem(tokens)
    random = np.random.default_rng(1)
    by_y, by_last = random.normal(size=given["x"].shape), random.normal(size=given["state"].shape)
    starts = selective.packing(tokens) & (np.arange(tokens) > SEGMENT) if packed else None

    @jax.jit
    def everything(given):
        def objective(given):
            *arrays, state, begin = (given[name] for name in selective.NAMES)
            how = {"state": state, "begin": begin, "starts": starts, "backend": "tpu"}
            y, last = selective_scan(*arrays, **how)
            return jnp.sum(y * by_y) + jnp.sum(last * by_last), (y, last)

        return jax.grad(objective, has_aux=True)(given)

    gradients, outputs = everything(selective.single(given))
    for found, wanted in zip(outputs, selective.oracle(**given, starts=starts), strict=True):
        selective.close(found, wanted)
    for name, wanted in selective.oracle_gradients(given, by_y, by_last, starts).items():
        selective.close(gradients[name], wanted)


def test_the_turns_of_the_selective_scan_do_not_grow_with_the_tokens():
    def found(tokens, backend):
        def y(*args):
            return selective_scan(*args, backend=backend)[0]

        array, few = (1, tokens, 8), (1, tokens, 4)
        return turns(y, array, array, (4, 8), few, few)

    short, long = (found(tokens, "tpu") for tokens in (1024, 8192))
    assert short == long <= 6 * SEGMENT
    assert found(8192, "cpu") == found(8192, None) == 3 * 8192  # backward, states again


@there
@pytest.mark.slow
def test_a_gpu_s_compiler_keeps_the_turns():
    """The state's own loops, forward and backward, and those in segments, eight tokens a turn."""
    first = jax.sharding.SingleDeviceSharding(topology("h100:1x1").devices[0])
    array, few = (1, 512, 16, 8), (1, 512, 4)

    def loops(function, *shapes):
        given = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=first) for shape in shapes]
        gradient = jax.grad(lambda *args: jnp.sum(jnp.sin(function(*args)[0])), range(len(given)))
        text = jax.jit(gradient).lower(*given).compile().as_text()
        return [int(n) for n in re.findall(r'"known_trip_count":\{"n":"(\d+)"\}', text)]

    assert loops(functools.partial(memory_scan, backend="gpu"), array, array, array) == [8, 8]
    scan = functools.partial(selective_scan, backend="gpu")
    found = loops(scan, array[:3], array[:3], (4, 16), few, few)
    assert set(found) == {SEGMENT // 8}


@pytest.mark.parametrize("op", [pytest.param("memory", marks=pytest.mark.slow), "selective"])
def test_over_shards_they_give_what_the_whole_gives(op):
    tokens = 4 * SEGMENT
    if op == "memory":
        arrays = draw(1, tokens, 1, 2, 4, 4, "head")
        arrays, state = arrays[:5], arrays[5]
        specs = (P(None, "seq"),) * 5

        def run(*args, axis=None, backend="tpu"):
            q, k, v, log, beta = args
            more = {"log_decay": log, "beta": beta, "state": state, "axis": axis}
            return memory_scan(q, k, v, rule="delta", chunk=16, backend=backend, **more)[0]
    else:
        given = selective.single(selective.problem(tokens))
        arrays = [given[name] for name in selective.NAMES[:-2]]
        specs = tuple(P() if name == "a" else P(None, "seq") for name in selective.NAMES[:-2])

        def run(*args, axis=None, backend="tpu"):
            return selective_scan(*args, axis=axis, backend=backend)[0]

    sharded = jax.shard_map(
        functools.partial(run, axis="seq"),
        mesh=layout_of((1, 2, 1)).mesh,
        in_specs=specs,
        out_specs=P(None, "seq"),
    )

    def everything(function):
        by = tuple(range(len(arrays)))
        return jax.jit(jax.grad(lambda *x: jnp.sum(jnp.sin(function(*x))), by))(*arrays)

    for one, other in zip(
        everything(sharded), everything(functools.partial(run, backend="cpu")), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * float(np.max(np.abs(other))))


LAYERS = (LinearMemory(heads=2), Mamba2(head=8, state=4), FusedDelta(heads=2), Mamba(), MHS(head=4))


@pytest.mark.parametrize("layer", LAYERS, ids=[type(layer).__name__ for layer in LAYERS])
def test_layers_ask_for_the_devices_of_their_mesh(layer):
    layer = dataclasses.replace(layer, width=16)
    params = abstract_params(layer.table())
    x = jax.ShapeDtypeStruct((2, 1024, 16), jnp.float32)

    def found(backend):
        def total(params, x):
            return jnp.sum(layer(params, x, None, Axes(backend=backend))[0])

        return longest_chain(jax.make_jaxpr(jax.grad(total))(params, x).jaxpr)

    assert found("tpu") < found("cpu")
