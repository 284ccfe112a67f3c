"""Layers take the program of the devices of their mesh, which JAX's default need not be."""

from __future__ import annotations

import jax
import pytest

from gam_jax.ops.attention import Rule
from gam_jax.ops.fused_attention import implementation
from sharding.axes import Axes
from tests.examples import EXAMPLES, inputs, params_of


@pytest.mark.parametrize(
    ("name", "operation"),
    [
        ("MoE", "ragged_dot"),
        ("MoFME", "ragged_dot"),
        ("Attention", "dot_product_attention"),
        ("FalconH1", "dot_product_attention"),
    ],
)
def test_a_layer_has_the_program_of_the_mesh_s_devices(name, operation):
    layer = EXAMPLES[name]

    def program(axes):
        return jax.make_jaxpr(lambda p, x: layer(p, x, None, axes)[0])(
            params_of(layer), inputs(2, 8)
        )

    assert operation in str(program(Axes(backend="tpu")))
    for axes in (Axes(backend="cpu"), Axes()):
        assert operation not in str(program(axes))


def test_without_cudnn_a_gpu_s_attention_is_another():
    found = [implementation("gpu", Rule(1.0), 64, 64, 64, "bfloat16", there) for there in (1, 0)]
    assert found == ["cudnn", "xla"]
