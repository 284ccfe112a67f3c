"""Mixtures of experts from Hugging Face's configurations: sizes, and what is refused."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from gam_jax.convert.folder import read_config, read_tensors
from gam_jax.convert.hf import FAMILIES, read, write
from gam_jax.layers import Attention, Block, MoE, RMSNorm
from gam_jax.ops.routing import Router
from gam_jax.params import count_params
from sharding.errors import UserError
from tests.examples import random_like
from tests.gam_jax.convert.test_hf import GOLDEN

MIXTRAL = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "rope_theta": 1e6,
    "sliding_window": None,
}
QWEN3 = {
    "hidden_size": 2048,
    "head_dim": 128,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
}
DEEPSEEK = {
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "first_k_dense_replace": 3,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 129280,
    "max_position_embeddings": 163840,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
}


def deepseek_by_hand(experts):
    """The parameters of DeepSeek-V3 if a token used that many routed experts, term by term."""
    width, heads = 7168, 128
    queries = width * 1536 + 1536 + 1536 * heads * (128 + 64)
    keys = width * (512 + 64) + 512 + 512 * heads * (128 + 128)
    attention = queries + keys + heads * 128 * width
    dense = 3 * width * 18432
    sparse = width * 256 + 256 + (experts + 1) * 3 * width * 2048
    return 2 * 129280 * width + width + 61 * (attention + 2 * width) + 3 * dense + 58 * sparse


@pytest.mark.parametrize(
    ("official", "config", "total", "active"),
    [
        ("MixtralForCausalLM", MIXTRAL, 46_702_792_704, 12_879_925_248),
        ("Qwen3MoeForCausalLM", QWEN3, 30_532_122_624, 3_353_032_704),
        ("DeepseekV3ForCausalLM", DEEPSEEK, deepseek_by_hand(256), deepseek_by_hand(8)),
    ],
)
def test_published_configurations_have_the_published_parameters(official, config, total, active):
    model = FAMILIES[official].model(config)
    table = model.table()
    assert count_params(table) == total
    assert count_params(table, config["num_experts_per_tok"]) == active


def test_deepseek_has_671_billion_parameters_of_which_a_token_uses_37():
    """Published: 671B and 37B; transformers counts the balance biases as buffers."""
    assert deepseek_by_hand(256) - 58 * 256 == 671_026_404_352
    assert round(deepseek_by_hand(8) / 1e9, 1) == 37.6


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("hf_mixtral", {"attention_bias": True}, "attention_bias=True of model_type mixtral"),
        ("hf_qwen3_moe", {"decoder_sparse_step": 2}, "has no .*mlp.gate_proj.weight"),
        ("hf_qwen3_moe", {"mlp_only_layers": ["0"]}, "mlp_only_layers=.* no list of numbers"),
        ("hf_qwen3_moe", {"num_local_experts": 9}, r"mlp.gate.weight' has .*\(8, 16\).*\(9, 16\)"),
        ("hf_deepseek_v3", {"attention_bias": True}, "has no .*q_a_proj.bias"),
        ("hf_glm4_moe", {"topk_method": "greedy"}, "topk_method='greedy'"),
        ("hf_gpt_oss", {"hidden_act": "gelu"}, "hidden_act='gelu'.*'silu' alone"),
        ("hf_gpt_oss", {"num_local_experts": 5}, r"gate_up_proj' has .*\(4, 16, 24\)"),
        ("hf_deepseek_v3", {"rope_parameters": {"rope_type": "axial"}}, "rope_type='axial'"),
        ("hf_deepseek_v3", {"kv_lora_rank": 9}, "kv_a_proj_with_mqa.weight' has the shape"),
    ],
)
def test_what_is_not_known_is_refused_in_one_line(name, changes, message):
    folder = GOLDEN / name
    with pytest.raises(UserError, match=message) as raised:
        read({**read_config(folder), **changes}, read_tensors(folder))
    assert "\n" not in str(raised.value)


def written(model, **fields):
    """The architecture that a model with other fields of its feed-forward is written as."""
    block: Any = model.block
    own = dataclasses.replace(block, ffn=dataclasses.replace(block.ffn, **fields))
    other = dataclasses.replace(model, block=own)
    return write(other, random_like(other.table()))[0]["architectures"]


def test_what_transformers_lacks_is_refused():
    block = Block(Attention(), MoE(router=Router(balance_over="layers", z=0.0)), RMSNorm())
    model = dataclasses.replace(
        FAMILIES["MixtralForCausalLM"].model({**MIXTRAL, "num_hidden_layers": 1}),
        block=block,
        width=8,
        vocab=16,
    )
    assert written(model) == ["MixtralForCausalLM"]
    for fields, message in (
        ({"router": Router()}, "ffn.router.balance_over='layers' where"),
        ({"shared": 1}, "ffn.shared=0 where"),
        ({"ffn": dataclasses.replace(block.ffn.ffn, bias=True, width=None)}, "without biases"),
    ):
        with pytest.raises(UserError, match=message):
            written(model, **fields)


def test_weights_without_renormalising_are_read_as_that():
    config, tensors = read_config(GOLDEN / "hf_qwen3_moe"), read_tensors(GOLDEN / "hf_qwen3_moe")
    model, params = read({**config, "norm_topk_prob": False}, tensors)
    block: Any = model.block
    assert not block.ffn.router.renormalise
    again, arrays = write(model, params)
    assert again["norm_topk_prob"] is False
    np.testing.assert_array_equal(arrays["lm_head.weight"], tensors["lm_head.weight"])
