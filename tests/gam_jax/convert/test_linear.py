"""Folders of models with linear memories: fields that are told in several ways, and refusals."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gam_jax.convert.folder import read_config, read_tensors
from gam_jax.convert.hf import FAMILIES, read, write
from gam_jax.convert.patterns import blocks_of
from gam_jax.layers import Attention, LatentAttention, LinearMemory
from gam_jax.nested import with_held
from gam_jax.ops.rotary import Positions
from gam_jax.params import count_params
from sharding.errors import UserError
from tests.gam_jax.convert.test_hf import GOLDEN


def opened(name):
    return read_config(GOLDEN / name), read_tensors(GOLDEN / name)


def model_of(name, **changes):
    config = read_config(GOLDEN / name)
    return FAMILIES[config["architectures"][0]].model({**config, **changes})


DELTAS = {
    "head_dim": 256,
    "num_attention_heads": 16,
    "linear_num_value_heads": 32,
    "linear_num_key_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
}
EXPERTS = {
    **DELTAS,
    "hidden_size": 2048,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
}
NEXT = {
    **EXPERTS,
    "num_hidden_layers": 48,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "vocab_size": 151936,
}
QWEN35 = {
    **DELTAS,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_key_value_heads": 4,
    "vocab_size": 248320,
}
QWEN35_MOE = {**EXPERTS, "num_hidden_layers": 40, "num_experts": 256, "vocab_size": 248320}


KIMI = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 27,
    "vocab_size": 163840,
    "first_k_dense_replace": 1,
    "linear_attn_config": {
        "head_dim": 128,
        "num_heads": 32,
        "short_conv_kernel_size": 4,
        "full_attn_layers": [5, 9, 13, 17, 21, 25],
        "kda_layers": [i for i in range(1, 28) if i % 4 != 1 or i == 1],
    },
}


@pytest.mark.parametrize(
    ("official", "config", "total"),
    [
        ("Qwen3NextForCausalLM", NEXT, 79_674_391_296),
        ("Qwen3_5ForCausalLM", QWEN35, 8_953_803_264),
        ("Qwen3_5MoeForCausalLM", QWEN35_MOE, 34_660_610_688),
        # transformers keeps balance biases as buffers, 6,656 numbers
        ("KimiLinearForCausalLM", KIMI, 49_133_074_464 + 6_656),
    ],
)
def test_sizes_of_transformers_have_as_many_parameters_as_it_counts(official, config, total):
    assert count_params(FAMILIES[official].model(config).table()) == total


def test_layers_are_told_by_a_list_or_by_an_interval():
    whole, interval = (
        model_of("hf_qwen3_next", layer_types=None, full_attention_interval=n) for n in (4, 2)
    )
    assert whole == model_of("hf_qwen3_next")
    kinds = [isinstance(block.mixer, Attention) for block in blocks_of(interval)]
    assert kinds == [False, True] * 2


def test_a_quarter_of_a_head_turns_where_nothing_is_said():
    mixer = blocks_of(model_of("hf_qwen3_5", rope_parameters=None))[1].mixer
    assert mixer.positions.turned == mixer.size // 4


def test_what_released_folders_say_besides_is_read():
    """Sections of pictures' positions, the gate of attention, the multi-token head."""
    config, tensors = opened("hf_qwen3_5")
    rope = {**config["rope_parameters"], "mrope_section": [1, 1, 0], "mrope_interleaved": True}
    more = {"rope_parameters": rope, "attn_output_gate": True, "mtp_num_hidden_layers": 1}
    arrays = {**tensors, "mtp.fc.weight": tensors["model.norm.weight"]}
    assert read({**config, **more}, arrays)[0] == read(config, tensors)[0]


TOLD_OTHERWISE = {
    "linear_attn_config": {
        "head_dim": 4,
        "num_heads": 2,
        "short_conv_kernel_size": 3,
        "full_attn_layers": [2],
        "kda_layers": [1, 3],
    },
    **dict.fromkeys(("linear_head_dim", "linear_num_heads", "linear_conv_kernel_dim")),
    **{"layer_types": None, "num_experts": None, "num_local_experts": 4},
    **{"mla_use_nope": True, "rope_theta": 10000.0, "moe_router_activation_func": "sigmoid"},
}


