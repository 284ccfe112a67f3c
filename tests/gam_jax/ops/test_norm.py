"""Norms over devices, and what they keep for the backward pass. Their gradients: `test_ops`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gam_jax.ops.norm import layer_norm, rms_norm
from sharding.mesh import make_mesh

each_norm = pytest.mark.parametrize(("norm", "vectors"), [(layer_norm, 2), (rms_norm, 1)])


@each_norm
def test_over_devices_that_split_the_width_gradients_are_those_of_the_whole(norm, vectors):
    random = np.random.default_rng(0)
    shapes = [(2, 3, 6)] * 2 + [(6,)] * vectors
    weight, *args = (random.normal(1, 2, shape).astype(np.float32) for shape in shapes)

    def gradients(weight, *args, axis=None):
        def loss(*args):
            return jnp.sum(jnp.sin(norm(*args, axis=axis)) * weight)

        return jax.grad(loss, range(len(args)))(*args)

    mesh = make_mesh(tensor=2, devices=jax.devices()[:2])
    specs = [P(*(None,) * (len(shape) - 1), "tensor") for shape in shapes]
    split = jax.shard_map(
        lambda *own: gradients(*own, axis="tensor"),
        mesh=mesh,
        in_specs=tuple(specs),
        out_specs=tuple(specs[1:]),
    )
    both = (jax.jit(run)(weight, *args) for run in (split, gradients))
    for found, want in zip(*both, strict=True):
        np.testing.assert_allclose(found, want, rtol=2e-5, atol=2e-5)


@each_norm
def test_the_backward_pass_keeps_x_alone_in_its_own_dtype(norm, vectors):
    x = jax.ShapeDtypeStruct((64, 256), jnp.bfloat16)
    pull = jax.eval_shape(
        lambda *args: jax.vjp(norm, *args)[1], x, *[x.update(shape=(256,))] * vectors
    )
    kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull))
    assert kept < 1.1 * 2 * x.size
