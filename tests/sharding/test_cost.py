"""Formulas equal what little programs send, and the identities that the papers state."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from sharding import collectives, cost
from sharding.exchange import prefix, ring
from sharding.mesh import make_mesh
from sharding.messages import messages_of

SIZES = (1, 2, 4, 8)
sizes = pytest.mark.parametrize("size", SIZES)


def sent(program, size, *shapes, axis="seq", specs=None):
    """Bytes that a device sends for loss and gradient of sum(program(...)^2)."""
    specs = specs or (P(None, axis),) * len(shapes)
    run = jax.shard_map(
        lambda *args: collectives.psum(jnp.sum(jnp.square(program(*args))), axis),
        mesh=make_mesh(**{axis: size}),
        in_specs=specs,
        out_specs=P(),
    )
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    gradient = jax.value_and_grad(run, argnums=tuple(range(len(shapes))))
    scalar = 4 if size > 1 else 0  # the sum of the losses
    return sum(m.sent for m in messages_of(gradient, *arrays)) - cost.all_reduce(scalar, size)


@sizes
def test_a_halo_is_sent_forward_and_its_gradient_back(size):
    def program(x):
        halo = collectives.left_halo(x, jnp.zeros((2, 3, 5)), "seq")
        return jnp.concatenate([halo, x], axis=1)

    for tokens in (32, 64):
        wanted = cost.halo(rows=2, taps=4, channels=5) if size > 1 else 0
        assert sent(program, size, (2, tokens, 5)) == wanted


@sizes
def test_a_prefix_gathers_one_state_a_shard(size):
    def program(x):
        last = x[:, -1]
        left, _ = prefix(last, jnp.add, "seq", jnp.zeros_like(last))
        return x + left[:, None]

    assert sent(program, size, (2, 16, 5)) == cost.prefix_state(2 * 5 * 4, size)


@sizes
@pytest.mark.parametrize("tokens", [16, 64])
def test_a_ring_sends_keys_and_values_and_their_gradients(size, tokens):
    """Autodiff of a ring recomputes no sends: what is stored is the blocks, so the gradients
    travel alone, without the keys and values that the formula sends again."""

    def program(k, v):
        def step(out, block, source):
            return out + block[0] * block[1]

        return ring(step, jnp.zeros_like(k), (k, v), "seq")

    shape = (2, tokens, 8)
    forward = 2 * (size - 1) * (2 * tokens // size * 8 * 4)
    assert sent(program, size, shape, shape) == 2 * forward
    whole = cost.ring_attention(2, tokens, 8, size)
    assert whole == 3 * forward + (2 * (2 * tokens // size * 8 * 4) if size > 1 else 0)


@sizes
def test_ways_to_hold_parameters_cost_what_the_formulas_say(size):
    params = 64 * 32 * 4

    def whole(w, x):
        return x @ w

    def gathered(w, x):
        return x @ lax.all_gather(w, "data", axis=0, tiled=True)

    shapes = ((64, 32), (8, 64))
    replicated = sent(whole, size, *shapes, axis="data", specs=(P(), P("data")))
    assert replicated == cost.data_parallel(params, size)
    # the input's gradient uses the gathered parameter that is still there: one gather less
    sharded = sent(gathered, size, *shapes, axis="data", specs=(P("data"), P("data")))
    again = cost.all_gather(params // size, size)
    assert sharded + again == cost.fully_sharded(params, size)


def test_the_figures_of_the_papers():
    assert cost.zero1(960, 8) == cost.data_parallel(960, 8) == 2 * 960 * 7 // 8
    assert cost.fully_sharded(960, 8) == 3 * 960 * 7 // 8
    # Megatron-LM section 3.2: 8 b s h (t - 1) / t elements a layer
    assert cost.tensor_parallel_layer(4 * 16 * 32 * 2, 4) == 8 * 4 * 16 * 32 * 3 // 4 * 2


@pytest.mark.parametrize(("preset", "share"), [("data", 12), ("zero1", 5), ("fully_sharded", 1.5)])
def test_bytes_of_state_for_a_parameter_on_eight_devices(preset, share):
    assert cost.adam_state(4 * 800, 8, preset) == share * 800


@sizes
def test_collectives_send_nothing_to_oneself(size):
    for formula in cost.SENT.values():
        assert (functools.partial(formula, 64)(size) > 0) == (size > 1)
