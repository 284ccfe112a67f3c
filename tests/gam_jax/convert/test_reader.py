"""Folders of Hugging Face transformers that mean something else than they seem to.

Each array and each field is used, harmless, or refused by name; and each refusal is one line.
"""

import functools
import math
import pathlib

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gam_jax.convert.fields import Fields
from gam_jax.convert.folder import read_config, read_tensors
from gam_jax.convert.harmless import EVERYWHERE, NEUTRAL, OF
from gam_jax.convert.hf import architecture, read
from sharding.errors import UserError

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
NAMES = sorted(path.name for path in GOLDEN.glob("hf_*"))
ALIKE = {
    "hf_llama3",
    "hf_mistral",
    "hf_qwen2",
    "hf_qwen2_sliding",
    "hf_qwen3",
    "hf_olmo2",
    "hf_qwen3_moe",
    "hf_falcon_h1",
    "hf_falcon_h1_biased",
    "hf_mamba_biased",
    "hf_mamba2_biased",
    "hf_granite",
    "hf_granite4_dense",
    "hf_nemotron_h",
    "hf_state_spaces_mamba",
    "hf_deepseek_v3_plain",
    "hf_qwen3_5",
    "hf_qwen3_5_moe",
    "hf_gla_convolved",
    "hf_delta_net",
    "hf_retnet",
    "hf_deepseek_v3_dense",
    "hf_deepseek_v2",
    "hf_glm4_moe",
}
"""Folders that are read by the same code as one of the others."""
every_folder = pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n in ALIKE else []) for n in NAMES],
)


@functools.cache
def opened(name):
    folder = GOLDEN / name
    return read_config(folder), read_tensors(folder)


@functools.cache
def model_of(name):
    return read(*opened(name))[0]


def refusal(call, *args):
    """The message, which is one line."""
    with pytest.raises(UserError) as raised:
        call(*args)
    message = str(raised.value)
    assert "\n" not in message
    return message


def outcome(call, *args):
    """What it gives; None where it is refused in one line that can be printed."""
    try:
        return call(*args)
    except UserError as error:
        message = str(error)
    assert "\n" not in message
    assert message.encode()
    return None


# Arrays.


@every_folder
def test_a_model_is_not_made_without_any_one_of_its_arrays(name):
    config, tensors = opened(name)
    for missing in tensors:
        rest = {key: x for key, x in tensors.items() if key != missing}
        assert f"has no '{missing}'" in refusal(read, config, rest)


@every_folder
def test_a_transposed_array_is_refused_before_it_is_cut(name):
    config, tensors = opened(name)
    matrices = [key for key, x in tensors.items() if x.ndim == 2 and x.shape[0] != x.shape[1]]
    assert matrices
    for key in matrices:
        message = refusal(read, config, {**tensors, key: tensors[key].T})
        assert f"'{key}' has the shape {tensors[key].T.shape}" in message


@every_folder
def test_an_array_of_integers_or_of_eight_bits_is_refused_by_its_dtype(name):
    config, tensors = opened(name)
    strange = [("I32", "int32"), ("F8_E4M3", ml_dtypes.float8_e4m3fn), ("U8", "uint8")] * 99
    for key, (told, dtype) in zip(tensors, strange, strict=False):
        message = refusal(read, config, {**tensors, key: tensors[key].astype(dtype)})
        assert f"'{key}' is of dtype {told}" in message


STRANGE_NAMES = st.one_of(
    st.sampled_from(
        [
            "model.layers.0.self_attn.q_norm.weight",
            "model.layers.9.input_layernorm.weight",
            "model.layers.0.self_attn.q_proj.scales",
            "model.norm.weight.scale",
            "lm_head.bias",
            "../x",
            "",
        ]
    ),
    st.text("abc._0é\n\\", min_size=1, max_size=12),
)


def check_a_strange_array_is_refused(name, key, size):
    config, tensors = opened(name)
    if key not in tensors:
        message = refusal(read, config, {**tensors, key: np.zeros((size,), np.float32)})
        assert (key if key.isascii() and key.isprintable() else ascii(key)) in message


@every_folder
@given(key=STRANGE_NAMES, size=st.integers(0, 3))
def test_an_array_that_no_model_reads_is_refused_by_name(name, key, size):
    check_a_strange_array_is_refused(name, key, size)


