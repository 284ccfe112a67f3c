"""Fields that a class of Hugging Face transformers may have, and values to draw them from.

What is drawn is laid over the first configuration of the class in `families`. Each value is legal
whatever the others are; values that depend on one another are drawn as one, an object under
`TOGETHER`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Values = Mapping[str, tuple[Any, ...]]

TOGETHER = "together"

FULL, SLIDING = "full_attention", "sliding_attention"
DEFAULT = {"rope_type": "default", "rope_theta": 300.0}
LINEAR = {"rope_type": "linear", "rope_theta": 80.0, "factor": 3.0}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 200.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 3.0,
    "beta_slow": 0.5,
}
PLAIN = (DEFAULT, LINEAR, DYNAMIC, LLAMA3, YARN)
POSITIONS = (*PLAIN, {**YARN, "attention_factor": 1.3})
POSITIONS += ({**YARN, "truncate": False}, {**YARN, "mscale": 0.7, "mscale_all_dim": 1.2})

SIZES: Values = {
    "vocab_size": (29, 48),
    "intermediate_size": (12, 20),
    "rms_norm_eps": (1e-6, 1e-4, 3e-3),
    "tie_word_embeddings": (True, False),
}
HEADS: Values = {
    **SIZES,
    "num_hidden_layers": (1, 2, 3),
    "num_key_value_heads": (1, 2, 4),
    "attention_bias": (True, False),
    "rope_parameters": POSITIONS,
}
WIDE: Values = {**HEADS, "head_dim": (4, 6, 10)}
THREE: Values = {"num_hidden_layers": (3,), "sliding_window": (4, 7)}
KINDS: Values = {**THREE, "layer_types": ([FULL, SLIDING, SLIDING], [SLIDING, FULL, FULL])}
QWEN: Values = {
    **HEADS,
    **THREE,
    "use_sliding_window": (True, False),
    "max_window_layers": (0, 1, 2),
}
BETWEEN: Values = {"query_pre_attn_scalar": (5, 11)}
CAP: Values = {"final_logit_softcapping": (None, 1.5)}
EXPERTS: Values = {
    "num_hidden_layers": (1, 2, 3),
    "rms_norm_eps": (1e-6, 3e-3),
    "tie_word_embeddings": (True, False),
    "rope_parameters": POSITIONS,
    "num_experts_per_tok": (1, 2, 4),
}
DEEP: Values = {
    "rms_norm_eps": (1e-6, 3e-3),
    "tie_word_embeddings": (True, False),
    "first_k_dense_replace": (0, 1, 2, 3),
    "n_shared_experts": (0, 1, 2),
    "attention_bias": (True, False),
    "routed_scaling_factor": (1.0, 1.7),
    TOGETHER: (
        {"n_routed_experts": 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3},
        {"n_routed_experts": 6, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2},
        {"n_routed_experts": 6, "n_group": 3, "topk_group": 2, "num_experts_per_tok": 4},
    ),
}
LATENT: Values = {
    "q_lora_rank": (None, 12),
    "v_head_dim": (5, 8),
    "rope_parameters": (
        DEFAULT,
        {**LINEAR, "mscale_all_dim": 0.7},
        {**YARN, "mscale": 0.8, "mscale_all_dim": 1.2},
        {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    ),
}


LINEAR_KINDS = ["linear_attention", FULL, "linear_attention"]
NEXT: Values = {
    "vocab_size": (29, 32),
    "rms_norm_eps": (1e-6, 3e-3),
    "tie_word_embeddings": (True, False),
    "attention_bias": (True, False),
    "num_key_value_heads": (1, 2, 4),
    "rope_parameters": tuple({**one, "partial_rotary_factor": 0.5} for one in (DEFAULT, LINEAR)),
    "linear_num_value_heads": (2, 4, 6),
    "linear_key_head_dim": (3, 4),
    "linear_value_head_dim": (2, 5),
    "linear_conv_kernel_dim": (2, 4),
}
NEXT_EXPERTS: Values = {
    **NEXT,
    "num_experts": (4, 5),
    "num_experts_per_tok": (1, 3),
    "shared_expert_intermediate_size": (12, 24, 30),
}
SSM: Values = {
    "vocab_size": (29, 32),
    "rms_norm_eps": (1e-6, 3e-3),
    "tie_word_embeddings": (True, False),
    "num_key_value_heads": (1, 2, 4),
    "mamba_n_groups": (1, 2, 4),
    "mamba_d_state": (3, 5),
    "mamba_d_conv": (2, 4),
    "mamba_conv_bias": (True, False),
    "mamba_proj_bias": (True, False),
    "time_step_limit": ([0.1, 0.8], [0.3, math.inf]),
    "attention_bias": (True, False),
    "rope_parameters": (DEFAULT, LINEAR, LLAMA3, YARN),
}
MULTIPLIERS: Values = {
    "embedding_multiplier": (1.0, 12.0),
    "residual_multiplier": (1.0, 0.22),
    "attention_multiplier": (1.0, 0.015625),
    "logits_scaling": (1.0, 3.0),
}


def fields(drawn: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a config.json, given what was drawn of `Values`."""
    return {**without(drawn, TOGETHER), **drawn.get(TOGETHER, {})}


