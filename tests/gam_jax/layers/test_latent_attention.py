"""Latent attention: what it keeps of a token, and what it refuses."""

import jax
import numpy as np
import pytest

from gam_jax.layers import Attention, LatentAttention
from gam_jax.params import count_params
from tests.examples import WIDTH, apply, inputs, params_of


def test_what_is_kept_of_a_token_does_not_grow_with_the_heads():
    """DeepSeek-V3 keeps 576 numbers a token and layer; its 128 heads of 128 would be 32,768."""
    kept = {}
    for heads in (8, 128):
        layer = LatentAttention(
            width=7168, heads=heads, latent=512, head_size=128, rotary_size=64, context=1
        )
        kept[heads] = count_params(layer.carry_table(1)) - 1  # but for the position
    assert kept == {8: 576, 128: 576}
    plain = Attention(width=7168, heads=128, head_size=128, context=1)
    assert count_params(plain.carry_table(1)) - 1 == 32_768


def test_more_tokens_than_the_context_are_refused_or_nan():
    layer = LatentAttention(width=WIDTH, heads=2, latent=4, rotary_size=2, context=6)
    params, x = params_of(layer), inputs(1, 4)
    with pytest.raises(
        ValueError, match=r"8 tokens do not fit .* a larger LatentAttention.context"
    ):
        jax.eval_shape(layer, params, inputs(1, 8))
    _, carry = apply(layer, params, x)
    y, _ = apply(layer, params, x, carry)
    assert np.all(np.isnan(y))
    y, _ = apply(layer, params, x[:, :2], carry)
    assert np.all(np.isfinite(y))


def test_channels_that_cannot_be_turned_in_pairs_are_refused():
    with pytest.raises(ValueError, match="rotary_size=3"):
        LatentAttention(rotary_size=3)
