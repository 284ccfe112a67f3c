"""Products by group are those of a loop over rows, and cost what their rows cost."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gam_jax.ops.group_blocks import block_rows, each_block
from gam_jax.ops.grouped import (
    CHOSEN,
    collect,
    grouped_feed_forward,
    grouped_product,
    make_groups,
    ranks,
    spread,
)
from gam_jax.planning.targets import topology
from sharding.errors import UserError
from sharding.mesh import make_mesh
from sharding.products import product_flops
from tests.arrays import put
from tests.sharding.test_topology import there

METHODS = ("ragged", "blocks")
TOKENS, CHOICES, GROUPS, WIDTH, HIDDEN = 12, 2, 5, 6, 7
SPECS = P("data"), P(), P(), P(), P("data"), P("data")


def problem(seed, tokens=TOKENS, chosen=CHOICES, groups=GROUPS, width=WIDTH, hidden=HIDDEN):
    """Inputs, weights in and out, biases, owners (some are of no group) and mixing weights."""
    random = np.random.default_rng(seed)
    shapes = (tokens, width), (groups, width, hidden), (groups, width, hidden), (groups, hidden)
    x, w_in, w_out, bias = (random.normal(size=shape) for shape in shapes)
    owner = random.integers(0, random.integers(1, groups + 2), (tokens, chosen))
    return x, w_in, w_out, bias, owner, random.normal(size=(tokens, chosen))


@functools.partial(jax.jit, static_argnames=("method", "backend"))
def mixed(x, w_in, w_out, bias, weights, owner, method="auto", backend=None):
    """sum_k weights_k tanh(x W_in + b) W_out^T, each of the group that owns the choice."""
    groups = make_groups(owner.reshape(-1), len(w_in), method=method, backend=backend)
    place = groups.place.reshape(owner.shape)
    rows = spread(x, groups.source, place)
    rows = grouped_feed_forward(groups, rows, [w_in], [bias], w_out, jnp.tanh)
    return collect(rows, weights, groups.source, place)


def every_group(x, w_in, w_out, bias, weights, owner):
    """The same, of all groups for every token, most of them weighted with 0."""
    hidden = jnp.tanh(jnp.einsum("nd,gdf->ngf", x, w_in) + bias)
    share = jnp.einsum("nk,nkg->ng", weights, jax.nn.one_hot(owner, len(w_in)))
    return jnp.einsum("ngf,gdf,ng->nd", hidden, w_out, share)


@given(seed=st.integers(0, 99))
def test_both_methods_equal_a_loop_over_choices(seed):
    x, w_in, w_out, bias, owner, weights = problem(seed)
    want = np.zeros_like(x)
    for token, k in np.ndindex(*owner.shape):
        if (group := owner[token, k]) < GROUPS:
            hidden = np.tanh(x[token] @ w_in[group] + bias[group])
            want[token] += weights[token, k] * (w_out[group] @ hidden)
    args = [put(a, jnp.float32) for a in (x, w_in, w_out, bias, weights)]
    for method in METHODS:
        found = mixed(*args, put(owner), method=method)
        np.testing.assert_allclose(found, want, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_weights_that_lie_by_themselves_give_the_same(method):
    x, w_in, w_out, bias, owner, weights = problem(4, 90)
    x, w_in, w_out, bias, weights = (put(a, jnp.float32) for a in (x, w_in, w_out, bias, weights))
    apart = tuple(w_in), tuple(w_out)
    found = mixed(x, *apart, bias, weights, put(owner), method=method)
    want = mixed(x, w_in, w_out, bias, weights, put(owner), method=method)
    np.testing.assert_allclose(found, want, atol=1e-6)


def test_of_weights_that_lie_by_themselves_none_is_copied():
    x, w_in, w_out, bias, owner, weights = (
        put(a, a.dtype.kind.replace("f", "f4")) for a in problem(4, 8, width=64, hidden=512)
    )

    def aside(*pair):
        lowered = mixed.lower(x, *pair, bias, weights, owner, method="blocks")
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert aside(tuple(w_in), tuple(w_out)) < w_in[0].nbytes < aside(w_in, w_out)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tokens", [TOKENS, 260], ids=["small blocks", "two sizes of blocks"])
def test_gradients_are_those_of_the_loop(method, tokens):
    x, w_in, w_out, bias, owner, weights = problem(3, tokens)
    args = [put(a, jnp.float32) for a in (x, w_in, w_out, bias, weights)]

    def of(function):
        loss = lambda *args: jnp.sum(jnp.sin(function(*args)))  # noqa: E731
        return jax.jit(jax.value_and_grad(loss, argnums=tuple(range(5))))(*args)

    found = of(lambda *args: mixed(*args, put(owner), method=method))
    want = of(lambda *args: every_group(*args, put(owner)))
    chex.assert_trees_all_close(found, want, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_of_one_product_too(method):
    x, w_in, _, bias, owner, _ = (put(a, "float32") for a in problem(1, 90, chosen=1))
    owner = put(np.asarray(owner)[:, 0], jnp.int32)

    def product(x, weight, bias):
        groups = make_groups(owner, GROUPS, method=method)
        rows = grouped_product(
            groups, spread(x, groups.source, groups.place[:, None]), weight, bias
        )
        return jnp.take(rows, groups.place, axis=0, mode="fill", fill_value=0)

    def plain(x, weight, bias):
        found = jnp.einsum("nd,gdf->ngf", x, weight) + bias
        return jnp.einsum("ngf,ng->nf", found, jax.nn.one_hot(owner, GROUPS))

    def of(function):
        loss = lambda *args: jnp.sum(jnp.sin(function(*args)))  # noqa: E731
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(x, w_in, bias)

    chex.assert_trees_all_close(of(product), of(plain), atol=2e-5, rtol=2e-5)


def test_blocks_cost_what_their_rows_cost_and_ragged_products_on_cpu_as_many_times_as_groups():
    """Forward and backward: six products of choices x width x hidden."""
    sizes = {"tokens": 512, "chosen": 2, "groups": 8, "width": 16, "hidden": 32}
    x, w_in, w_out, bias, owner, weights = problem(0, **sizes)
    args = [put(a, jnp.float32) for a in (x, w_in, w_out, bias, weights)]

    def step(method):
        def loss(*args):
            return jnp.sum(jnp.sin(mixed(*args, put(owner), method=method)))

        return jax.grad(loss, argnums=(0, 1, 2))

    true = 6 * 2 * owner.size * 16 * 32
    blocks = jax.make_jaxpr(step("blocks"))(*args).jaxpr
    assert true <= product_flops(blocks).total() < 1.5 * true
    compiled = jax.jit(step("ragged")).lower(*args).compile()
    assert compiled.cost_analysis()["flops"] > 7 * true


@jax.jit
def ordered(owner):
    return make_groups(owner, 4, method="blocks"), ranks(owner, 4)


@given(owner=st.lists(st.integers(0, 4), min_size=24, max_size=24))
def test_entries_stand_in_the_order_of_their_groups(owner):
    groups, (sizes, rank) = jax.tree.map(np.asarray, ordered(put(owner)))
    stood = [entry for entry in groups.source.tolist() if entry < len(owner)]
    assert stood == sorted((i for i, o in enumerate(owner) if o < 4), key=owner.__getitem__)
    assert groups.source[: len(stood)].tolist() == stood
    assert groups.sizes.tolist() == sizes.tolist() == [owner.count(group) for group in range(4)]
    for entry, own in enumerate(owner):
        if own < 4:
            assert stood[groups.place[entry]] == entry
            assert rank[entry] == owner[:entry].count(own)
        else:
            assert groups.place[entry] == len(groups.source)


@functools.partial(jax.jit, static_argnums=1)
def blocks_of(sizes, most):
    """The group of each row; start, rows left and rows of each block; and how many blocks."""

    def of_group(group):
        def block(start, left, rows, state):
            owner, at, count = state
            place = start + jnp.arange(rows)
            owner = owner.at[place].set(group, mode="drop")
            return owner, at.at[count].set(jnp.stack([start, left, rows])), count + 1

        return block

    state = jnp.full(300, -1), jnp.zeros((99, 3), jnp.int32), 0
    return each_block(most, sizes, of_group, state)


@given(
    sizes=st.lists(st.integers(0, 70), min_size=3, max_size=3),
    most=st.sampled_from([210, 840, 3360]),
)
def test_blocks_cover_each_group_in_order_and_reach_less_than_a_block_beyond(sizes, most):
    owner, at, count = jax.tree.map(np.asarray, blocks_of(put(sizes), most))
    least = block_rows(most, 3)[-1]
    total = sum(sizes)
    assert owner[:total].tolist() == np.repeat(np.arange(3), sizes).tolist()
    ends = np.repeat(np.cumsum(sizes), sizes)
    for start, left, rows in at[:count].tolist():
        assert left == ends[start] - start
        assert rows < left + least
    assert np.all(owner[total + least :] == -1)


def gradients_on(mesh, method, backend=None):
    """By tokens and weights, each device with tokens of its own and all weights."""

    def own(x, w_in, w_out, bias, weights, owner):
        def loss(*args):
            return jnp.sum(jnp.sin(mixed(*args, owner, method=method, backend=backend)))

        return jax.grad(loss, range(5))(x, w_in, w_out, bias, weights)

    return jax.jit(jax.shard_map(own, mesh=mesh, in_specs=SPECS, out_specs=SPECS[:5]))


def test_the_kernel_has_the_gradients_of_the_others_on_a_mesh():
    """Rows of some groups fill more than a tile of it, others share one."""
    mesh = make_mesh(data=2, devices=jax.devices()[:2])
    x, w_in, w_out, bias, owner, weights = problem(2, tokens=400)
    args = [put(a, jnp.float32) for a in (x, w_in, w_out, bias, weights)]
    found, want = (gradients_on(mesh, method)(*args, owner) for method in ("kernel", "ragged"))
    chex.assert_trees_all_close(found, want, atol=1e-4, rtol=2e-5)


@pytest.mark.parametrize(("backend", "method"), [*CHOSEN.items(), ("gpu", "ragged")])
def test_a_backend_has_its_method(backend, method):
    owner = np.zeros(3, np.int32)
    made = jax.eval_shape(lambda owner: make_groups(owner, 2, backend=backend), owner)
    assert made.method == method


@there
@pytest.mark.slow
def test_what_compilers_make_of_it():
    """A TPU's gradient by weights is dense by `ragged_dot`; on a GPU all of it is."""
    groups, tokens, width, hidden = 8, 1024, 256, 512
    sizes = {"tokens": 4 * tokens, "groups": groups, "width": width, "hidden": hidden}
    *floats, owner, weights = problem(0, **sizes)
    arrays, found = (*floats, weights, owner), {}
    for name, method in (("v5e:2x2", "ragged"), ("v5e:2x2", "kernel"), ("h100:1x4", "ragged")):
        machine = topology(name)
        mesh = make_mesh(data=4, devices=machine.devices)
        args = [
            jax.ShapeDtypeStruct(a.shape, dtype, sharding=NamedSharding(mesh, spec))
            for a, dtype, spec in zip(arrays, ["bfloat16"] * 5 + ["int32"], SPECS, strict=True)
        ]
        lowered = gradients_on(mesh, method, machine.backend).lower(*args)
        found[machine.backend, method] = lowered.compile()
    true = 6 * 2 * tokens * CHOICES * width * hidden

    def times(method):
        return found["tpu", method].cost_analysis()["flops"] / true

    assert 1 <= times("kernel") < 1.2 < 0.9 * groups / 3 < times("ragged")
    copies = groups * tokens * CHOICES * width * 2
    assert found["gpu", "ragged"].memory_analysis().temp_size_in_bytes > copies


def test_an_unknown_method_is_named():
    words = "method 'sparse' is not one of auto, blocks, ragged, kernel"
    with pytest.raises(ValueError, match=words):
        make_groups(np.zeros(3, np.int32), 2, method="sparse")


def test_a_gpu_has_no_such_kernel():
    with pytest.raises(UserError, match=r"method 'kernel' is for TPUs, not gpu"):
        make_groups(np.zeros(3, np.int32), 2, method="kernel", backend="gpu")
