"""Granite, Bamba, Nemotron-H, Jamba, and Mamba by its own package: what `test_hf` does not say."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from gam_jax import decode
from gam_jax.convert import from_hf, to_hf
from gam_jax.convert.folder import read_config, read_tensors
from gam_jax.convert.hf import FAMILIES, read, write
from gam_jax.convert.patterns import blocks_of
from gam_jax.layers import MLP, Attention, Mamba, Mamba2, MoE, Pattern, RMSNorm
from gam_jax.models.language import LanguageModel
from gam_jax.training.step import make_eval_step
from sharding.errors import UserError
from tests.examples import random_like
from tests.meshes import layout_of, mean_loss

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
PUBLISHED = ("hf_state_spaces_mamba", "hf_state_spaces_mamba2")
HYBRIDS = ("hf_bamba", "hf_granite4", "hf_nemotron_h", "hf_nemotron_h_moe", "hf_jamba")
every_published = pytest.mark.parametrize("name", PUBLISHED)


def opened(name):
    return read_config(GOLDEN / name), read_tensors(GOLDEN / name)


def model_of(name, **changes):
    config = read_config(GOLDEN / name)
    return FAMILIES[config["architectures"][0]].model({**config, **changes})


# The package mamba_ssm.


@every_published
def test_logits_are_those_of_the_official_code(name):
    model, params = from_hf(GOLDEN / name)
    expected = np.load(GOLDEN / name / "expected.npz")
    logits, _ = jax.jit(model)(params, expected["tokens"])
    np.testing.assert_allclose(logits, expected["logits"], atol=2e-4)


@pytest.mark.slow
@every_published
def test_greedy_text_is_that_of_the_official_code(name):
    model, params = from_hf(GOLDEN / name)
    expected = np.load(GOLDEN / name / "expected.npz")
    key = jax.random.key(0)
    pieces = decode.generate(model, params, expected["tokens"], 12, key, temperature=0.0)
    np.testing.assert_array_equal(np.concatenate(list(pieces), axis=1), expected["greedy"])


@every_published
def test_the_official_folder_comes_out_as_it_went_in(name, tmp_path):
    model, params = from_hf(GOLDEN / name)
    source = {"config.json": (GOLDEN / name / "config.json").read_bytes()}
    to_hf(model, params, tmp_path / "out", source=source)
    tensors, again = read_tensors(GOLDEN / name), read_tensors(tmp_path / "out")
    tensors.setdefault("lm_head.weight", tensors["backbone.embedding.weight"])
    assert again.keys() == tensors.keys()
    for key, array in tensors.items():
        np.testing.assert_array_equal(again[key], array, err_msg=key)
    assert "architectures" not in read_config(tmp_path / "out")
    assert from_hf(tmp_path / "out")[0] == model


@every_published
def test_it_is_written_for_transformers_too(name):
    model, params = from_hf(GOLDEN / name)
    if name == PUBLISHED[1]:  # transformers norms after the gate alone
        inner = dataclasses.replace(model.block.inner, norm="gate_first")
        model = dataclasses.replace(model, block=dataclasses.replace(model.block, inner=inner))
    config, tensors = write(model, params)
    assert config["model_type"] in ("mamba", "mamba2")
    assert read(config, tensors)[0] == model


def test_the_vocabulary_is_rounded_up_as_its_code_does():
    model, params = from_hf(GOLDEN / PUBLISHED[0])
    assert (model.vocab, params["embedding"].shape) == (32, (32, 16))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"d_intermediate": 128}, "d_intermediate=128"),
        ({"attn_layer_idx": [1]}, r"attn_layer_idx=\[1\]"),
        ({"rms_norm": False}, "rms_norm=False"),
        ({"ssm_cfg": {"layer": "Mamba3"}}, "ssm_cfg.layer='Mamba3'.* Mamba1 or Mamba2"),
        ({"ssm_cfg": {"layer": "Mamba2", "D_has_hdim": True}}, "ssm_cfg.D_has_hdim=True"),
        ({"ssm_cfg": {"layer": "Mamba2", "d_ssm": 8}}, "ssm_cfg.d_ssm=8"),
        ({"ssm_cfg": {"layer": "Mamba2", "headdim": 4, "dt_rank": 8}}, "ssm_cfg.dt_rank=8"),
    ],
)
def test_what_of_the_package_is_not_known_is_named(change, words):
    config, tensors = opened(PUBLISHED[1])
    with pytest.raises(UserError, match=words):
        read({**config, **change}, tensors)


def test_a_pickle_is_refused_with_how_to_save_its_arrays(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(read_config(GOLDEN / PUBLISHED[0])))
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    with pytest.raises(UserError, match=r"a pickle.*save_file.*weights_only=True") as raised:
        from_hf(tmp_path)
    assert "\n" not in str(raised.value)


# Hybrids of transformers.


@pytest.mark.parametrize("name", [*HYBRIDS, "hf_granite", "hf_granite4_dense", "hf_mamba_biased"])
def test_a_folder_is_written_as_what_it_was(name):
    model, params = from_hf(GOLDEN / name)
    config, _ = write(model, params)
    assert config["architectures"] == read_config(GOLDEN / name)["architectures"]


def test_the_blocks_are_a_pattern_of_what_config_json_tells():
    kinds = {
        "hf_bamba": [Mamba2, Attention, Mamba2],
        "hf_granite4": [Mamba2, Attention, Mamba2],
        "hf_jamba": [Mamba, Attention, Mamba, Mamba],
        "hf_nemotron_h": [Mamba2, MLP, Attention, MLP],
        "hf_nemotron_h_moe": [Mamba2, MoE, Attention, MoE],
    }
    for name, wanted in kinds.items():
        model = model_of(name)
        assert isinstance(model.block, Pattern)
        mixers = [getattr(x, "mixer", getattr(x, "inner", None)) for x in blocks_of(model)]
        assert list(map(type, mixers)) == wanted


def test_granite_s_constants_stand_where_they_act():
    model = model_of("hf_granite")
    assert (model.embedding_scale, model.logit_scale) == (2.5, 1 / 1.6)
    assert (model.block.residual_scale, model.block.mixer.scale) == (0.7, 0.3)


@pytest.mark.parametrize("logit_scale", [1 / 3, 0.7, 1 / 16, 1e-3])
def test_a_constant_of_the_logits_goes_both_ways(logit_scale):
    model = dataclasses.replace(model_of("hf_granite"), logit_scale=logit_scale)
    config, tensors = write(model, random_like(model.table()), "GraniteForCausalLM")
    assert read(config, tensors)[0] == model


def test_names_of_earlier_versions_mean_the_same():
    older = {"layer_types": ["mamba", "attention", "mamba"]}
    assert model_of("hf_granite4", **older) == model_of("hf_granite4")
    older = {"hybrid_override_pattern": "M-*-", "layers_block_type": None, "num_hidden_layers": 4}
    assert model_of("hf_nemotron_h", **older) == model_of("hf_nemotron_h")
    assert model_of("hf_granite4", position_embedding_type="nope") == model_of(
        "hf_granite4", position_embedding_type=None
    )


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("hf_bamba", {"attn_layer_indices": "1"}, "attn_layer_indices='1'"),
        ("hf_bamba", {"mamba_n_heads": 5}, "mamba_n_heads=5"),
        ("hf_granite4", {"layer_types": ["linear_attention"]}, "layer_types="),
        ("hf_granite4", {"layer_types": ["x", "y", "z"]}, "layer_types="),
        ("hf_granite4", {"position_embedding_type": "alibi"}, "position_embedding_type='alibi'"),
        ("hf_nemotron_h", {"hybrid_override_pattern": "M-*M"}, "another field"),
        ("hf_nemotron_h", {"hybrid_override_pattern": "M-*x"}, "is no word of"),
        ("hf_nemotron_h", {"mlp_hidden_act": "tanh"}, "mlp_hidden_act='tanh'"),
        ("hf_nemotron_h", {"tie_word_embeddings": True}, "tie_word_embeddings=True"),
        ("hf_nemotron_h_moe", {"moe_latent_size": 8}, "moe_latent_size=8"),
        ("hf_jamba", {"attn_layer_offset": 3}, "attn_layer_offset=3"),
        ("hf_jamba", {"mamba_inner_layernorms": False}, "mamba_inner_layernorms=False"),
    ],
)
def test_what_is_not_known_is_named(name, change, words):
    with pytest.raises(UserError, match=words):
        model_of(name, **change)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("hf_jamba", {"order": (1, 1, 0, 0)}, "equal distances"),
        ("hf_bamba", {"norm": RMSNorm(eps=0.5)}, "eps="),
        ("hf_granite4", {"logit_scale": -1.0}, "logits_scaling=0.0"),
        ("hf_nemotron_h", {"embedding_scale": 2.0}, "no scales"),
    ],
)
def test_a_model_that_transformers_cannot_express_is_refused(name, changes, words):
    model = model_of(name)
    if "order" in changes:
        changes = {"block": Pattern(model.block.layers[:2], changes["order"])}
    model = dataclasses.replace(model, **changes)
    with pytest.raises(UserError, match=words):
        FAMILIES[read_config(GOLDEN / name)["architectures"][0]].config(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", HYBRIDS)
def test_a_hybrid_from_outside_has_its_loss_on_any_mesh(name):
    model, params = from_hf(GOLDEN / name)
    tokens = np.random.default_rng(0).integers(0, 32, (2, 17)).astype(np.int32)
    weights = np.ones((2, 16), np.float32)
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}
    losses = [
        mean_loss(make_eval_step(model, layout_of(shape))(params, batch))
        for shape in ((1, 1, 1), (2, 2, 2))
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_a_model_without_attention_is_one_too():
    model = model_of("hf_granite4_dense", layer_types=["linear_attention"] * 2)
    assert isinstance(model, LanguageModel)
    config, tensors = write(model, random_like(model.table()), "GraniteMoeHybridForCausalLM")
    assert read(config, tensors)[0] == model
