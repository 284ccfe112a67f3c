"""Mixtures of experts from Hugging Face's configurations: sizes, and what is refused."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from gam_jax.convert.folder import read_config, read_tensors
from gam_jax.convert.hf import FAMILIES, from_hf, read, write
from gam_jax.convert.patterns import blocks_of
from gam_jax.convert.unsupported import UNSUPPORTED
from gam_jax.layers import Attention, Block, MoE, RMSNorm, Series, Stack
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
        ({"shared": 1, "router": Router()}, "ffn.shared=0 where|balance_over='layers' where"),
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


def in_halves(x):
    """Queries or the shared key whose neighbouring turned channels become halves."""
    turned = x[..., -4:]
    return np.concatenate([x[..., :-4], turned[..., ::2], turned[..., 1::2]], axis=-1)


def as_a_run_had_it_before(model, params):
    """Two stacks in a series, and halves of heads that turn, as folders were read once."""
    dense, sparse, _ = blocks_of(model)

    def older(block):
        positions = dataclasses.replace(block.mixer.positions, neighbours=False)
        return dataclasses.replace(
            block, mixer=dataclasses.replace(block.mixer, positions=positions)
        )

    def halved(run):
        mixer = {**run["mixer"]}
        mixer |= {name: in_halves(np.asarray(mixer[name])) for name in ("query", "shared_key")}
        return {**run, "mixer": mixer}

    block = Series(Stack(older(dense), 1), Stack(older(sparse), 2))
    blocks = {"first": halved(params["blocks"]["0"]), "then": halved(params["blocks"]["1"])}
    return dataclasses.replace(model, block=block), {**params, "blocks": blocks}


def test_a_run_of_two_stacks_in_a_series_is_still_written():
    model, params = from_hf(GOLDEN / "hf_deepseek_v3")
    config, tensors = write(*as_a_run_had_it_before(model, params))
    assert (config["first_k_dense_replace"], config["num_hidden_layers"]) == (1, 3)
    assert not config["rope_interleave"]
    again, same = read(config, tensors)
    expected = np.load(GOLDEN / "hf_deepseek_v3" / "expected.npz")
    again = again.for_length(expected["tokens"].shape[1])
    logits, _ = jax.jit(again)(same, expected["tokens"])
    np.testing.assert_allclose(logits, expected["logits"], atol=2e-4)


def test_gpt_oss_is_meant_as_published_where_its_config_says_nothing():
    sizes = {"hidden_size": 2880, "intermediate_size": 2880, "num_attention_heads": 64}
    sizes |= {"num_hidden_layers": 4, "num_local_experts": 32, "vocab_size": 201_088}
    blocks: list[Any] = blocks_of(FAMILIES["GptOssForCausalLM"].model(sizes))
    assert [block.mixer.window for block in blocks] == [128, 0, 128, 0]
    mixer, ffn = blocks[1].mixer, blocks[1].ffn
    assert (mixer.rotary, mixer.context, mixer.out_bias) == (150_000, 131_072, True)
    positions = mixer.positions
    assert (positions.kind, positions.factor, positions.original) == ("yarn", 32, 4096)
    assert not positions.whole
    assert (ffn.chosen, ffn.ffn.alpha, ffn.ffn.clamp) == (4, 1.702, 7)


@pytest.mark.parametrize("official", UNSUPPORTED)
def test_a_known_class_that_is_not_read_is_named_with_the_reason(official):
    with pytest.raises(UserError, match=f"{official} is not read here: ") as raised:
        read({"architectures": [official]}, {})
    assert UNSUPPORTED[official] in str(raised.value)
    assert official not in FAMILIES


@pytest.mark.parametrize("name", ["hf_glm4_moe", "hf_deepseek_v2"])
def test_a_router_that_chooses_among_all_groups_is_written(name):
    model, params = from_hf(GOLDEN / name)
    block: Any = blocks_of(model)[1]
    changed = with_router(model, dataclasses.replace(block.ffn.router, groups=1, chosen_groups=0))
    config, _ = write(changed, params, read_config(GOLDEN / name)["architectures"][0])
    assert config.get("topk_group", 1) == config.get("n_group", 1) == 1


def with_router(model, router):
    """The model whose experts are chosen so."""
    pattern = model.block
    dense, block = pattern.layers
    other = dataclasses.replace(block, ffn=dataclasses.replace(block.ffn, router=router))
    return dataclasses.replace(model, block=dataclasses.replace(pattern, layers=(dense, other)))


def test_a_sigmoid_router_without_a_balance_bias_is_refused():
    model, params = from_hf(GOLDEN / "hf_glm4_moe")
    block: Any = blocks_of(model)[1]
    changed = with_router(model, dataclasses.replace(block.ffn.router, bias_step=0.0))
    with pytest.raises(UserError, match=r"bias_step=0.001 where .*bias_step=0\.0"):
        write(changed, params, "Glm4MoeForCausalLM")


def test_blocks_of_experts_before_dense_ones_are_refused():
    model, params = from_hf(GOLDEN / "hf_glm4_moe")
    pattern: Any = model.block
    turned = dataclasses.replace(pattern, layers=pattern.layers[::-1])
    with pytest.raises(UserError, match="Glm4MoeForCausalLM of transformers has block"):
        write(dataclasses.replace(model, block=turned), params, "Glm4MoeForCausalLM")
