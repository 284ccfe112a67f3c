"""Losses in blocks are those of the whole, on any devices, and nothing holds all logits."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from gam_jax.layers import GAM, Block
from gam_jax.models import LanguageModel
from gam_jax.ops.cross_entropy import Head, block_size, blocks, loss_sum, token_losses, token_scores
from gam_jax.ops.vocabulary import padded_rows
from sharding.axes import Axes
from sharding.mesh import make_mesh
from sharding.messages import inner_jaxprs
from sharding.products import RECOMPUTED, product_flops
from tests.arrays import put, single

WIDTH = 3


def oracle(hidden, head, targets, weights, cap):
    """Losses, hits, and gradients of the weighted sum by hidden and head: float64, all at once."""
    raw = hidden @ head.T
    logits = cap * np.tanh(raw / cap) if cap else raw
    top = logits.max(axis=1, keepdims=True)
    exps = np.exp(logits - top)
    rows = np.arange(len(targets))
    losses = np.log(exps.sum(axis=1)) + top[:, 0] - logits[rows, targets]
    slopes = exps / exps.sum(axis=1, keepdims=True)
    slopes[rows, targets] -= 1
    slopes *= weights[:, None] * (1 - np.tanh(raw / cap) ** 2 if cap else 1)
    return losses, logits.argmax(axis=1) == targets, slopes @ head, slopes.T @ hidden


@given(
    tokens=st.integers(1, 9),
    vocab=st.integers(1, 9),
    block=st.integers(1, 10),
    devices=st.sampled_from((1, 2, 4)),
    cap=st.sampled_from((0.0, 2.0)),
    seed=st.integers(0, 9),
)
@settings(max_examples=7)
def test_any_blocks_on_any_devices_give_what_the_whole_gives(
    tokens, vocab, block, devices, cap, seed
):
    random = np.random.default_rng(seed)
    hidden, head = random.normal(size=(tokens, WIDTH)), 2 * random.normal(size=(vocab, WIDTH))
    weights = random.integers(0, 3, tokens) / 2
    targets = random.integers(0, vocab, tokens).astype(np.int32)
    how = Head("tensor" if devices > 1 else None, vocab if vocab % devices else None, cap, block)

    def program(hidden, head, weights):
        rows = head
        if how.size is not None:
            rows = padded_rows(head, "tensor")
        total = loss_sum(hidden, rows, targets, weights, how)
        losses, hits = token_scores(hidden, rows, targets, how)
        return total, (losses, hits, jnp.sum(token_losses(hidden, rows, targets, how) * weights))

    run = program
    if devices > 1:
        whole = P() if how.size is not None else P("tensor")
        run = jax.shard_map(
            program,
            mesh=make_mesh(tensor=devices),
            in_specs=(P(), whole, P()),
            out_specs=P(),
        )
    arrays = [put(x, jnp.float32) for x in (hidden, head, weights)]

    @jax.jit
    def everything(*arrays):
        both = jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True)(*arrays)
        return both, jax.grad(lambda *x: run(*x)[1][2], argnums=(0, 1))(*arrays)

    ((total, (losses, hits, again)), found), apart = everything(*arrays)
    wanted, right, *slopes = oracle(hidden, head, targets, weights, cap)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6)
    close(losses, wanted)
    close([total, again], [wanted @ weights] * 2)
    np.testing.assert_array_equal(hits, right)
    for gradient, slope in zip((*found, *apart), (*slopes, wanted, *slopes), strict=True):
        close(gradient, slope)


@given(tokens=st.integers(0, 5000), most=st.integers(1, 1100))
def test_blocks_are_alike_and_waste_less_than_a_token_each(tokens, most):
    count, size = blocks(tokens, most)
    assert size <= most
    assert 0 <= count * size - tokens < count
    assert count == max(1, math.ceil(tokens / most))


def sizes_of(jaxpr):
    """Numbers of every array that a program makes."""
    found = {math.prod(x.aval.shape) for eqn in jaxpr.eqns for x in eqn.outvars}
    return found.union(*(sizes_of(part) for eqn in jaxpr.eqns for part in inner_jaxprs(eqn)))


ROWS, TOKENS, VOCAB = 2, 1024, 300


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("what", ["loss", "scored", "losses", "last logits"])
def test_no_program_of_a_model_holds_all_logits(what, tied):
    """The largest array with the vocabulary in it is one block's logits, or the head."""
    model = LanguageModel(Block(GAM(slots=4)), 4, 1, vocab=VOCAB, tied=tied, logit_cap=5.0)
    params = jax.eval_shape(lambda: model.init_params(jax.random.key(0)))
    ids = np.zeros((ROWS, TOKENS), np.int32)
    batch = {"inputs": ids, "targets": ids, "weights": np.ones(ids.shape, np.float32)}
    batch, ids = jax.tree.map(put, (batch, ids))
    programs = {
        "loss": jax.grad(lambda params: model.objective(params, batch)[0]),
        "scored": lambda params: model.scored(params, batch),
        "losses": lambda params: model.of_tokens(params, batch, Axes(), token_scores),
        "last logits": lambda params: model.last_logits(params, ids)[0],
    }
    block = block_size(None) * VOCAB
    assert block * 4 == ROWS * TOKENS * VOCAB
    largest = max(sizes_of(jax.make_jaxpr(programs[what])(params).jaxpr))
    assert largest == (block if what != "last logits" else ROWS * TOKENS * 16)


def test_a_sum_computes_no_logits_twice():
    """Three products of all tokens with the head; a backward pass of single losses has one more."""
    arrays, weights = (
        single([np.ones((6, WIDTH)), np.ones((5, WIDTH))]),
        put(np.ones(6), np.float32),
    )
    targets, how, product = put(np.zeros(6), np.int32), Head(block=2), 2 * 6 * WIDTH * 5

    def flops(function):
        return product_flops(jax.make_jaxpr(jax.value_and_grad(function, (0, 1)))(*arrays).jaxpr)

    assert flops(lambda *x: loss_sum(*x, targets, weights, how)) == {"": 3 * product}
    again = flops(lambda *x: jnp.sum(token_losses(*x, targets, how)))
    assert again == {"": 3 * product, RECOMPUTED: product}


def test_gradients_by_half_precision_are_summed_in_float32():
    """Of 4,096 like tokens each adds 2^-12 of the sum, which bfloat16 would lose."""
    tokens, half = 4096, jnp.bfloat16
    hidden, head = put(np.ones((tokens, 1)), half), put(np.zeros((2, 1)), half)
    targets, weights = np.zeros(tokens, np.int32), np.ones(tokens, np.float32)
    find = jax.jit(jax.grad(loss_sum, argnums=(0, 1)), static_argnums=4)
    to_hidden, to_head = find(hidden, head, targets, weights, Head(block=4))
    assert to_hidden.dtype == to_head.dtype == half
    np.testing.assert_array_equal(np.asarray(to_head)[:, 0], [-tokens / 2, tokens / 2])
