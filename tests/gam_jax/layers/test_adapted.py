"""Low-rank adapters: the equation, an exact start, what is kept, what is refused."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax.adapters import adapted, is_adapted, merged, plain
from gam_jax.layers import (
    GAM,
    MLP,
    Adapted,
    Attention,
    Block,
    Mamba,
    Mamba2,
    MoE,
    Pattern,
    RMSNorm,
    Series,
    Stack,
)
from gam_jax.layers.adapted import ADAPTERS, adapt, matrices
from gam_jax.models.base import Model
from gam_jax.models.language import LanguageModel
from gam_jax.params import abstract_params, init_params
from gam_jax.training.step import make_gradients
from sharding.errors import UserError
from sharding.messages import inner_jaxprs
from tests.arrays import put
from tests.examples import WIDTH, apply, inputs, random_like
from tests.meshes import layout_of

BLOCK = Block(
    Attention(heads=4, kv_heads=2, head_size=3, rotary=0.0, context=16),
    MLP(activation="swiglu", hidden=12),
    RMSNorm(),
    width=WIDTH,
)
LAYER = Adapted(BLOCK, rank=3, alpha=1.5)
PRODUCTS = {
    "mixer/query": "ir,rhk->ihk",
    "mixer/key": "ir,rhk->ihk",
    "mixer/value": "ir,rhk->ihk",
    "mixer/out": "hkr,rd->hkd",
    "ffn/w_in": "ir,rf->if",
    "ffn/w_gate": "ir,rf->if",
    "ffn/w_out": "fr,rd->df",
}
"""a and b of each matrix of the block, and how they give what is added to it as it is stored."""


@jax.jit
def begun(key):
    return init_params(LAYER.table(), key)


def bits(x):
    return np.asarray(x, np.float32).view(np.int32)


def without(params):
    return {name: x for name, x in params.items() if name != ADAPTERS}


def test_it_is_the_inner_layer_on_w_and_a_b():
    params = random_like(LAYER.table())
    assert {*matrices(BLOCK.table())} == {*PRODUCTS}
    changed = {name: dict(part) for name, part in without(params).items()}
    for name, product in PRODUCTS.items():
        part, matrix = name.split("/")
        own = {k: np.asarray(x, np.float64) for k, x in params[ADAPTERS][part][matrix].items()}
        added = 0.5 * np.einsum(product, own["a"], own["b"])  # 1.5 / 3
        changed[part][matrix] = put(np.asarray(params[part][matrix]) + added, jnp.float32)
    wanted, _ = apply(BLOCK, changed, inputs(2, 8))
    found, _ = apply(LAYER, params, inputs(2, 8))
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


def test_each_expert_has_its_own_and_inputs_are_inputs():
    table = Adapted(MoE(width=WIDTH, experts=4, ffn=MLP(hidden=6)), rank=2).table()[ADAPTERS]
    shapes = jax.tree.map(lambda leaf: leaf.shape, abstract_params(table))
    assert shapes["router"] == {"a": (WIDTH, 2), "b": (2, 4)}
    assert shapes["experts"]["w_in"] == {"a": (4, WIDTH, 2), "b": (4, 2, 6)}
    assert shapes["experts"]["w_out"] == {"a": (4, 6, 2), "b": (4, 2, WIDTH)}
    assert table["experts"]["w_out"]["a"].axes == ("expert", "ffn", None)


def test_what_is_no_matrix_is_left():
    found = {*matrices(Series(Mamba2(width=WIDTH, head=2), Mamba(width=WIDTH)).table())}
    assert found == {f"first/{name}" for name in ("w_zx", "w_bc", "w_dt", "w_out")} | {
        f"then/{name}" for name in ("w_in", "w_x", "w_dt", "w_out")
    }


@pytest.mark.parametrize("rooted", [False, True])
def test_the_scale_is_alpha_over_the_rank_or_its_root(rooted):
    scale = dataclasses.replace(LAYER, rooted=rooted).scale
    assert scale == pytest.approx(1.5 / (math.sqrt(3) if rooted else 3))


def test_a_begins_as_peft_s_and_b_as_zeros():
    params = begun(jax.random.key(0))[ADAPTERS]
    a = np.asarray(params["ffn"]["w_out"]["a"])
    assert 0.9 / math.sqrt(12) < np.abs(a).max() <= 1 / math.sqrt(12)  # its inputs are 12
    assert all(not np.any(x["b"]) for part in params.values() for x in part.values())


def test_it_begins_as_the_inner_layer_to_the_last_bit():
    params = begun(jax.random.key(0))
    found, _ = apply(LAYER, params, inputs(2, 8))
    wanted, _ = apply(BLOCK, without(params), inputs(2, 8))
    np.testing.assert_array_equal(bits(found), bits(wanted))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_negative_zero_stays_one_and_its_adapter_learns(sign):
    factor = LAYER.table()[ADAPTERS]["ffn"]["w_in"]["a"]
    w = np.full((WIDTH, 12), -0.0, np.float32)
    a, b = np.full((WIDTH, 3), sign, np.float32), np.zeros((3, 12), np.float32)

    @jax.jit
    @functools.partial(jax.grad, argnums=2, has_aux=True)
    def slope(w, a, b):
        found = adapt(factor, w, a, b)
        return found.sum(), found

    gradient, found = slope(w, a, b)
    np.testing.assert_array_equal(bits(found), bits(w))
    np.testing.assert_allclose(gradient, sign * 0.5 * WIDTH)


def test_merged_is_unmerged():
    own = LanguageModel(Block(GAM(slots=8), MoE(experts=2, ffn=MLP(expansion=1))), 8, 2, 16)
    model = adapted(own, "*", rank=2, alpha=1.0, rooted=True)
    params = random_like(model.table())
    bare, whole = merged(model, params)
    assert not is_adapted(bare)
    assert bare == plain(model) == own
    tokens = np.arange(12).reshape(2, 6)
    found, wanted = (jax.jit(m)(p, tokens)[0] for m, p in ((bare, whole), (model, params)))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert merged(bare, whole) == (bare, whole)


def test_blocks_of_stacks_in_turn_have_their_own():
    series = Series(Stack(Block(GAM(slots=8)), 2), Stack(Block(Attention(heads=2)), 1))
    model = adapted(LanguageModel(series, 8, 1, 16), "mixer/gate,ffn/w_*,mixer/key")
    table = model.table()["blocks"]
    assert {*table["first"][ADAPTERS]["mixer"]} == {"gate"}
    assert {*table["then"][ADAPTERS]["mixer"]} == {"key"}
    assert table["first"][ADAPTERS]["ffn"]["w_in"]["a"].shape == (1, 2, 8, 8)


def test_unlike_blocks_of_a_pattern_have_their_own_and_lose_them_when_merged():
    pattern = Pattern((Block(GAM(slots=8)), Block(Attention(heads=2))), (0, 1, 0, 1, 0), width=8)
    plain_model = LanguageModel(pattern, 8, 1, 16)
    model = adapted(plain_model, "mixer/gate,mixer/key", rank=2)
    params = random_like(model.table())
    table = model.table()["blocks"]
    assert {*table["0"]["0"][ADAPTERS]["mixer"]} == {*table["1"][ADAPTERS]["mixer"]} == {"gate"}
    assert table["0"]["1"][ADAPTERS]["mixer"]["key"]["a"].shape == (1, 2, 8, 2)
    bare, whole = merged(model, params)
    assert bare == plain_model
    tokens = np.random.default_rng(0).integers(0, 16, (2, 5))
    found, wanted = (jax.jit(m)(p, tokens)[0] for m, p in ((bare, whole), (model, params)))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_no_layer_s_sum_is_kept_where_parameters_are_in_shards():
    """It would be as large as the model, whole on each device."""
    model = LanguageModel(Adapted(BLOCK, rank=1, on="ffn/w_in"), WIDTH, 3, 16)
    layout = layout_of((2, 1, 1), "fully_sharded")
    batch = {name: jax.ShapeDtypeStruct((4, 8), jnp.int32) for name in ("inputs", "targets")}
    batch["weights"] = jax.ShapeDtypeStruct((4, 8), jnp.float32)
    args = abstract_params(model.table()), batch, jax.random.key(0)
    shapes = stacked(jax.make_jaxpr(make_gradients(model, layout))(*args).jaxpr)
    assert (3, WIDTH // 2, 12) in shapes or (3, WIDTH, 6) in shapes  # the shards
    assert (3, WIDTH, 12) not in shapes


def stacked(jaxpr):
    """Shapes of what the scans of a program read and write, a layer at a time."""
    found = set()
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "scan":
            found |= {v.aval.shape for v in (*eqn.invars, *eqn.outvars) if hasattr(v, "aval")}
        found = found.union(*map(stacked, inner_jaxprs(eqn)))
    return found


@pytest.mark.parametrize(
    ("on", "message"),
    [
        ("mixer/quary", r"'mixer/quary' matches no matrix; the nearest are mixer/query"),
        ("mixer/*,ffn/b_in", r"'ffn/b_in' matches no matrix; the nearest are ffn/w_in"),
        ("", r"'' matches no matrix"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(on, message):
    with pytest.raises(UserError, match=message):
        Adapted(BLOCK, on=on).table()
    with pytest.raises(UserError, match=message):
        adapted(LanguageModel(BLOCK, WIDTH, 1, 16), on)


def test_adapters_of_adapters_and_of_what_has_no_blocks_are_refused():
    model = adapted(LanguageModel(BLOCK, WIDTH, 1, 16), "*")
    with pytest.raises(UserError, match="has adapters already"):
        adapted(model, "*")
    with pytest.raises(ValueError, match="adapted already"):
        Adapted(LAYER)
    with pytest.raises(ValueError, match="rank"):
        Adapted(BLOCK, rank=0)
    with pytest.raises(UserError, match="a Model has none"):
        adapted(Model(), "*")
