"""What a mixture made of trained models is, before it is trained itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax.layers import GAM, MLP, Attention, Block, MoE, Residual, RMSNorm, SoftMixture
from gam_jax.models.language import LanguageModel
from gam_jax.ops.routing import Router
from gam_jax.params import count_params
from gam_jax.upcycle import RECIPES, SWITCH, mixture_of, upcycle
from sharding.errors import UserError
from tests import oracle
from tests.arrays import compiled, put
from tests.examples import WIDTH, apply, inputs, params_of, random_like

BLOCK = Block(
    Attention(heads=2, context=16),
    MLP(activation="swiglu", hidden=12, bias=False),
    RMSNorm(),
    form="parallel",
)
MODEL = LanguageModel(BLOCK, width=WIDTH, depth=2, vocab=16, norm=RMSNorm(), tied=False)
SOURCES = [random_like(MODEL.table(), seed) for seed in range(3)]
TOKENS = np.random.default_rng(0).integers(0, 16, (2, 7))
KEY = jax.random.key(3)


def logits(model, params):
    return compiled(model, params, TOKENS)[0]


def with_routers(params, scale):
    """Routers that are far from even."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: put(scale * np.asarray(x)) if path[-1].key == "router" else x, params
    )


@pytest.mark.parametrize(("recipe", "chosen"), [("bam", 1), ("bam_shared", 3), ("btx", 1)])
def test_equal_models_with_renormalised_weights_stay_what_they_are(recipe, chosen):
    """Whatever the routers say: weights of equal experts sum to one."""
    mixture, params = upcycle(MODEL, SOURCES[:1] * 3, recipe, KEY, chosen, Router())
    found = logits(mixture, with_routers(params, 30.0))
    np.testing.assert_allclose(found, logits(MODEL, SOURCES[0]), atol=2e-5)


def test_one_model_alone_stays_what_it_is():
    mixture, params = upcycle(MODEL, SOURCES[1:2], "bam", KEY)
    np.testing.assert_allclose(logits(mixture, params), logits(MODEL, SOURCES[1]), atol=2e-5)


def test_a_weight_that_is_not_renormalised_scales_the_feed_forward_and_teaches_the_router():
    """So BAM's mixture of equal models is not the model: its feed-forwards count p, about 1 / E."""
    dense = MLP(width=WIDTH, activation="swiglu", bias=False)
    own, x = params_of(dense), inputs(1, 4)
    experts = jax.tree.map(lambda w: put(np.stack([w] * 3)), own)
    params = {"router": params_of(MoE(width=WIDTH, experts=3))["router"], "experts": experts}
    moved = {}
    for router in (SWITCH, Router()):
        layer = MoE(width=WIDTH, experts=3, chosen=1, ffn=dense, router=router)
        y, _ = apply(layer, params, x)
        best = [max(oracle.softmax(row)) for row in np.asarray(x)[0] @ np.asarray(params["router"])]
        share = np.asarray(best)[:, None] if router is SWITCH else 1.0
        wanted = share * np.asarray(apply(dense, own, x)[0])
        np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)
        loss = jax.jit(jax.grad(lambda p, layer=layer: jnp.sum(layer(p, x)[0] ** 2)))
        moved[router.renormalise] = np.max(np.abs(loss(params)["router"]))
    assert moved[False] > 1e-2
    assert moved[True] < 1e-4


def test_experts_are_the_sources_and_all_else_is_their_mean():
    for recipe in RECIPES:
        mixture, params = upcycle(MODEL, SOURCES, recipe, KEY)
        params = jax.tree.map(np.asarray, params)
        jax.tree.map(
            lambda want, x: np.testing.assert_array_equal(want.shape, x.shape),
            jax.eval_shape(mixture.init_params, KEY),
            params,
        )
        blocks, old = params["blocks"], [jax.tree.map(np.asarray, one["blocks"]) for one in SOURCES]
        for i in range(3):
            np.testing.assert_array_equal(
                blocks["ffn"]["experts"]["w_gate"][:, i], old[i]["ffn"]["w_gate"]
            )
            if recipe != "btx":
                query = blocks["mixer"]["experts"]["query"][:, i]
                np.testing.assert_array_equal(query, old[i]["mixer"]["query"])
        means = {
            "embedding": (params["embedding"], [s["embedding"] for s in SOURCES]),
            "head": (params["head"], [s["head"] for s in SOURCES]),
            "norm": (blocks["norm"]["scale"], [s["norm"]["scale"] for s in old]),
        }
        if recipe == "bam_shared":
            means["key"] = blocks["mixer"]["shared"]["key"], [s["mixer"]["key"] for s in old]
        if recipe == "btx":
            means["out"] = blocks["mixer"]["out"], [s["mixer"]["out"] for s in old]
        for name, (found, parts) in means.items():
            np.testing.assert_allclose(found, np.mean(parts, axis=0), atol=1e-6, err_msg=name)


