"""A ladder: half blocks read the stream one half block earlier, and nothing else changes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gam_jax.decode import generate, written
from gam_jax.layers import (
    GAM,
    MLP,
    Adapted,
    Attention,
    Block,
    LinearMemory,
    Residual,
    RMSNorm,
    Stack,
)
from gam_jax.layers.base import WHOLE
from gam_jax.models import LanguageModel
from gam_jax.params import abstract_params, param_specs
from sharding.chains import longest_sums
from tests.arrays import put
from tests.examples import random_like
from tests.meshes import layout_of

WIDTH, DEPTH, TOKENS = 8, 4, 6
BLOCK = Block(Attention(heads=2, context=TOKENS), MLP(), RMSNorm(), width=WIDTH)
BLOCKS = {
    "feed-forwards": Block(MLP(), MLP(expansion=2), RMSNorm(), width=WIDTH),  # they compile soonest
    "two half blocks": BLOCK,
    "in parallel": dataclasses.replace(BLOCK, form="parallel", residual_scale=0.5),
    "normed out": dataclasses.replace(BLOCK, norms="sandwich"),
    "one": Residual(GAM(slots=4), width=WIDTH),
}
DEPTHS = (0, 1, DEPTH)


def steps(block, params, x):
    """Each half block as a function of what it reads, written for these blocks alone."""
    norm = lambda name, x: block.norm(params[name], x, None, WHOLE)[0]  # noqa: E731
    if isinstance(block, Residual):
        yield lambda x: block.inner(params["inner"], norm("norm", x), None, WHOLE)[0]
        return
    for prefix, names in block.steps.items():

        def step(x, prefix=prefix, names=names):
            inside = norm(f"{prefix}norm", x)
            change = sum(
                (getattr(block, name)(params[name], inside, None, WHOLE)[0] for name in names[1:]),
                start=getattr(block, names[0])(params[names[0]], inside, None, WHOLE)[0],
            )
            change = norm(f"{prefix}out_norm", change) if block.norms == "sandwich" else change
            return change if block.residual_scale == 1 else block.residual_scale * change

        yield step


def by_definition(block, params, x, ladder):
    """x_k = x_{k-1} + h_k(x_{k-2}), and h_k(x_{k-1}) in blocks before the ladder."""
    before, now = x, x
    for layer in range(DEPTH):
        own = jax.tree.map(lambda p, layer=layer: p[layer], params)
        for step in steps(block, own, x):
            read = before if layer >= DEPTH - ladder else now
            before, now = now, now + step(read)
    return now


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if i else ()) for i, name in enumerate(BLOCKS)],
)
def test_it_is_its_definition_to_the_bit(name):
    block, found = BLOCKS[name], []
    params = random_like(Stack(block, DEPTH).table())
    x = put(np.random.default_rng(1).normal(size=(2, TOKENS, WIDTH)), np.float32)
    with jax.disable_jit():  # so that each sum is rounded by itself
        for ladder in DEPTHS:
            y, _ = Stack(block, DEPTH, ladder=ladder)(params, x)
            np.testing.assert_array_equal(y, by_definition(block, params, x, ladder))
            found.append(y)
    assert len({np.asarray(y).tobytes() for y in found}) == len(DEPTHS)


SUMS = {0: 2 * DEPTH, 1: 2 * DEPTH - 1, DEPTH: DEPTH}
"""Of a stack with so many in the ladder: the sums over `tensor` that wait for each other."""


@pytest.mark.parametrize("words", ["tensor", "tensor_tokens"])
@pytest.mark.parametrize("ladder", SUMS)
def test_half_as_many_sums_wait_for_each_other(ladder, words):
    """Forward, and there and back: a sum of gradients waits for as few."""
    stack, layout = Stack(BLOCK, DEPTH, ladder=ladder), layout_of((1, 1, 2), words)
    tokens = PartitionSpec(None, layout.axes.residual)
    specs = param_specs(stack.table(), layout), tokens

    def program(params, x):
        return stack(params, x, None, layout.axes)[0]

    run = jax.shard_map(program, mesh=layout.mesh, in_specs=specs, out_specs=tokens)
    given = random_like(stack.table()), put(np.ones((2, TOKENS, WIDTH)), np.float32)
    assert longest_sums(jax.make_jaxpr(run)(*given).jaxpr, "tensor") == SUMS[ladder]
    back = jax.grad(lambda x: jnp.sum(run(given[0], x)))
    # The last half blocks end with no sum that the gradient needs.
    assert longest_sums(jax.make_jaxpr(back)(given[1]).jaxpr, "tensor") <= 2 * SUMS[ladder]


ATTENTION = Block(Attention(heads=2, context=16))


@pytest.mark.parametrize("ladder", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_weights_go_both_ways_and_a_text_in_two_is_the_text(ladder):
    plain = LanguageModel(ATTENTION, width=WIDTH, depth=3, vocab=11)
    model = dataclasses.replace(plain, ladder=ladder)
    assert abstract_params(model.table()) == abstract_params(plain.table())
    params, given = random_like(plain.table()), np.arange(9)[None] % 7
    read = jax.jit(model)
    whole, _ = read(params, given)
    start, carry = read(params, given[:, :4])
    rest, _ = read(params, given[:, 4:], carry)
    np.testing.assert_allclose(np.concatenate([start, rest], 1), whole, atol=2e-6)
    assert not np.allclose(jax.jit(plain)(params, given)[0], whole, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("ladder", [1, 3])
def test_what_is_written_is_what_is_read_at_once(ladder):
    block = Block(LinearMemory(heads=2, key_width=4, value_width=4), ATTENTION.mixer)
    model = LanguageModel(block, width=WIDTH, depth=3, vocab=11, ladder=ladder)
    params, given = random_like(model.table()), np.arange(9)[None] % 7
    (text,) = written(generate(model, params, given, 4, jax.random.key(0), temperature=0.0))
    again, _ = model(params, np.concatenate([given, text[None, :3]], 1))
    np.testing.assert_array_equal(text, jnp.argmax(again[0, -4:], -1))


@pytest.mark.parametrize(
    ("block", "ladder", "said"),
    [
        (BLOCK, DEPTH + 1, "there are 4 blocks"),
        (Adapted(BLOCK, rank=1), 1, "this one is a Adapted"),
        (dataclasses.replace(BLOCK, norms="post"), 1, "choose other norms"),
    ],
)
def test_what_has_no_half_blocks_is_refused(block, ladder, said):
    with pytest.raises(ValueError, match=said):
        LanguageModel(block, width=WIDTH, depth=DEPTH, vocab=11, ladder=ladder)
