"""Laws of units, over every layer that tells of any: keep, copy and weigh, or a reason why not."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax import units
from gam_jax.layers import GAM, LAYERS, MLP, RMSNorm
from gam_jax.params import Param, rule_specs, shardings
from sharding.errors import UserError
from tests.examples import EXAMPLES, inputs, params_of
from tests.float64 import double, of_double
from tests.meshes import layout_of

KINDS = {
    f"{name}: {kind}": (layer, kind)
    for name, layer in EXAMPLES.items()
    for kind in layer.unit_table()
}
"""Every kind of unit of every example."""
TELLING = {type(layer).__name__ for layer, _ in KINDS.values()}
QUICK = (
    "GAM kernel 5: slots",
    "MLP swiglu: hidden",
    "MLP: width",
    "Mamba2: heads",
    "MoE of all kinds: experts",
    "Attention grouped: queries",
    "Attention sinks: groups",
    "Stack: block.ffn.hidden",
)
every_kind = pytest.mark.parametrize(
    "case", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in KINDS]
)


def started(layer, rows):
    """The carry of a sequence's start in float64; caches are not there yet."""
    if not layer.causal:
        return None

    def one(param):
        kind = np.float64 if param.dtype == "float32" else param.dtype
        return None if param.cache else np.zeros(param.shape, kind)

    return jax.tree.map(one, layer.carry_table(rows), is_leaf=lambda x: isinstance(x, Param))


@functools.partial(jax.jit, static_argnums=0)
def slopes(layer, params, x, carry, weights):
    """Gradients of sum(y * weights) by the parameters, and y."""

    def total(params):
        y = layer(params, x, carry)[0]
        return jnp.sum(y * weights), y

    return jax.grad(total, has_aux=True)(params)


def run(layer, params, x, weights):
    return jax.tree.map(np.asarray, slopes(layer, params, x, started(layer, x.shape[0]), weights))


def edited(edit, *trees):
    """What an edit of parameters gives, as one program: its operations would else be one each."""
    return jax.tree.map(np.asarray, jax.jit(edit)(*trees))


def shape_of(layer):
    return jax.tree.map(lambda p: p.shape, layer.table(), is_leaf=lambda x: isinstance(x, Param))


def assert_close(found, wanted, rtol=1e-12):
    flat, _ = jax.tree_util.tree_flatten_with_path(found)
    for (path, one), other in zip(flat, jax.tree.leaves(wanted), strict=True):
        size = max(np.max(np.abs(other), initial=0.0), 1.0)
        np.testing.assert_allclose(one, other, atol=rtol * size, rtol=0, err_msg=str(path))


def drawn_copies(unit, size, seed=0):
    """A map of copies that the unit allows: all twice, or some more often than others."""
    random, groups = np.random.default_rng(seed), unit.within
    own, each = size // groups, 2
    if unit.equal:
        return units.copies(size, 2 * size, groups)
    more = [np.concatenate([np.arange(own), random.integers(0, own, each)]) for _ in range(groups)]
    return np.concatenate([group * own + index for group, index in enumerate(more)])


def test_every_layer_tells_of_its_units_or_is_listed_here():
    """A new layer is either declared, or no growth of it is promised."""
    without = {
        *("Adapted", "Bidirectional", "Chunked", "Elman", "FalconH1", "FusedDelta", "GRU"),
        *("LSTM", "LatentAttention", "MHS", "Mamba", "MinimalRNN", "Mixed", "MoFME", "Nested"),
        *("NoOp", "ParScale", "ProductMemory", "Shallow", "TCN", "TCNCA", "WrittenGAM"),
    }
    assert TELLING | without | {"Residual"} >= set(LAYERS)  # as in a Pattern, with what it holds
    assert not TELLING & without
    assert set(QUICK) <= set(KINDS)