def test_kimi_linear_is_read_as_its_makers_wrote_it():
    """Layers and sizes in an object of their own, and a dense feed-forward that is called mlp."""
    config, tensors = opened("hf_kimi_linear")
    dense = "layers.1.block_sparse_moe"
    renamed = {name.replace(dense, "layers.1.mlp"): x for name, x in tensors.items()}
    assert renamed.keys() != tensors.keys()
    model, params = read({**config, **TOLD_OTHERWISE}, renamed)
    assert model == read(config, tensors)[0]
    assert write(model, params)[1].keys() == tensors.keys()


def test_olmo_hybrid_turns_where_it_has_a_base_and_its_norms_have_two_names():
    turned = model_of("hf_olmo_hybrid", rope_parameters={"rope_theta": 500.0})
    assert [blocks_of(model)[1].mixer.rotary for model in (turned, model_of("hf_olmo_hybrid"))] == [
        500.0,
        0.0,
    ]
    config, tensors = opened("hf_olmo_hybrid")
    old, new = (f"layers.1.{x}" for x in ("feedforward_layer_norm", "post_attention_layernorm"))
    before = {name.replace(old, new): x for name, x in tensors.items()}
    assert before.keys() != tensors.keys()
    model, params = read(config, before)
    np.testing.assert_equal(write(model, params)[1], tensors)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("hf_olmo_hybrid", {"layer_types": ["linear_attention"] * 3}, "must have both"),
        ("hf_olmo_hybrid", {"linear_num_key_heads": 3}, "does not divide 4 heads"),
        ("hf_kimi_linear", {"num_local_experts": 5}, "not the same as num_experts=4"),
        ("hf_kimi_linear", {"linear_attn_config": {"head_dim": 8}}, "linear_attn_config.head_dim"),
        (
            "hf_kimi_linear",
            {"linear_attn_config": {"kda_layers": [1, 2], "full_attn_layers": [2]}},
            "do not name each layer once",
        ),
        ("hf_kimi_linear", {"mlp_layer_types": ["dense"]}, "no list of num_hidden_layers=3"),
        ("hf_kimi_linear", {"mla_use_nope": False}, "mla_use_nope=False"),
        ("hf_kimi_linear", {"linear_conv_kernel_dim": 1}, "2 or more"),
        ("hf_qwen3_5", {"attn_output_gate": False}, "attn_output_gate=False"),
        ("hf_qwen3_5", {"layer_types": ["linear_attention"]}, "no list of num_hidden_layers=3"),
        ("hf_qwen3_5", {"layer_types": ["sliding_attention"] * 3}, "linear_attention or full"),
        ("hf_qwen3_5", {"linear_num_key_heads": 4}, "does not divide linear_num_value_heads=6"),
        ("hf_qwen3_5", {"linear_conv_kernel_dim": 1}, "whole number from 2"),
        ("hf_qwen3_5", {"linear_num_key_heads": 3}, r"conv1d.weight' has .*\(46, 1, 3\)"),
        ("hf_qwen3_next", {"mlp_only_layers": [0]}, "layers.0.mlp.gate_proj.weight"),
        ("hf_gla", {"attn": {"layers": [1], "num_heads": 2}}, "attn="),
        ("hf_gla", {"num_kv_heads": 1}, "num_kv_heads=1"),
        ("hf_gla", {"feature_map": "elu"}, "'relu' or null alone"),
        ("hf_gla", {"clamp_min": -3.0}, "clamp_min=-3.0"),
        ("hf_gla", {"expand_k": 0.4}, "gives 9.6 channels, which are no whole heads"),
        ("hf_gla", {"elementwise_affine": False}, "elementwise_affine=False"),
        ("hf_gla", {"fuse_norm": False}, "has no 'model.layers.0.attn.g_norm.weight'"),
        ("hf_delta_net", {"qk_norm": "sum"}, "qk_norm='sum'"),
        ("hf_delta_net", {"use_short_conv": False}, "use_short_conv=False"),
        ("hf_gated_deltanet", {"num_v_heads": 5}, "not a multiple of num_heads=2"),
        ("hf_retnet", {"attnres_block_size": 2}, "attnres_block_size=2"),
    ],
)
def test_what_is_not_known_is_refused_in_one_line(name, changes, message):
    config, tensors = opened(name)
    with pytest.raises(UserError, match=message) as raised:
        read({**config, **changes}, tensors)
    assert "\n" not in str(raised.value)


