"""A mixture of experts is the weighted sum of its experts' feed-forwards, and says what it did."""

from __future__ import annotations

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax.layers import MLP, Block, Chunked, LinearMemory, MoE
from gam_jax.layers.base import WHOLE, statistics
from gam_jax.models.language import LanguageModel
from gam_jax.ops.routing import Capacity, Router, choose, max_violation
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.params import count_params, without_counted
from gam_jax.training.state import init_state
from gam_jax.training.step import make_train_step
from tests.arrays import put
from tests.examples import apply, inputs, params_of, random_like
from tests.meshes import layout_of
from tests.oracle import sigmoid, softmax

GATED = MLP(activation="swiglu", bias=False, hidden=12)
PLAIN = MoE(experts=4, chosen=2, ffn=GATED, width=8)


def naive(layer, params, x):
    """Token by token, expert by expert, in float64; positions counted one by one."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    out = np.zeros(x.shape)
    for row, tokens in enumerate(np.asarray(x, np.float64)):
        taken = {}
        for t, token in enumerate(tokens):
            if layer.capacity.factor and t % layer.capacity.tokens == 0:
                taken = {}
            probabilities = softmax(token @ p["router"])
            chosen = np.argsort(-probabilities)[: layer.chosen]
            weights = probabilities[chosen]
            weights = weights / weights.sum() if layer.router.renormalise else weights
            for expert, weight in zip(chosen, weights, strict=True):
                place = taken[expert] = taken.get(expert, -1) + 1
                if layer.capacity.factor and place >= layer.capacity.room(layer.chosen, 4):
                    continue
                own = {name: w[expert] for name, w in p["experts"].items()}
                gate = token @ own["w_gate"]
                out[row, t] += weight * (
                    own["w_out"] @ (gate * sigmoid(gate) * (token @ own["w_in"]))
                )
    return out


CASES = {
    "dropless": PLAIN,
    "switch": dataclasses.replace(PLAIN, chosen=1, router=Router(renormalise=False)),
    "capacity": dataclasses.replace(PLAIN, capacity=Capacity(1.0, tokens=5)),
    "ragged": dataclasses.replace(PLAIN, method="ragged"),
}


@pytest.mark.parametrize("layer", CASES.values(), ids=CASES)
def test_it_is_a_naive_loop_over_tokens_and_experts(layer):
    params, x = params_of(layer), inputs(2, 13)
    found, _ = apply(layer, params, x)
    np.testing.assert_allclose(found, naive(layer, params, x), atol=2e-5, rtol=2e-5)


def test_one_expert_is_the_dense_feed_forward():
    layer = MoE(experts=1, chosen=1, ffn=MLP(), width=8)
    params, x = params_of(layer), inputs(2, 5)
    dense = jax.tree.map(lambda leaf: np.asarray(leaf)[0], params["experts"])
    want, _ = apply(layer.ffn, dense, x)
    np.testing.assert_allclose(apply(layer, params, x)[0], want, atol=1e-6)
    shared = dataclasses.replace(layer, shared=1)
    params = {**params, "shared": dense}
    np.testing.assert_allclose(apply(shared, params, x)[0], 2 * np.asarray(want), atol=1e-6)


def test_all_experts_chosen_is_the_dense_weighted_sum():
    layer = dataclasses.replace(PLAIN, chosen=4)
    params, x = params_of(layer), inputs(2, 5)
    logits = np.asarray(x) @ np.asarray(params["router"])
    weights = [[softmax(token) for token in row] for row in logits]
    experts = jax.tree.map(np.asarray, params["experts"])
    parts = [
        apply(layer.ffn, jax.tree.map(lambda leaf: leaf[i], experts), x)[0]  # noqa: B023
        for i in range(4)
    ]
    want = np.einsum("bte,ebtd->btd", weights, np.stack(parts))
    np.testing.assert_allclose(apply(layer, params, x)[0], want, atol=1e-5)


def test_room_for_every_token_is_no_limit():
    roomy = dataclasses.replace(PLAIN, capacity=Capacity(2.0, tokens=13))  # K cf / E = 1
    params, x = params_of(PLAIN), inputs(2, 13)
    chex.assert_trees_all_equal(apply(roomy, params, x)[0], apply(PLAIN, params, x)[0])


def test_experts_may_be_renamed_with_their_columns_of_the_router():
    params, x = params_of(PLAIN), inputs(2, 5)
    order = [2, 0, 3, 1]
    renamed = {
        "router": np.asarray(params["router"])[:, order],
        "experts": jax.tree.map(lambda leaf: np.asarray(leaf)[order], params["experts"]),
    }
    np.testing.assert_allclose(apply(PLAIN, renamed, x)[0], apply(PLAIN, params, x)[0], atol=1e-6)


@functools.partial(jax.jit, static_argnums=0)
def routed(layer, params, logits):
    choice, kept, _ = layer._routed(params, logits, layer.carry(len(logits)), WHOLE)
    return choice, kept


@pytest.mark.parametrize("tokens", [0, 4, 13])
def test_kept_and_dropped_choices_are_all_of_them_and_none_exceeds_its_room(tokens):
    layer = dataclasses.replace(PLAIN, capacity=Capacity(0.6, tokens=tokens))
    logits = 2 * np.asarray(inputs(2, 13))[..., :4]
    choice, kept = routed(layer, {}, logits)  # what is kept leaves the layer as a count alone
    _, carry = apply(layer, params_of(layer), inputs(2, 13))
    assert np.sum(carry["routed"].counts) == 2 * 2 * 13
    assert 0 < np.sum(carry["routed"].dropped) < 2 * 2 * 13
    hot = np.asarray(choice.hot) * np.asarray(kept)[..., None]
    assert hot.sum() + (1 - np.asarray(kept)).sum() == 2 * 2 * 13
    if tokens:
        spans = [hot[:, s : s + tokens].sum(axis=(1, 2)).max() for s in range(0, 13, tokens)]
    else:
        spans = [hot.sum(axis=(0, 1, 2)).max()]
    assert max(spans) == layer.capacity.room(2, 4, 26)


@functools.partial(jax.jit, static_argnums=0)
def gradients(layer, params, x):
    return jax.grad(lambda p: jnp.sum(jnp.sin(layer(p, x)[0])))(params)


@pytest.mark.parametrize("router", [Router(renormalise=False), Router("sigmoid")])
def test_gradients_reach_the_router_and_every_chosen_expert(router):
    layer = dataclasses.replace(PLAIN, router=router)
    params, x = params_of(layer), inputs(2, 13)
    found = jax.tree.map(np.asarray, gradients(layer, params, x))
    assert np.all(np.abs(found["router"]).max(axis=0) > 0)
    counts = np.sum(apply(layer, params, x)[1]["routed"].counts, axis=0)
    for leaf in jax.tree.leaves(found["experts"]):
        assert np.array_equal(np.abs(leaf).max(axis=(1, 2)) > 0, counts > 0)


def test_one_renormalised_choice_gives_the_router_no_gradient():
    """The weight is then 1: why Switch does not renormalise."""
    layer = dataclasses.replace(PLAIN, chosen=1)
    params, x = params_of(layer), inputs(2, 13)
    found = gradients(layer, params, x)
    np.testing.assert_allclose(found["router"], 0, atol=1e-6)


def test_the_router_stays_float32_where_the_arithmetic_is_not():
    """Rounding it would choose other experts."""
    model = LanguageModel(
        Block(LinearMemory(heads=2), PLAIN), width=8, depth=1, vocab=8, dtype="bfloat16"
    )
    params = random_like(model.table())
    seen = {}

    class Spy(MoE):
        def _logits(self, params, x, axes, key):
            seen["router"] = params["router"].dtype
            seen["experts"] = params["experts"]["w_in"].dtype
            logits = super()._logits(params, x, axes, key)
            seen["logits"] = logits.dtype
            return logits

    spy = Spy(**{f.name: getattr(model.block.ffn, f.name) for f in dataclasses.fields(MoE)})
    block = dataclasses.replace(model.block, ffn=spy)
    spied, tokens = dataclasses.replace(model, block=block), np.zeros((1, 4), np.int32)
    jax.eval_shape(spied.loss, params, tokens, tokens)
    assert seen == {"router": jnp.float32, "experts": jnp.bfloat16, "logits": jnp.float32}


@jax.jit
def reported(counts):
    return counts.report(WHOLE)


def test_the_penalty_is_the_formula_on_counts_of_the_whole_batch():
    x = inputs(3, 13)
    params = params_of(PLAIN)
    logits = np.asarray(x, np.float64) @ np.asarray(params["router"], np.float64)
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    hot = np.zeros_like(p)
    np.put_along_axis(hot, np.argsort(-p, axis=-1)[..., :2], 1, axis=-1)
    square = np.mean(np.log(np.exp(logits).sum(axis=-1)) ** 2)
    shares = [a.sum(axis=(0, 1)) / a.sum() for a in (hot, p)]
    each = [a.sum(axis=1) / a.sum(axis=(1, 2))[:, None] for a in (hot, p)]
    wants = {
        "batch": 4 * np.sum(shares[0] * shares[1]),
        "sequence": np.mean(4 * np.sum(each[0] * each[1], axis=1)),
    }
    for over, balance in wants.items():
        layer = dataclasses.replace(PLAIN, router=Router(balance=0.5, balance_over=over, z=0.25))
        _, carry = apply(layer, params, x)
        found, _ = reported(carry["routed"])
        np.testing.assert_allclose(found, 0.5 * balance + 0.25 * square, rtol=1e-5)


def test_pooled_over_layers_counts_are_added_before_the_product():
    layer = dataclasses.replace(PLAIN, router=Router(balance=1.0, balance_over="layers", z=0.0))
    _, carry = apply(layer, params_of(layer), inputs(2, 5))
    _, other = apply(layer, params_of(layer, 1), inputs(2, 5))
    both = jax.tree.map(lambda *leaves: np.stack(leaves), carry["routed"], other["routed"])
    counts, mass = (x.sum(axis=(0, 1)) / x.sum() for x in (both.counts, both.mass))
    np.testing.assert_allclose(reported(both)[0], 4 * np.sum(counts * mass), rtol=1e-5)


MODEL = LanguageModel(
    Block(
        LinearMemory(heads=2),
        dataclasses.replace(PLAIN, router=Router(balance=0.0, z=0.0, bias_step=0.5)),
    ),
    width=8,
    depth=2,
    vocab=16,
)


def test_the_balance_bias_steps_against_the_sign_of_load_above_the_mean():
    """Whatever the optimizer, decay and clipping; parts of a batch count together."""
    config = OptimizerConfig(warmup=1, kind="muon", decay_all=True)
    optimizer = make_optimizer(config, 10, MODEL.table())
    layout = layout_of((1, 1, 1))
    tokens = np.random.default_rng(0).integers(0, 16, (2, 4, 9)).astype(np.int32)
    batch = {"inputs": tokens[..., :-1], "targets": tokens[..., 1:]}
    batch["weights"] = np.ones((2, 4, 8), np.float32)
    state = init_state(MODEL, optimizer, layout, seed=0)
    step = make_train_step(MODEL, optimizer, layout, accumulate=2)
    bias = np.zeros((2, 4))
    for _ in range(2):
        state, metrics = step(state, batch)
        load = np.asarray(metrics["ffn/routed/load"])
        np.testing.assert_allclose(load.sum(axis=1), 1, rtol=1e-6)
        bias -= 0.5 * np.sign(np.round(load - 0.25, 6))
        np.testing.assert_allclose(state.params["blocks"]["ffn"]["balance_bias"], bias)
    assert float(metrics["penalty"]) == 0


def test_no_gradient_norm_has_the_load_in_it():
    grads = random_like(MODEL.table())
    cleaned = jax.jit(lambda grads: without_counted(MODEL.table(), grads))(grads)["blocks"]["ffn"]
    assert not np.any(cleaned["balance_bias"])
    chex.assert_trees_all_equal(cleaned["router"], grads["blocks"]["ffn"]["router"])


def test_the_bias_counts_in_choosing_alone():
    layer = dataclasses.replace(PLAIN, router=Router(bias_step=0.5))
    params = params_of(layer)
    params = {**params, "balance_bias": put([9.0, 9.0, 0.0, 0.0])}
    logits = np.asarray(inputs(1, 5))[..., :4]
    choice, _ = routed(layer, params, logits)
    assert set(np.unique(choice.experts)) == {0, 1}
    want = np.exp(logits[..., :2])
    want = want / want.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(np.sum(choice.weights, axis=-1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.max(choice.weights, -1), np.max(want, -1), rtol=1e-6)


@jax.jit
def zipf_load(step):
    """The load after 300 updates of a balance bias, on tokens by Zipf's law in their contexts."""
    random = np.random.default_rng(2)
    table = put(random.normal(size=(50, 8)), jnp.float32)
    shares = 1 / np.arange(1, 51)
    router = Router("sigmoid")

    def count(bias, key):
        words, contexts = jax.random.split(key)
        tokens = jax.random.categorical(words, jnp.log(shares), shape=(2048,))
        logits = table[tokens] + 0.5 * jax.random.normal(contexts, (2048, 8))
        return jnp.sum(choose(router, 2, logits, bias).hot, axis=(0, 1))

    def update(bias, key):
        load = count(bias, key)
        return bias - step * jnp.sign(load - jnp.mean(load)), None

    keys = jax.random.split(jax.random.key(0), 300)
    bias, _ = jax.lax.scan(update, jnp.zeros(8), keys)
    return count(bias, jax.random.key(1))


