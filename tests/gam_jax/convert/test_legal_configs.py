"""Of any legal config.json of a class with experts: what is written of its model gives it again."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gam_jax.convert.hf import FAMILIES, read, write
from tests.examples import random_like

flags, eps = st.booleans(), st.sampled_from([1e-6, 1e-5, 3e-4])
sizes = st.integers(1, 6)


@st.composite
def positions(draw):
    """rope_parameters of any kind that needs no list of divisors."""
    found = {"rope_theta": draw(st.sampled_from([50.0, 1e4, 1.5e5])), "rope_type": "default"}
    kind = draw(st.sampled_from(["default", "linear", "dynamic", "yarn", "llama3"]))
    if kind != "default":
        found |= {"rope_type": kind, "factor": draw(st.sampled_from([1.5, 4.0, 40.0]))}
    if kind in ("yarn", "llama3"):
        found["original_max_position_embeddings"] = 16
    if kind == "yarn":
        found |= {"truncate": draw(flags), "beta_fast": 2.0, "beta_slow": 0.5}
    if kind == "llama3":
        found |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return found


@st.composite
def heads(draw):
    groups = draw(st.integers(1, 3))
    return {
        "num_attention_heads": groups * draw(st.integers(1, 2)),
        "num_key_value_heads": groups,
        "head_dim": 2 * draw(st.integers(1, 4)),
    }


@st.composite
def latents(draw):
    count = draw(st.integers(1, 3))
    found = {"num_attention_heads": count, "num_key_value_heads": count}
    for name in ("kv_lora_rank", "qk_nope_head_dim", "v_head_dim"):
        found[name] = draw(sizes)
    found["qk_rope_head_dim"] = 2 * draw(st.integers(1, 3))
    return found | {"q_lora_rank": draw(st.none() | sizes)}


@st.composite
def experts(draw, count, grouped=True):
    """`count`: the field that says how many there are."""
    groups = draw(st.integers(1, 3)) if grouped else 1
    chosen = draw(st.integers(1, groups))
    each = draw(st.integers(1, 3))
    found = {count: groups * each, "num_experts_per_tok": draw(st.integers(1, chosen * each))}
    return found | ({"n_group": groups, "topk_group": chosen} if grouped else {})


@st.composite
def common(draw):
    return {
        "vocab_size": 8,
        "hidden_size": 2 * draw(sizes),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "intermediate_size": draw(sizes),
        "moe_intermediate_size": draw(sizes),
        "max_position_embeddings": 64,
        "rms_norm_eps": draw(eps),
        "tie_word_embeddings": draw(flags),
    }


def joined(*parts, **fields):
    """The fields of all of these."""
    merged = st.tuples(*parts).map(lambda found: {k: v for one in found for k, v in one.items()})
    return st.tuples(merged, st.fixed_dictionaries(fields)).map(lambda pair: pair[0] | pair[1])


scales = st.sampled_from([1.0, 2.5, 16.0])
mscales = st.sampled_from([0.0, 0.707, 1.0, 1.3])
DEEP = {
    "first_k_dense_replace": st.integers(0, 4),
    "n_shared_experts": st.integers(0, 2),
    "attention_bias": flags,
    "routed_scaling_factor": scales,
}


@st.composite
def with_mscales(draw):
    """Positions with the scales that DeepSeek's configurations have besides."""
    found = draw(positions())
    if found["rope_type"] != "default":
        found["mscale_all_dim"] = draw(mscales)
    if found["rope_type"] == "yarn":
        found["mscale"] = draw(mscales)
    return found


CONFIGS = {
    "MixtralForCausalLM": joined(
        common(),
        heads(),
        experts("num_local_experts", grouped=False),
        sliding_window=st.none() | sizes,
        hidden_act=st.sampled_from(["silu", "gelu", "gelu_pytorch_tanh"]),
        rope_parameters=positions(),
    ),
    "Qwen3MoeForCausalLM": joined(
        common(),
        heads(),
        experts("num_experts", grouped=False),
        attention_bias=flags,
        norm_topk_prob=flags,
        use_sliding_window=flags,
        sliding_window=sizes,
        mlp_only_layers=st.sampled_from([[], [0], [1, 2]]).map(list),
        rope_parameters=positions(),
    ).filter(lambda config: {*range(config["num_hidden_layers"])} - {*config["mlp_only_layers"]}),
    "GptOssForCausalLM": joined(
        common(),
        heads(),
        experts("num_local_experts", grouped=False),
        attention_bias=flags,
        sliding_window=sizes,
        swiglu_alpha=st.sampled_from([1.0, 1.702]),
        swiglu_limit=st.sampled_from([0.5, 7.0]),
        rope_parameters=positions(),
    ),
    "Glm4MoeForCausalLM": joined(
        common(),
        heads(),
        experts("n_routed_experts"),
        **DEEP,
        norm_topk_prob=flags,
        use_qk_norm=flags,
        partial_rotary_factor=st.just(1.0),
        rope_parameters=positions(),
    ),
    "DeepseekV2ForCausalLM": joined(
        common(),
        latents(),
        experts("n_routed_experts"),
        **DEEP,
        topk_method=st.sampled_from(["greedy", "group_limited_greedy"]),
        rope_parameters=with_mscales(),
    ),
    "DeepseekV3ForCausalLM": joined(
        common(),
        latents(),
        experts("n_routed_experts"),
        **DEEP,
        norm_topk_prob=flags,
        rope_interleave=flags,
        rope_parameters=with_mscales(),
    ),
}
"""Class -> its legal configurations, in small sizes."""


every_class = pytest.mark.parametrize("official", CONFIGS)


def model_of(official, config):
    return FAMILIES[official].model(config)


@every_class
@settings(max_examples=20)
@given(data=st.data())
def test_the_config_that_is_written_of_a_model_gives_it_again(official, data):
    model = model_of(official, data.draw(CONFIGS[official]))
    assert model_of(official, FAMILIES[official].config(model)) == model


@pytest.mark.slow
@every_class
@settings(max_examples=30)
@given(data=st.data())
def test_what_is_written_of_a_model_gives_it_again(official, data):
    model = model_of(official, data.draw(CONFIGS[official]))
    params = random_like(model.table())
    again, same = read(*write(model, params, official))
    assert again == model
    for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(same), strict=True):
        np.testing.assert_array_equal(ours, theirs)