@every_folder
@pytest.mark.parametrize("copied", ["bias", "layer"])
def test_biases_and_blocks_that_config_json_does_not_tell_of_are_refused(name, copied):
    config, tensors = opened(name)
    layers = [key for key in tensors if ".layers.0." in key and key.endswith(".weight")]
    added = {}
    for key in layers:
        bias, layer = key.replace(".weight", ".bias"), key.replace(".layers.0.", ".layers.7.")
        added[bias if copied == "bias" else layer] = tensors[key]
    added = {key: x for key, x in added.items() if key not in tensors}
    assert min(added) in refusal(read, config, {**tensors, **added})


def test_wavelengths_that_old_folders_hold_are_left():
    config, tensors = opened("hf_llama")
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.int32)}
    assert read(config, {**tensors, **old})[0] == model_of("hf_llama")


def test_a_tied_head_is_left_where_it_is_the_embedding():
    config, tensors = opened("hf_qwen2")
    head = tensors["model.embed_tokens.weight"]
    assert read(config, {**tensors, "lm_head.weight": head})[0] == model_of("hf_qwen2")
    message = refusal(read, config, {**tensors, "lm_head.weight": head + 1e-3})
    assert "'lm_head.weight' is not the embedding" in message


def test_the_multi_token_head_is_left_and_no_other_block_is_taken_for_one():
    config, tensors = opened("hf_deepseek_v3")
    last = {key: x for key, x in tensors.items() if ".layers.2." in key}
    more = {key.replace(".2.", ".3.", 1): x for key, x in last.items()}
    assert "model.layers.3." in refusal(read, config, {**tensors, **more})
    more["model.layers.3.eh_proj.weight"] = np.zeros((16, 32), np.float32)
    assert read(config, {**tensors, **more})[0] == model_of("hf_deepseek_v3")
    none = {**config, "num_nextn_predict_layers": 0}
    assert "model.layers.3." in refusal(read, none, {**tensors, **more})


def test_numbers_beyond_float32_are_refused():
    config, tensors = opened("hf_llama")
    norm = np.full(24, 1e300)
    assert "float32 cannot hold" in refusal(read, config, {**tensors, "model.norm.weight": norm})


# Fields of config.json.

NUMBERS = (0, -1, 1, 2, 7, 2**31, 10**30, 10**400, 0.0, -0.5, 1e-9, 1e308, math.inf, math.nan)
JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from(NUMBERS),
        st.integers(),
        st.floats(),
        st.sampled_from(["auto", "default", "yarn", "silu", "24", "Infinity", "\n", "\ud800"]),
        st.text(max_size=5),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.dictionaries(st.sampled_from(["rope_type", "factor", "x", "__float__"]), inner),
    ),
    max_leaves=6,
)
SAME_FUNCTION = {
    "architectures",
    "mamba_d_head",  # may be "auto"
    "mamba_expand",  # the inner width is given
    "mamba_norm_before_gate",  # where there is no norm
    "num_nextn_predict_layers",  # the multi-token head
    "layer_types",  # may be empty
}
"""Fields whose other values may give the same model."""


OF_EXPERTS = (
    "first_k_dense_replace",
    "moe_intermediate_size",
    "n_group",
    "n_routed_experts",
    "n_shared_experts",
    "norm_topk_prob",
    "num_experts_per_tok",
    "routed_scaling_factor",
    "topk_group",
)

NOT_USED = {
    "hf_deepseek_v3_dense": {*OF_EXPERTS},
    "hf_deepseek_v3_plain": {"intermediate_size"},  # of dense blocks, of which it has none
    "hf_granite4_dense": {
        *("intermediate_size", "num_experts_per_tok", "router_aux_loss_coef"),  # of experts
        "rope_parameters",  # it has no positions
        "position_embedding_type",  # may be "nope"
    },
    "hf_nemotron_h": {
        *("n_routed_experts", "num_experts_per_tok", "n_group", "topk_group", "norm_topk_prob"),
        *("moe_intermediate_size", "moe_shared_expert_intermediate_size", "moe_latent_size"),
        "routed_scaling_factor",
    },
    "hf_nemotron_h_moe": {"intermediate_size"},
    "hf_jamba": {"attn_layer_period"},  # beyond its last block
    "hf_state_spaces_mamba": {"vocab_size", "pad_vocab_size_multiple"},  # which is rounded up
    "hf_state_spaces_mamba2": {"vocab_size", "pad_vocab_size_multiple"},
}
"""Folder -> fields of what it does not have."""


