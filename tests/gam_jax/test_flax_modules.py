"""A layer as a Flax module is the layer itself."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gam_jax.flax_modules import LinenLayer, NnxLayer
from gam_jax.layers import GAM, MLP, Block
from gam_jax.params import abstract_params
from tests.arrays import put
from tests.examples import EXAMPLES, WIDTH, apply, inputs, params_of

CHOSEN = ("GAM", "LayerNorm", "MLP", "Block", "Stack")
chosen_layers = pytest.mark.parametrize("layer", [EXAMPLES[n] for n in CHOSEN], ids=CHOSEN)

SHAKY = Block(GAM(slots=16), ffn=MLP(dropout=0.5), width=WIDTH)
X = inputs(2, 6)
CHUNKS = [put(chunk) for chunk in np.split(np.asarray(X), 2, axis=1)]


def nnx_with(layer, params):
    """The nnx module with given parameters, made without drawing any."""
    module = nnx.eval_shape(lambda: NnxLayer(layer, rngs=nnx.Rngs(0)))
    module.params = nnx.data(jax.tree.map(nnx.Param, params))
    return module


@chosen_layers
def test_a_linen_module_gives_what_the_layer_gives_chunk_by_chunk(layer):
    params = params_of(layer)
    module = LinenLayer(layer)
    carry, other = None, None
    run = jax.jit(module.apply)
    for chunk in CHUNKS:
        want, carry = apply(layer, params, chunk, carry)
        found, other = run({"params": params}, chunk, other)
        chex.assert_trees_all_close((found, other), (want, carry), atol=1e-6)


@chosen_layers
def test_an_nnx_module_gives_what_the_layer_gives_chunk_by_chunk(layer):
    params = params_of(layer)
    module = nnx_with(layer, params)
    call = nnx.jit(lambda module, x, carry: module(x, carry))
    carry, other = None, None
    for chunk in CHUNKS:
        want, carry = apply(layer, params, chunk, carry)
        found, other = call(module, chunk, other)
        chex.assert_trees_all_close((found, other), (want, carry), atol=1e-6)


@chosen_layers
def test_parameters_have_the_table_s_names_and_shapes(layer):
    want = abstract_params(layer.table())
    linen = jax.eval_shape(LinenLayer(layer).init, jax.random.key(0), X)["params"]
    chex.assert_trees_all_equal_shapes_and_dtypes(linen, want)
    module = nnx.eval_shape(lambda: NnxLayer(layer, rngs=nnx.Rngs(0)))
    chex.assert_trees_all_equal_shapes_and_dtypes(
        nnx.to_pure_dict(nnx.state(module, nnx.Param))["params"], want
    )


def test_gradients_are_the_layer_s():
    layer = EXAMPLES["Block"]
    params = params_of(layer)
    want = jax.jit(jax.grad(lambda p: jnp.sum(layer(p, X)[0] ** 2)))(params)
    module = LinenLayer(layer)
    linen = jax.jit(jax.grad(lambda p: jnp.sum(module.apply({"params": p}, X)[0] ** 2)))(params)
    chex.assert_trees_all_close(linen, want, rtol=1e-4, atol=1e-5)
    gradient = nnx.jit(nnx.grad(lambda m: jnp.sum(m(X)[0] ** 2)))(nnx_with(layer, params))
    chex.assert_trees_all_close(nnx.to_pure_dict(gradient)["params"], want, rtol=1e-4, atol=1e-5)
    assert all(map(np.any, jax.tree.leaves(want)))


def test_initial_parameters_are_drawn_from_the_key():
    layer = EXAMPLES["MLP"]
    begin = jax.jit(LinenLayer(layer).init)
    one, same, other = (
        np.asarray(begin(jax.random.key(seed), X)["params"]["w_in"]) for seed in (0, 0, 1)
    )
    chex.assert_trees_all_equal(one, same)
    assert np.any(one != other)
    modules = (NnxLayer(layer, rngs=nnx.Rngs(seed)) for seed in (0, 0, 1))
    drawn = [np.asarray(module.params["w_in"][...]) for module in modules]
    chex.assert_trees_all_equal(drawn[0], drawn[1])
    assert np.any(drawn[0] != drawn[2])


def test_linen_dropout_needs_its_stream_and_follows_it():
    params = {"params": params_of(SHAKY)}
    module = LinenLayer(SHAKY)
    plain = apply(SHAKY, params["params"], X)[0]
    run = jax.jit(module.apply)
    chex.assert_trees_all_close(run(params, X)[0], plain, atol=1e-6)
    one, same, other = (
        np.asarray(run(params, X, rngs={"dropout": jax.random.key(seed)})[0]) for seed in (0, 0, 1)
    )
    chex.assert_trees_all_equal(one, same)
    assert np.any(one != np.asarray(plain))
    assert np.any(one != other)


def test_nnx_dropout_needs_rngs_and_draws_anew_each_time():
    module = nnx_with(SHAKY, params_of(SHAKY))
    run = nnx.jit(lambda module, rngs: module(X, rngs=rngs)[0])
    plain, rngs = np.asarray(run(module, None)), nnx.Rngs(dropout=0)
    one, two, again = (
        np.asarray(run(module, drawn)) for drawn in (rngs, rngs, nnx.Rngs(dropout=0))
    )
    chex.assert_trees_all_equal(one, again)
    assert np.any(one != plain)
    assert np.any(one != two)