def without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """All of them but for some."""
    return {name: drawn for name, drawn in values.items() if name not in names}


LEGAL: Mapping[str, Values] = {
    "Llama": {**WIDE, "mlp_bias": (True, False)},
    "Mistral": {**without(WIDE, "attention_bias"), "sliding_window": (None, 3, 30)},
    "Qwen2": without(QWEN, "attention_bias"),
    "Qwen3": {**QWEN, "head_dim": (4, 6)},
    "SmolLM3": {
        **HEADS,
        "num_hidden_layers": (3,),
        "mlp_bias": (True, False),
        "no_rope_layers": ([1, 1, 0], [0, 0, 1], [1, 1, 1]),
    },
    "Gemma": WIDE,
    "Gemma2": {**WIDE, **KINDS, **BETWEEN, **CAP, "attn_logit_softcapping": (None, 0.8)},
    "Gemma3": {
        **without(WIDE, "rope_parameters"),
        **KINDS,
        **BETWEEN,
        **CAP,
        "rope_parameters": tuple({FULL: one, SLIDING: DEFAULT} for one in POSITIONS),
    },
    "Olmo2": HEADS,
    "Olmo3": {**without(HEADS, "rope_parameters"), **KINDS},
    "Phi3": {
        **without(HEADS, "attention_bias", "rope_parameters"),
        "sliding_window": (None, 5),
        "partial_rotary_factor": (0.5, 1.0),
        "rope_parameters": (DEFAULT,),
    },
    "Glm4": {**WIDE, "head_dim": (4, 8), "rope_parameters": (DEFAULT, LINEAR)},
    "Mixtral": {
        **EXPERTS,
        "sliding_window": (None, 5),
        "num_local_experts": (4, 5),
        "num_key_value_heads": (1, 2),
        "head_dim": (4, 6),
    },
    "Qwen3Moe": {
        **EXPERTS,
        "num_hidden_layers": (3,),
        "norm_topk_prob": (True, False),
        "attention_bias": (True, False),
        "mlp_only_layers": ([], [0], [2]),
        "intermediate_size": (20,),
        "decoder_sparse_step": (1, 2),
    },
    "GptOss": {
        **EXPERTS,
        "num_hidden_layers": (3,),
        "attention_bias": (True, False),
        "sliding_window": (4, 7),
        "swiglu_alpha": (1.0, 1.702),
        "swiglu_limit": (0.5, 7.0),
        "rope_parameters": PLAIN,
    },
    "Glm4Moe": {
        **DEEP,
        "norm_topk_prob": (True, False),
        "use_qk_norm": (True, False),
        "partial_rotary_factor": (0.5,),
        "rope_parameters": (DEFAULT,),
    },
    "DeepseekV2": {
        **DEEP,
        **LATENT,
        "n_shared_experts": (1, 2),
        "topk_method": ("greedy", "group_limited_greedy"),
    },
    "DeepseekV3": {
        **DEEP,
        **LATENT,
        "norm_topk_prob": (True, False),
        "rope_interleave": (True, False),
    },
    "Qwen3Next": {
        **NEXT_EXPERTS,
        "norm_topk_prob": (True, False),
        "mlp_only_layers": ([], [0], [1, 2]),
        "layer_types": ([FULL, *LINEAR_KINDS], [*LINEAR_KINDS, "linear_attention"]),
    },
    "Qwen3_5": {**NEXT, "layer_types": (LINEAR_KINDS, [FULL, FULL, "linear_attention"])},
    "Qwen3_5Moe": NEXT_EXPERTS,
    "KimiLinear": {
        "vocab_size": (29, 32),
        "rms_norm_eps": (1e-6, 3e-3),
        "attention_bias": (True, False),
        "layer_types": (LINEAR_KINDS, [FULL, FULL, "linear_attention"]),
        "mlp_layer_types": (["dense", "sparse", "sparse"], ["sparse"] * 3),
        "linear_head_dim": (3, 4),
        "linear_num_heads": (2, 3),
        "linear_conv_kernel_dim": (2, 4),
        "q_lora_rank": (None, 6),
        "v_head_dim": (5, 8),
        "n_shared_experts": (1, 2),
        "norm_topk_prob": (True, False),
        "routed_scaling_factor": (1.0, 1.7),
    },
    "OlmoHybrid": {
        "vocab_size": (29, 32),
        "rms_norm_eps": (1e-6, 3e-3),
        "tie_word_embeddings": (True, False),
        "attention_bias": (True, False),
        "num_key_value_heads": (1, 2, 4),
        "layer_types": (LINEAR_KINDS, [FULL, FULL, "linear_attention"]),
        "linear_conv_kernel_dim": (2, 4),
        "linear_allow_neg_eigval": (True, False),
        "rope_parameters": (DEFAULT, {"rope_type": "default", "rope_theta": None}),
        TOGETHER: (  # channels that transformers' thirds leave whole
            {"linear_key_head_dim": 6, "linear_value_head_dim": 3},
            {"linear_key_head_dim": 4, "linear_value_head_dim": 2},
        ),
    },
    "Granite": {**HEADS, **MULTIPLIERS, "mlp_bias": (True, False)},
    "Bamba": {**SSM, "mlp_bias": (True, False), "attn_layer_indices": ([], [1], [0, 2], None)},
    "GraniteMoeHybrid": {
        **SSM,
        **MULTIPLIERS,
        "shared_intermediate_size": (8, 14),
        "position_embedding_type": (None, "rope", "nope"),
        "layer_types": (None, ["mamba", "mamba", "attention"], [FULL, FULL, "linear_attention"]),
        TOGETHER: (
            {"num_local_experts": 0},
            {"num_local_experts": 4, "num_experts_per_tok": 3},
        ),
    },
    "NemotronH": {
        "vocab_size": (29, 32),
        "layer_norm_epsilon": (1e-6, 3e-3),
        "num_key_value_heads": (1, 2, 4),
        "mamba_num_heads": (3, 6),
        "n_groups": (1, 3),
        "ssm_state_size": (3, 5),
        "conv_kernel": (2, 4),
        "use_bias": (True, False),
        "use_conv_bias": (True, False),
        "time_step_min": (0.001, 0.3),
        "mlp_hidden_act": ("relu2", "relu", "silu", "gelu"),
        "moe_intermediate_size": (8, 12),
        "moe_shared_expert_intermediate_size": (9, 14),
        "norm_topk_prob": (True, False),
        "routed_scaling_factor": (1.0, 1.7),
        "num_experts_per_tok": (1, 2),
        TOGETHER: (
            {"layers_block_type": ["linear_attention", "mlp", FULL, "mlp"], "mlp_bias": True},
            {"layers_block_type": [FULL, "moe"], "mlp_bias": False, "n_routed_experts": 4},
            {
                "layers_block_type": ["mamba", "moe", "attention", "mlp"],
                "mlp_bias": False,
                "n_routed_experts": 6,
                "n_group": 3,
                "topk_group": 2,
            },
        ),
    },
    "Jamba": {
        **without(SSM, "mamba_n_groups", "time_step_limit", "attention_bias", "rope_parameters"),
        "attn_layer_period": (3, 5),
        "attn_layer_offset": (0, 1, 2),
        "mamba_dt_rank": ("auto", 1, 5),
        "mamba_expand": (1, 2),
        TOGETHER: (
            {"num_experts": 1, "num_experts_per_tok": 1},
            {"num_experts": 3, "expert_layer_period": 1, "expert_layer_offset": 0},
            {"num_experts": 4, "num_experts_per_tok": 3},
        ),
    },
    "Mamba": {
        "vocab_size": (29, 48),
        "state_size": (4, 6),
        "conv_kernel": (2, 4),
        "expand": (1, 2),
        "time_step_rank": (3, 5),
        "use_bias": (True, False),
        "use_conv_bias": (True, False),
        "layer_norm_epsilon": (1e-5, 3e-3),
        "tie_word_embeddings": (True, False),
    },
    "Mamba2": {
        "vocab_size": (29, 48),
        "state_size": (4, 6),
        "conv_kernel": (2, 4),
        "n_groups": (1, 2, 3),
        "use_bias": (True, False),
        "use_conv_bias": (True, False),
        "layer_norm_epsilon": (1e-5, 3e-3),
        "tie_word_embeddings": (True, False),
    },
    "FalconH1": {
        "vocab_size": (29, 48),
        "mamba_d_state": (6, 12),
        "mamba_n_groups": (1, 2, 3),
        "mamba_rms_norm": (True, False),
        "mamba_proj_bias": (True, False),
        "mamba_conv_bias": (True, False),
        "projectors_bias": (True, False),
        "attention_bias": (True, False),
        "mlp_bias": (True, False),
        "mamba_norm_before_gate": (True, False),
        "rms_norm_eps": (1e-5, 3e-3),
        "tie_word_embeddings": (True, False),
        "key_multiplier": (0.6, 1.0),
        "lm_head_multiplier": (0.6, 1.0),
    },
}
"""Class, without its ending -> field -> values."""