SLOW = Positions(kind="linear", factor=2.0)


def with_fields(layer, kind, **changes):
    own = changes if isinstance(layer, kind) else {}
    return with_held(layer, lambda inner: with_fields(inner, kind, **changes), **own)


@pytest.mark.parametrize(
    ("name", "kind", "changes", "message"),
    [
        ("hf_qwen3_5", LinearMemory, {"negative": True}, "negative=False where"),
        ("hf_qwen3_5", LinearMemory, {"eps": 1e-3}, "eps=1e-06 where"),
        ("hf_qwen3_5", Attention, {"gated": False}, "gated=True where"),
        ("hf_qwen3", Attention, {"gated": True}, "gated=False where"),
        ("hf_olmo_hybrid", LinearMemory, {"eps": 1e-4}, "eps=1e-05 where"),
        ("hf_kimi_linear", LinearMemory, {"gate_bias": True}, "gate_bias=False where"),
        ("hf_kimi_linear", LatentAttention, {"scale": 2.0}, "scale=0.3333.* where"),
        ("hf_retnet", LinearMemory, {"positions": SLOW}, "positions.kind='default' where"),
        ("hf_delta_net", LinearMemory, {"variant": "gated_deltanet"}, "variant='deltanet' where"),
    ],
)
def test_what_a_class_lacks_is_refused(name, kind, changes, message):
    model, params = read(*opened(name))
    official = read_config(GOLDEN / name)["architectures"][0]
    with pytest.raises(UserError, match=message):
        write(with_fields(model, kind, **changes), params, official)


def test_hidden_units_are_those_of_the_library_where_none_are_given():
    for width, wanted in ((24, 256), (1024, 2816)):
        model = model_of("hf_gla", intermediate_size=None, hidden_size=width, num_heads=2)
        assert model.block.ffn.hidden == wanted


SHARES = (0.5, 1.0, 1.5)
HEBB = {
    "expand_k": SHARES,
    "expand_v": SHARES,
    "use_output_gate": (True, False),
    "use_short_conv": (True, False),
    "feature_map": (None, "relu"),
}
DELTA = {"expand_v": SHARES, "use_gate": (True, False), "allow_neg_eigval": (True, False)}
LIBRARY = {
    "GLAForCausalLM": HEBB,
    "RetNetForCausalLM": {**HEBB, "expand_k": (0.5,)},
    "DeltaNetForCausalLM": {**DELTA, "expand_k": SHARES},
    "GatedDeltaNetForCausalLM": {**DELTA, "head_dim": (2, 4), "num_v_heads": (None, 6)},
}
"""Class -> fields, and legal values of each."""


@pytest.mark.parametrize("official", LIBRARY)
@settings(max_examples=15)
@given(data=st.data())
def test_any_legal_config_of_the_library_is_written_as_what_gives_the_same_model(official, data):
    heads = data.draw(st.integers(1, 3))
    config = {name: data.draw(st.sampled_from(x), name) for name, x in LIBRARY[official].items()}
    config |= {"vocab_size": 8, "num_hidden_layers": 2, "num_heads": heads, "conv_size": 3}
    config["hidden_size"] = 4 * heads * data.draw(st.integers(1, 3))
    model = FAMILIES[official].model(config)
    assert FAMILIES[official].model(FAMILIES[official].config(model)) == model


def test_how_a_scan_is_computed_is_no_matter_of_a_folder():
    model, params = read(*opened("hf_qwen3_5"))
    other = with_fields(model, LinearMemory, method="recurrent", chunk=8)
    assert dataclasses.asdict(other) != dataclasses.asdict(model)
    assert write(other, params)[0]["architectures"] == ["Qwen3_5ForCausalLM"]