def places(config):
    """The paths of all fields."""
    for name, value in config.items():
        yield (name,)
        if isinstance(value, dict):
            yield from ((name, *rest) for rest in places(value))


def changed(config, path, value):
    name, *rest = path
    return {**config, name: changed(config[name], rest, value) if rest else value}


def says_nothing(value):
    """Null, or an object of nulls; plain rotary positions are what is meant without a word."""
    if isinstance(value, dict):
        return all(x is None or (key, x) == ("rope_type", "default") for key, x in value.items())
    return value is None


def check_any_value_gives_a_model_or_one_line(name, path, value):
    """And the same model from another value of the field only where the field is harmless."""
    config, tensors = opened(name)
    harmless = {*EVERYWHERE, *OF.get(architecture(config), {}), *SAME_FUNCTION}
    harmless |= NOT_USED.get(name, set())
    found = outcome(read, changed(config, path, value), tensors)
    before = functools.reduce(lambda values, key: values[key], path, config)
    same = value == before or says_nothing(value) or path[0] in harmless
    assert same or found is None or found[0] != model_of(name), f"{path}={value!r} is not used"


@every_folder
@settings(max_examples=25)
@given(data=st.data())
def test_any_value_of_any_field_gives_a_model_or_one_line(name, data):
    path = data.draw(st.sampled_from(list(places(opened(name)[0]))))
    check_any_value_gives_a_model_or_one_line(name, path, data.draw(JSON))


@pytest.mark.slow
@every_folder
@settings(max_examples=600)
@given(data=st.data())
def test_any_value_of_any_field_gives_a_model_or_one_line_at_length(name, data):
    path = data.draw(st.sampled_from(list(places(opened(name)[0]))))
    check_any_value_gives_a_model_or_one_line(name, path, data.draw(JSON))


@pytest.mark.slow
@every_folder
def test_no_field_takes_an_odd_number(name):
    for path in places(opened(name)[0]):
        for value in (*NUMBERS, True, False, "", [], {}, "x", [1], {"x": 1}):
            check_any_value_gives_a_model_or_one_line(name, path, value)


@pytest.mark.parametrize(
    "part", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
@every_folder
def test_every_field_may_be_missing_or_null(name, part):
    """A third of the fields; folders begin at different ones, so that by default each is tried."""
    config, tensors = opened(name)
    for field in [*config][(NAMES.index(name) + part) % 3 :: 3]:
        check_any_value_gives_a_model_or_one_line(name, (field,), None)
        outcome(read, {key: x for key, x in config.items() if key != field}, tensors)


STRANGE_FIELDS = st.sampled_from(
    [
        "final_logit_softcapping",
        "attn_logit_softcapping",
        "attention_sink",
        "query_pre_attn_scalar",
        "residual_multiplier",
        "no_rope_layers",
        "new_in_6_0",
    ]
) | st.text("abc_", min_size=3, max_size=12).map("field_{}".format)


@every_folder
@given(field=STRANGE_FIELDS, value=JSON.filter(lambda value: value is not None))
def test_a_field_that_is_not_known_is_refused_by_name_and_value(name, field, value):
    config, tensors = opened(name)
    assume(field not in config)
    message = refusal(read, {**config, field: value}, tensors)
    assert field in message
    if isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 10**50):
        assert f"{field}={value!r} " in message


@every_folder
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor=0.25"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantized ('fp8')"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized ('gptq')"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantized ('bitsandbytes')"),
        ({"quantization_config": 4}, "quantized (4)"),
        ({"model_type": "bert"}, "model_type='bert' is not that of its architecture"),
        ({"architectures": ["LlamaForCausalLM", "x"]}, "architectures="),
        ({"is_encoder_decoder": True}, "is_encoder_decoder=True"),
    ],
)
def test_what_would_change_the_function_is_named(name, change, words):
    config, tensors = opened(name)
    assert words in refusal(read, {**config, **change}, tensors)


PARTLY_TURNED = (
    "hf_bamba",
    "hf_glm4",
    "hf_glm4_moe",
    "hf_qwen3_next",
    "hf_qwen3_5",
    "hf_qwen3_5_moe",
)
"""Folders of classes that turn a part of a head where nothing is said."""