@pytest.mark.slow
def test_the_bias_brings_unevenly_frequent_tokens_into_balance():
    without, balanced = (max_violation(zipf_load(step)) for step in (0.0, 3e-3))
    assert without > 0.5
    assert balanced < 0.1


def test_jitter_is_there_in_training_alone():
    layer = dataclasses.replace(PLAIN, router=Router(jitter=0.5))
    params, x = params_of(PLAIN), inputs(2, 13)
    plain, _ = apply(PLAIN, params, x)
    chex.assert_trees_all_equal(apply(layer, params, x)[0], plain)
    jittered, _ = jax.jit(lambda p, x, key: layer(p, x, key=key))(params, x, jax.random.key(0))
    assert np.any(np.asarray(jittered) != np.asarray(plain))


def test_statistics_are_found_wherever_the_layer_is_nested():
    layer = Chunked(Block(PLAIN, PLAIN, width=8), size=3)
    _, carry = apply(layer, params_of(layer), inputs(2, 7))
    found = statistics(carry)
    assert set(found) == {"ffn/routed", "mixer/routed"}
    assert all(each.tokens.tolist() == [7, 7] for each in found.values())


def test_parameters_are_those_of_the_experts_router_and_shared_feed_forward():
    layer = dataclasses.replace(PLAIN, shared=2, router=Router(bias=True, bias_step=0.1))
    assert count_params(layer.table()) == (4 + 2) * 3 * 8 * 12 + 8 * 4 + 4 + 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"chosen": 5}, "MoE.chosen=5 is not from 1 to experts=4"),
        ({"router": Router(groups=3)}, "do not make router.groups=3 groups"),
        (
            {"chosen": 3, "router": Router(groups=2, chosen_groups=1)},
            "more than the experts of router.chosen_groups=1",
        ),
        ({"shared": -1}, "must not be negative"),
        ({"router": Router(by="expert"), "capacity": Capacity(1.0)}, "drops none by design"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAIN, **fields)
