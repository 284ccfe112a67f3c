"""Layers take the program of the devices of their mesh, which JAX's default need not be."""

from __future__ import annotations

import contextlib
import re
import warnings

import jax
import jax.numpy as jnp
import pytest

from gam_jax.ops import fused_attention
from gam_jax.ops.fused_attention import implementation
from gam_jax.ops.tiles import Rule
from sharding.axes import Axes
from tests.examples import EXAMPLES, inputs, params_of
from tests.meshes import slow_unless_chosen

CHOOSING = ["MoE", "MoFME", "Attention", "LinearMemory gated deltanet", "Mamba"]
ALL = slow_unless_chosen([(name,) for name in EXAMPLES], [(name,) for name in CHOOSING])


@pytest.mark.parametrize("name", ["MoE", "MoFME", "Attention", "FalconH1"])
def test_a_layer_has_the_program_of_the_mesh_s_devices(name):
    layer = EXAMPLES[name]

    def operations(backend):
        def program(params, x):
            return layer(params, x, None, Axes(backend=backend))[0]

        text = str(jax.make_jaxpr(program)(params_of(layer), inputs(2, 8)))
        return sorted(re.findall(r"= ([a-z_]+)\[?", text))

    assert operations("tpu") != operations("cpu") == operations(None)
    for backend in ("gpu", "tpu"):
        assert ("ragged_dot_general" in operations(backend)) == name.startswith("Mo")


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("backend", ["gpu", "tpu"])
def test_no_layer_asks_for_jax_s_default(name, backend, monkeypatch):
    """Forward and backward, where it is told what the devices are."""

    def nobody_asks():
        raise AssertionError("JAX's default was asked for")

    layer = EXAMPLES[name]
    monkeypatch.setattr(jax, "default_backend", nobody_asks)

    def loss(params, x):
        return jnp.sum(layer(params, x, None, Axes(backend=backend))[0])

    jax.eval_shape(jax.grad(loss), params_of(layer), inputs(1, 4))


@pytest.mark.parametrize(("dtype", "said"), [("float32", 1), ("bfloat16", 0)])
def test_that_a_gpu_s_attention_is_not_cudnn_s_for_its_dtype_is_said_once(dtype, said, monkeypatch):
    monkeypatch.setattr(fused_attention, "has_cudnn", lambda: True)
    q = jax.ShapeDtypeStruct((1, 16, 2, 8), dtype)

    def attend(q):
        return fused_attention.attention(Rule(1.0), q, q, q, "gpu")

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        for _ in range(2):
            with contextlib.suppress(RuntimeError):  # cuDNN is not here
                jax.eval_shape(attend, q)
    assert len(found) == said
    assert all("attention in float32 on a GPU" in str(one.message) for one in found)


def test_nothing_is_said_where_cudnn_could_not_compute_it_in_any_dtype(monkeypatch):
    monkeypatch.setattr(fused_attention, "has_cudnn", lambda: True)
    q = jax.ShapeDtypeStruct((1, 16, 2, 9), "float32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.eval_shape(lambda q: fused_attention.attention(Rule(1.0), q, q, q, "gpu"), q)


def test_without_cudnn_a_gpu_s_attention_is_another():
    found = [implementation("gpu", Rule(1.0), 64, 64, 64, "bfloat16", there) for there in (1, 0)]
    assert found == ["cudnn", "xla"]