@every_folder
def test_neutral_values_and_nulls_change_nothing(name):
    config, tensors = opened(name)
    neutral = {**NEUTRAL, "not_known": None}
    if name in PARTLY_TURNED:
        del neutral["partial_rotary_factor"]
    assert read({**neutral, **config}, tensors)[0] == model_of(name)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("hf_llama", {"rope_scaling": {"factor": 2.0}}, "rope_scaling="),
        ("hf_llama", {"rope_theta": 1e6}, "rope_theta=1000000.0"),
        ("hf_llama", {"rope_parameters": {"factor": 2.0}}, "rope_parameters.factor=2.0"),
        (
            "hf_llama",
            {"rope_parameters": {"rope_theta": 5e3, "partial_rotary_factor": 0.25}},
            "rope_parameters.partial_rotary_factor=0.25",
        ),
        ("hf_llama", {"attention_bias": 1}, "attention_bias=1 of model_type llama is neither"),
        ("hf_llama", {"hidden_size": 24.0}, "hidden_size=24.0"),
        ("hf_llama", {"hidden_size": None}, "has no hidden_size"),
        ("hf_qwen2", {"layer_types": ["sliding_attention"] * 2}, "layer_types="),
        ("hf_qwen2", {"attention_bias": False}, "attention_bias=False"),
        ("hf_mixtral", {"num_experts": 5}, "num_experts=5"),
        ("hf_mamba", {"expand": 3}, "expand=3"),
        ("hf_mamba2", {"expand": 3}, "expand=3"),
        ("hf_mamba2", {"use_conv_bias": False}, "conv1d.bias"),
        ("hf_mamba2", {"time_step_limit": [1.0, 0.5]}, "time_step_limit="),
        ("hf_falcon_h1", {"mamba_d_head": 16}, "mamba_d_head=16"),
        ("hf_falcon_h1", {"mlp_multipliers": [1.0]}, "mlp_multipliers=[1.0]"),
        ("hf_deepseek_v3", {"scoring_func": "softmax"}, "scoring_func='softmax'"),
        ("hf_deepseek_v3", {"num_key_value_heads": 2}, "num_key_value_heads=2"),
        ("hf_deepseek_v3", {"num_mtp_layers": -1}, "num_mtp_layers=-1"),
        ("hf_deepseek_v3", {"topk_group": 5}, "chosen_groups"),
        ("hf_gpt_oss", {"swiglu_limit": 0.0}, "swiglu_limit=0.0"),
        ("hf_gpt_oss", {"sliding_window": None}, "layer_types="),
        ("hf_glm4_moe", {"use_qk_norm": False}, "k_norm.weight"),
        ("hf_mixtral", {"hidden_act": "relu"}, "silu, gelu, gelu_pytorch_tanh alone"),
        ("hf_deepseek_v3_plain", {"q_lora_rank": 0}, "q_lora_rank=0"),
        ("hf_parscale", {"parscale_n": 1}, "aggregate_layer"),
        ("hf_parscale", {"parscale_attn_smooth": 7}, "smoothing"),
    ],
)
def test_a_field_that_contradicts_is_named(name, change, words):
    config, tensors = opened(name)
    assert words in refusal(read, {**config, **change}, tensors)


OF_THE_ORIGINAL = {
    "d_model": 24,
    "d_inner": 48,
    "n_layer": 2,
    "rms_norm": True,
    "ssm_cfg": {},
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 8,
}
"""What published folders of Mamba have besides, in the sizes of the golden one."""


def test_the_original_code_s_names_are_read_and_must_say_the_same():
    config, tensors = opened("hf_mamba")
    assert read({**config, **OF_THE_ORIGINAL}, tensors)[0] == model_of("hf_mamba")
    for field, value in {"d_model": 25, "d_inner": 49, "n_layer": 3, "rms_norm": False}.items():
        assert f"{field}={value}" in refusal(read, {**config, field: value}, tensors)


def test_each_list_of_harmless_fields_says_why():
    for listed in (EVERYWHERE, *OF.values()):
        assert all(len(why.split()) >= 3 for why in listed.values())


def test_fields_remember_what_was_asked_for():
    fields = Fields({"a": 1, "b": {"c": 2, "d": 3}})
    assert (fields.size("a"), fields.part("b").size("c")) == (1, 2)
    with pytest.raises(UserError, match=r"config.json: b.d=3"):
        fields.check_all_used((), {})
    assert fields.part("b").get("d") == 3
    fields.check_all_used((), {})