@every_kind
def test_copies_keep_the_function_and_moments_follow_the_gradients(case, monkeypatch):
    layer, kind = KINDS[case]
    unit = layer.unit_table()[kind]
    size = units.count(layer.table(), unit)
    index = drawn_copies(unit, size)
    params = of_double(params_of(layer))
    if why := unit.fixed or unit.first:
        with pytest.raises(UserError, match="cannot be copied, since") as error:
            units.copy(params, unit, index)
        assert why in str(error.value)
        return
    if unit.equal:
        with pytest.raises(UserError, match="choose a multiple of"):
            units.copy(params, unit, units.copies(size, size + unit.within, unit.within))
    larger = units.resized(layer, kind, len(index))
    x, weights = (of_double(np.asarray(inputs(2, 4, seed))) for seed in (0, 1))
    wide = index if kind == units.WIDTH else slice(None)
    share = len(index) // size if kind == units.WIDTH else 1
    with double(monkeypatch):
        copied = edited(lambda params: units.copy(params, unit, index), params)
        assert jax.tree.map(np.shape, copied) == shape_of(larger)
        gradients, y = run(layer, params, x, weights)
        after, found = run(larger, copied, x[..., wide], weights[..., wide] / share)
        assert_close(found, y[..., wide])
        squares = jax.tree.map(np.square, gradients)
        followed = edited(
            lambda *moments: [
                units.copy_moments(tree, unit, index, power)
                for power, tree in enumerate(moments, 1)
            ],
            *(gradients, squares),
        )
        signs = "balance_bias"  # what stands for its gradient is a count
        drop = lambda tree: {n: x for n, x in tree.items() if n != signs}  # noqa: E731
        assert_close(drop(followed[0]), drop(after), 1e-11)
        assert_close(drop(followed[1]), drop(jax.tree.map(np.square, after)), 1e-11)


