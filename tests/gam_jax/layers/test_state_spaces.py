"""Mamba, Mamba-2 and Falcon-H1: counts, starts, constants and what shards send."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gam_jax.layers import MLP, Attention, Block, FalconH1, Mamba, Mamba2, Residual, RMSNorm
from gam_jax.layers.mamba2 import Scales
from gam_jax.models.language import LanguageModel
from gam_jax.params import carry_specs, count_params, init_params, rule_specs
from sharding.messages import messages_of, totals
from tests.examples import apply, inputs, params_of
from tests.meshes import layout_of


def test_mamba_130m_has_the_published_number_of_parameters():
    model = LanguageModel(
        Residual(Mamba(), RMSNorm()), width=768, depth=24, vocab=50_280, norm=RMSNorm()
    )
    assert count_params(model.table()) == 129_135_360


def test_falcon_h1_half_a_billion_has_the_published_number_of_parameters():
    mixer = FalconH1(
        Attention(heads=8, kv_heads=2, head_size=64, rotary=1e11), Mamba2(inner=1536, norm="none")
    )
    ffn = MLP(hidden=2048, activation="swiglu", bias=False)
    model = LanguageModel(
        Block(mixer, ffn, RMSNorm()),
        width=1024,
        depth=36,
        vocab=32_784,
        norm=RMSNorm(),
        tied=False,
    )
    assert count_params(model.table()) == 521_411_104


@pytest.mark.parametrize(
    "layer", [Mamba(width=48), Mamba(width=40, expansion=3, state=5, kernel=2)]
)
def test_parameters_of_mamba_in_closed_form(layer):
    d, e, n = layer.width, layer.inner, layer.state
    r = math.ceil(d / 16)
    assert count_params(layer.table()) == 3 * d * e + e * (layer.kernel + 2 * r + 3 * n + 3)


@pytest.mark.parametrize("norm", ["gate_first", "none"])
def test_parameters_of_mamba2_in_closed_form(norm):
    layer = Mamba2(width=48, inner=96, head=8, state=12, groups=3, norm=norm)
    d, e, h, shared = 48, 96, 12, 2 * 3 * 12
    wanted = d * (3 * e + shared + h) + (e + shared) * (4 + 1) + 3 * h + e * (norm != "none")
    assert count_params(layer.table()) == wanted


@pytest.mark.parametrize("layer", [Mamba(width=64), Mamba2(width=64, head=8, state=16)])
def test_step_sizes_begin_between_a_thousandth_and_a_tenth(layer):
    made = jax.jit(lambda key: init_params({"layers": layer.table()}, key))(jax.random.key(0))
    start = jax.tree.map(np.asarray, made["layers"])
    steps = np.log1p(np.exp(start["dt_bias"]))
    assert 1e-3 * 0.999 <= steps.min() < 3e-3
    assert 0.03 < steps.max() <= 0.1 * 1.001
    rates = np.exp(start["a_log"])
    if isinstance(layer, Mamba):
        np.testing.assert_allclose(rates, np.tile(np.arange(1.0, 17)[:, None], 128), rtol=1e-6)
    else:
        assert rates.min() >= 1
        assert rates.max() <= 16


def test_what_steps_and_decays_begin_as_is_spared_weight_decay():
    for layer in (Mamba(width=16), Mamba2(width=16, head=8)):
        table = layer.table()
        assert not any(
            table[name].decay for name in ("a_log", "dt_bias", "skip", "conv_bias") if name in table
        )
        assert table["w_out"].decay


def test_constants_are_what_weights_could_have_held():
    scales = Scales(input=0.9, z=0.8, x=1.2, b=1.1, c=0.7, dt=1.3)
    scaled = Mamba2(width=8, head=4, state=4, norm="none", scales=scales)
    plain = dataclasses.replace(scaled, scales=Scales())
    params, x = jax.tree.map(np.asarray, params_of(plain)), inputs(2, 7)
    folded = {
        **params,
        "w_zx": 0.9 * params["w_zx"] * np.float32([0.8, 1.2])[:, None, None],
        "w_bc": 0.9 * params["w_bc"] * np.float32([1.1, 0.7])[:, None, None],
        "w_dt": np.float32(0.9 * 1.3) * params["w_dt"],
    }
    np.testing.assert_allclose(
        apply(scaled, params, x)[0], apply(plain, folded, x)[0], rtol=1e-4, atol=1e-5
    )


def test_a_hybrid_is_the_weighted_sum_of_its_two_mixers():
    hybrid = FalconH1(
        Attention(heads=2, context=16),
        Mamba2(head=4, state=4),
        width=8,
        attention_in=0.5,
        attention_out=0.7,
        ssm_out=1.5,
    )
    params, x = params_of(hybrid), inputs(2, 6)
    recalled, _ = apply(hybrid.attention, params["attention"], np.float32(0.5) * x)
    mixed, _ = apply(hybrid.ssm, params["ssm"], x)
    wanted = 1.5 * np.asarray(mixed) + 0.7 * np.asarray(recalled)
    np.testing.assert_allclose(apply(hybrid, params, x)[0], wanted, rtol=1e-5, atol=1e-6)


def test_steps_are_kept_within_their_bounds():
    layer = Mamba2(width=8, head=4, state=4, dt_min=0.3, dt_max=0.3)
    params, x = params_of(layer), inputs(1, 5)
    other = {**params, "dt_bias": np.asarray(params["dt_bias"]) + np.float32(3)}
    np.testing.assert_array_equal(apply(layer, params, x)[0], apply(layer, other, x)[0])


def sent(layer, tokens):
    """What a layer sends in a forward and a backward pass with tokens over four devices."""
    layout = layout_of((1, 4, 1))
    stream = P(None, "seq")
    program = jax.shard_map(
        lambda params, x: layer(params, x, None, layout.axes),
        mesh=layout.mesh,
        in_specs=(rule_specs(layer.table(), layout), stream),
        out_specs=(stream, carry_specs(layer.carry_table(2), layout)),
    )
    gradient = jax.grad(lambda params, x: jnp.sum(program(params, x)[0] ** 2))
    x = jax.ShapeDtypeStruct((2, tokens, 8), jnp.float32)
    return totals(messages_of(gradient, params_of(layer), x))


@pytest.mark.parametrize(
    "layer", [Mamba(width=8, state=4), Mamba2(width=8, head=4, state=4)], ids=["Mamba", "Mamba2"]
)
def test_what_shards_send_does_not_grow_with_the_tokens(layer):
    assert sent(layer, 64) == sent(layer, 256)
    assert ("all_gather", ("seq",)) in sent(layer, 64)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Mamba(width=8, state=0), "Mamba.state"),
        (lambda: Mamba2(width=8, norm="last"), "not one of gate_first"),
        (lambda: Mamba2(width=8, head=3), "change inner, head or groups"),
        (lambda: Mamba2(width=8, head=4, kernel=0), "Mamba2.kernel"),
    ],
)
def test_a_wrong_field_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