@pytest.mark.parametrize("inner", [Attention(heads=2, context=16), GAM(slots=8)])
def test_a_soft_mixture_is_the_weighted_sum_of_its_mixers(inner):
    layer = SoftMixture(inner, 3, width=WIDTH)
    params, x = params_of(layer), inputs(2, 5)
    y, _ = apply(layer, params, x)
    wide = np.asarray(x, np.float64), np.asarray(params["router"], np.float64)
    gates = np.apply_along_axis(oracle.softmax, -1, wide[0] @ wide[1])
    expected = np.zeros(x.shape)
    for i in range(3):
        own = jax.tree.map(lambda w, i=i: put(np.asarray(w)[i]), params["experts"])
        expected += gates[..., i, None] * np.asarray(apply(layer.inner, own, x)[0])
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_a_sure_router_gives_one_source_s_mixer_alone():
    layer = SoftMixture(GAM(slots=8), 3, width=WIDTH)
    params, x = dict(params_of(layer)), put(np.abs(inputs(1, 5)) + 0.1)
    params["router"] = put(np.tile([0.0, 500.0, 0.0], (WIDTH, 1)), np.float32)
    own = jax.tree.map(lambda w: put(np.asarray(w)[1]), params["experts"])
    y, alone = apply(layer, params, x)[0], apply(layer.inner, own, x)[0]
    np.testing.assert_allclose(y, alone, atol=1e-6)


def published(recipe):
    """The 590M models of the paper, appendix A; its feed-forward width counts gate and up."""
    dense = LanguageModel(
        Block(
            Attention(heads=8, context=2048),
            MLP(activation="swiglu", hidden=2048, bias=False),
            RMSNorm(),
            form="parallel",
        ),
        width=1024,
        depth=6,
        vocab=256_000,
        norm=RMSNorm(),
        tied=False,
    )
    return dense if recipe is None else mixture_of(dense, 4, recipe)


@pytest.mark.parametrize(
    ("recipe", "total", "active"),
    [
        (None, 587_209_728, 587_209_728),
        ("btx", 700_480_512, 587_234_304),
        ("bam", 776_002_560, 662_756_352),  # the paper prints 662,731,776: one router a block
        ("bam_shared", 738_253_824, 625_007_616),  # the paper leaves out shared keys, a router
    ],
)
def test_the_published_models_have_the_published_parameters(recipe, total, active):
    table = published(recipe).table()
    assert (count_params(table), count_params(table, chosen=1)) == (total, active)


def test_what_cannot_be_upcycled_is_refused_in_one_line():
    gam = dataclasses.replace(MODEL, block=Block(GAM(slots=8), MLP()))
    residual = dataclasses.replace(MODEL, block=Residual(GAM(slots=8)))
    mixture, _ = upcycle(MODEL, SOURCES, "bam", KEY)
    for model, recipe, message in (
        (MODEL, "bma", "did you mean 'bam'"),
        (gam, "bam_shared", "a GAM has no keys and values"),
        (residual, "bam", "a model of blocks"),
        (mixture, "bam", "an MLP in each block, not a MoE"),
    ):
        with pytest.raises(UserError, match=message):
            mixture_of(model, 2, recipe)
    short = jax.tree.map(lambda x: np.asarray(x)[:1], SOURCES[1])
    with pytest.raises(UserError, match=r"source 1: .* where the model has"):
        upcycle(MODEL, [SOURCES[0], short], "bam", KEY)
    with pytest.raises(UserError, match="at least one model"):
        upcycle(MODEL, [], "bam", KEY)