@every_kind
def test_kept_units_are_the_layer_of_that_size_and_what_weights_of_0_and_1_leave(case, monkeypatch):
    layer, kind = KINDS[case]
    unit = layer.unit_table()[kind]
    size = units.count(layer.table(), unit)
    params = of_double(params_of(layer))
    with double(monkeypatch):
        same = edited(lambda params: units.keep(params, unit, np.arange(size)), params)
    jax.tree.map(np.testing.assert_array_equal, same, params)
    if kind == units.WIDTH or size // unit.within < 2:
        return
    fewer = size - unit.within * (1 if size // unit.within < 4 else size // unit.within // 2)
    smaller = units.resized(layer, kind, fewer)
    first = units.firsts(size, fewer, unit.within)
    with double(monkeypatch):
        kept = edited(lambda params: units.keep(params, unit, first), params)
    assert jax.tree.map(np.shape, kept) == shape_of(smaller)
    zero_or_one = np.isin(np.arange(size), first).astype(float)
    if unit.unweighed:
        with pytest.raises(UserError, match="cannot be weighed, since"):
            units.weigh(params, unit, zero_or_one)
        return
    x, weights = (of_double(np.asarray(inputs(2, 4, seed))) for seed in (0, 1))
    with double(monkeypatch):
        weighed = edited(lambda params: units.weigh(params, unit, zero_or_one), params)
        _, wanted = run(layer, weighed, x, weights)
        _, found = run(smaller, kept, x, weights)
        assert_close(found, wanted)


def test_weights_of_sizes_are_the_sum_of_padded_slices():
    """u v^T on a matrix that takes hidden units and makes channels (TangleNAS)."""
    random = np.random.default_rng(0)
    table = {"w_out": random.normal(size=(6, 8))}
    rows, columns = (
        units.Unit((), (units.Part("w_out", 0),)),
        units.Unit((), (units.Part("w_out", 1),)),
    )
    u, v, heights, widths = (0.2, 0.5, 0.3), (0.6, 0.4), (2, 4, 6), (4, 8)
    padded = np.zeros((6, 8))
    for height, a in zip(heights, u, strict=True):
        for width, b in zip(widths, v, strict=True):
            padded[:height, :width] += a * b * table["w_out"][:height, :width]

    def weighed(table):
        found = units.weigh(table, rows, units.of_sizes(heights, np.array(u), 6))
        return units.weigh(found, columns, units.of_sizes(widths, np.array(v), 8))

    with jax.enable_x64(True):
        found = edited(weighed, table)
    np.testing.assert_allclose(found["w_out"], padded, atol=1e-16)


def test_ten_edits_in_a_row_keep_the_function(monkeypatch):
    layer, params = MLP(width=8, hidden=4), None
    x, weights = (of_double(np.asarray(inputs(2, 4, seed))) for seed in (0, 1))
    params = of_double(params_of(layer))
    with double(monkeypatch):
        _, wanted = run(layer, params, x, weights)
        for seed in range(10):
            unit = layer.unit_table()["hidden"]
            index = drawn_copies(unit, layer.size, seed)
            params = edited(lambda params: units.copy(params, unit, index), params)  # noqa: B023
            layer = layer.with_units("hidden", len(index))
        _, found = run(layer, params, x, weights)
    assert layer.size == 24
    assert_close(found, wanted)


def test_without_a_slot_bias_unequal_copies_change_a_softmax(monkeypatch):
    """What the law above refuses does change the function; so do channels that norms see."""
    x, weights = (of_double(np.asarray(inputs(2, 4, seed))) for seed in (0, 1))
    for layer, kind in ((GAM(width=8, slots=4), "slots"), (RMSNorm(width=8), units.WIDTH)):
        unit = dataclasses.replace(layer.unit_table()[kind], equal="")
        size = units.count(layer.table(), unit)
        index = np.array([*range(size), 0])
        params = of_double(params_of(layer))
        larger = units.resized(layer, kind, size + 1)
        wide = index if kind == units.WIDTH else slice(None)
        with double(monkeypatch):
            _, y = run(layer, params, x, weights)
            copied = edited(lambda params: units.copy(params, unit, index), params)  # noqa: B023
            _, found = run(larger, copied, x[..., wide], weights[..., wide])
        assert np.max(np.abs(found - y[..., wide])) > 1e-3


def test_units_of_stacked_layers_may_be_kept_for_each_layer_by_itself():
    layer = EXAMPLES["Stack"]
    unit = layer.unit_table()["block.ffn.hidden"]
    params = jax.tree.map(np.asarray, params_of(layer))
    sizes = edited(lambda params: units.scale(params, unit), params)
    assert sizes.shape == (3, 32)
    own = params["ffn"]
    for i in range(3):
        made = np.square(own["w_in"][i]).sum(0) + np.square(own["b_in"][i])
        taken = np.square(own["w_out"][i]).sum(0)
        np.testing.assert_allclose(sizes[i], np.sqrt(made * taken), rtol=1e-5)
    best = np.sort(np.argsort(-sizes, axis=1)[:, :5], axis=1)
    kept = edited(lambda params: units.keep(params, unit, best), params)["ffn"]
    for i in range(3):
        np.testing.assert_array_equal(kept["w_in"][i], own["w_in"][i][:, best[i]])
        np.testing.assert_array_equal(kept["w_out"][i], own["w_out"][i][:, best[i]])
    signs = jax.tree.map(np.sign, params)
    told = edited(lambda params, signs: units.contribution(params, signs, unit), params, signs)
    np.testing.assert_allclose(told, np.abs(own["w_out"]).sum(1), rtol=1e-5)


def test_shards_are_copied_as_the_whole_is():
    layer, layout = MLP(width=8), layout_of((2, 1, 4), "data+tensor")
    unit = layer.unit_table()["hidden"]
    params, index = params_of(layer), np.r_[np.arange(32), np.arange(16)]
    placed = jax.device_put(params, shardings(rule_specs(layer.table(), layout), layout))
    larger = layer.with_units("hidden", 48)
    specs = shardings(rule_specs(larger.table(), layout), layout)
    copied = jax.jit(lambda p: units.copy(p, unit, index), out_shardings=specs)(placed)
    whole = edited(lambda params: units.copy(params, unit, index), params)
    jax.tree.map(np.testing.assert_array_equal, copied, whole)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([0, 0, 2, 3], "unit 1 has no copy"),
        ([0, 1, 2, 3, 0], "copies must stay in their group"),
        ([0, 2, 1, 3], "copies must stay in their group"),
        ([0, 1, 0, 2, 3, 3], None),
    ],
)
def test_groups_stay_equal(index, message):
    unit = units.Unit((units.Part("w", 0),), within=2)
    if message is None:
        units.check_copies(unit, np.array(index), 4)
        return
    with pytest.raises(UserError, match=message):
        units.check_copies(unit, np.array(index), 4)


def test_fewer_units_are_no_copies():
    with pytest.raises(UserError, match="4 units cannot become 3 by copies"):
        units.copies(4, 3)
    with pytest.raises(UserError, match="6 units are not 4 equal groups"):
        units.copies(4, 6, 4)
