"""Layers take the program of the devices of their mesh, which JAX's default need not be."""

from __future__ import annotations

import re

import jax
import pytest

from gam_jax.ops.attention import Rule
from gam_jax.ops.fused_attention import implementation
from sharding.axes import Axes
from tests.examples import EXAMPLES, inputs, params_of


@pytest.mark.parametrize("name", ["MoE", "MoFME", "Attention", "FalconH1"])
def test_a_layer_has_the_program_of_the_mesh_s_devices(name):
    layer = EXAMPLES[name]

    def operations(backend):
        def program(params, x):
            return layer(params, x, None, Axes(backend=backend))[0]

        text = str(jax.make_jaxpr(program)(params_of(layer), inputs(2, 8)))
        return sorted(re.findall(r"= ([a-z_]+)\[?", text))

    assert operations("tpu") != operations("cpu") == operations(None)
    assert ("ragged_dot_general" in operations("tpu")) == name.startswith("Mo")


def test_without_cudnn_a_gpu_s_attention_is_another():
    found = [implementation("gpu", Rule(1.0), 64, 64, 64, "bfloat16", there) for there in (1, 0)]
    assert found == ["cudnn", "xla"]
