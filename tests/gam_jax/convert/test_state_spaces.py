"""Mamba, Mamba-2 and Falcon-H1 of transformers: what `test_hf` does not say of every folder."""

import dataclasses
import json
import math
import pathlib

import numpy as np
import pytest

from gam_jax.config import from_dict, to_dict
from gam_jax.convert import from_hf
from gam_jax.convert.folder import read_config, read_tensors
from gam_jax.convert.hf import FAMILIES, read, write
from gam_jax.layers import GAM, Attention, Block, FalconH1, Mamba, Mamba2, Residual, RMSNorm
from gam_jax.layers.mamba2 import Scales
from gam_jax.models.language import LanguageModel
from gam_jax.params import count_params
from gam_jax.training.step import make_eval_step
from sharding.errors import UserError
from tests.examples import random_like
from tests.meshes import layout_of, mean_loss

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"


def opened(name):
    return read_config(GOLDEN / name), read_tensors(GOLDEN / name)


@pytest.mark.parametrize("name", ["hf_mamba", "hf_mamba2", "hf_falcon_h1", "hf_falcon_h1_normed"])
def test_the_model_is_a_config_like_any_other(name):
    model, _ = from_hf(GOLDEN / name)
    assert from_dict(LanguageModel, json.loads(json.dumps(to_dict(model)))) == model


def test_constants_come_out_as_they_went_in():
    model, _ = from_hf(GOLDEN / "hf_falcon_h1")
    mixer = model.block.mixer
    assert (model.embedding_scale, model.logit_scale) == (2.5, 0.6)
    assert mixer.attention.scale == pytest.approx(0.6 / math.sqrt(8))
    assert mixer.ssm.scales == Scales(input=1.25, z=0.9, x=0.8, b=1.2, c=1.3, dt=0.7)
    assert (mixer.attention_in, mixer.attention_out, mixer.ssm_out) == (0.9, 0.85, 0.75)
    assert (model.block.ffn.gate_scale, model.block.ffn.out_scale) == (0.8, 0.7)


def test_a_hybrid_from_outside_has_its_loss_on_any_mesh():
    model, params = from_hf(GOLDEN / "hf_falcon_h1")
    tokens = np.random.default_rng(0).integers(0, 48, (2, 17)).astype(np.int32)
    weights = np.ones((2, 16), np.float32)
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}
    losses = [
        mean_loss(make_eval_step(model, layout_of(shape))(params, batch))
        for shape in ((1, 1, 1), (2, 2, 2))
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_bounds_of_the_step_are_read_however_infinity_is_written():
    config, tensors = opened("hf_mamba2")
    for high, wanted in (
        (math.inf, 0.0),
        ("Infinity", 0.0),
        ({"__float__": "Infinity"}, 0.0),
        (2, 2),
    ):
        model, _ = read({**config, "time_step_limit": [0.5, high]}, tensors)
        assert (model.block.inner.dt_min, model.block.inner.dt_max) == (0.5, wanted)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("hf_mamba", {"use_bias": True}, "no 'backbone.layers.0.mixer.in_proj.bias'"),
        ("hf_mamba", {"intermediate_size": 40}, "not a whole number"),
        ("hf_mamba2", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("hf_falcon_h1", {"projectors_bias": True}, "no 'model.layers.0.mamba.out_proj.bias'"),
        ("hf_falcon_h1", {"rope_parameters": {"rope_type": "axial"}}, "rope_type='axial'"),
    ],
)
def test_what_is_not_known_is_named(name, change, words):
    config, tensors = opened(name)
    with pytest.raises(UserError, match=words):
        read({**config, **change}, tensors)


def test_a_missing_array_is_named():
    config, tensors = opened("hf_mamba")
    del tensors["backbone.layers.1.mixer.D"]
    with pytest.raises(UserError, match=r"mixer\.D"):
        read(config, tensors)


def falcon(**changes):
    block = Block(FalconH1(Attention(heads=2), Mamba2(head=4, norm="none")), norm=RMSNorm())
    return dataclasses.replace(block, **changes)


@pytest.mark.parametrize(
    ("official", "block", "words"),
    [
        ("MambaForCausalLM", Block(GAM(slots=8)), "has a Residual where this model has a Block"),
        ("MambaForCausalLM", Residual(Mamba()), "block.norm.layer='RMSNorm' where"),
        ("MambaForCausalLM", Residual(Mamba(), RMSNorm(eps=0.1)), "block.norm.eps=1e-05 where"),
        (
            "MambaForCausalLM",
            Residual(Mamba(out_bias=True), RMSNorm()),
            "block.inner.out_bias=False where",
        ),
        ("Mamba2ForCausalLM", Residual(Mamba(), RMSNorm()), "has a Mamba2 where"),
        (
            "Mamba2ForCausalLM",
            Residual(Mamba2(head=4, norm="none"), RMSNorm()),
            "norm='gate_first'",
        ),
        ("FalconH1ForCausalLM", falcon(), "activation='swiglu' where"),
        ("FalconH1ForCausalLM", falcon(form="parallel"), "sequential blocks"),
    ],
)
def test_a_model_that_transformers_cannot_express_is_refused(official, block, words):
    model = LanguageModel(block, width=8, depth=1, vocab=8, norm=RMSNorm())
    with pytest.raises(UserError, match=words):
        write(model, random_like(model.table()), official)


def test_the_published_falcon_h1_half_a_billion_is_read_from_its_sizes():
    config = {
        "architectures": ["FalconH1ForCausalLM"],
        "vocab_size": 32_784,
        "hidden_size": 1024,
        "intermediate_size": 2048,
        "num_hidden_layers": 36,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "mamba_d_ssm": 1536,
        "mamba_n_heads": 24,
        "mamba_d_state": 128,
        "mamba_n_groups": 1,
        "mamba_d_conv": 4,
        "mamba_rms_norm": False,
        "rope_theta": 1e11,
    }
    model = FAMILIES["FalconH1ForCausalLM"].model(config)
    assert count_params(model.table()) == 521_411_104
    assert model.block.mixer.attention.rotary == 1e11
