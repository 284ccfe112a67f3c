"""Tiny configurations of state spaces, linear memories and hybrids of Hugging Face transformers."""

from __future__ import annotations

from typing import Any

from experiments.selftest.attention_families import FULL, GRANITE, SMALL

FALCON = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "mamba_d_ssm": 48,
    "mamba_n_heads": 6,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 12,
    "mamba_d_conv": 4,
    "mamba_chunk_size": 8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "lm_head_multiplier": 0.6,
    "embedding_multiplier": 2.5,
    "mlp_multipliers": [0.8, 0.7],
    "key_multiplier": 0.6,
    "attention_in_multiplier": 0.9,
    "attention_out_multiplier": 0.85,
    "ssm_multipliers": [0.9, 0.8, 1.2, 1.3, 0.7],
    "ssm_in_multiplier": 1.25,
    "ssm_out_multiplier": 0.75,
}
MAMBA_2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 4,
    "mamba_n_groups": 2,
    "mamba_d_state": 5,
    "mamba_d_conv": 3,
    "mamba_chunk_size": 8,
}
NEMOTRON = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "mamba_num_heads": 6,
    "mamba_head_dim": 4,
    "n_groups": 3,
    "ssm_state_size": 5,
    "conv_kernel": 3,
    "chunk_size": 8,
    "layer_norm_epsilon": 1e-3,
    "max_position_embeddings": 64,
}
DELTAS = {
    **SMALL,
    "head_dim": 8,
    "linear_num_value_heads": 6,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 5,
    "linear_conv_kernel_dim": 3,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 500.0,
        "partial_rotary_factor": 0.5,
    },
}
SHARED = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 20,
}
LINEAR = "linear_attention"
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "hf_mamba": (
        "Mamba",
        {"vocab_size": 48, "hidden_size": 24, "state_size": 6, "num_hidden_layers": 2},
    ),
    "hf_mamba2": (
        "Mamba2",
        {
            "vocab_size": 48,
            "hidden_size": 24,
            "num_heads": 6,
            "head_dim": 8,
            "n_groups": 2,
            "state_size": 12,
            "num_hidden_layers": 2,
            "chunk_size": 8,
        },
    ),
    "hf_falcon_h1": ("FalconH1", FALCON),
    "hf_falcon_h1_normed": (
        "FalconH1",
        {
            **FALCON,
            "num_hidden_layers": 1,
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": False,
            "tie_word_embeddings": True,
        },
    ),
    "hf_mamba_biased": (
        "Mamba",
        {"vocab_size": 32, "hidden_size": 18, "state_size": 5, "num_hidden_layers": 2}
        | {"expand": 3, "conv_kernel": 3, "time_step_rank": 4, "layer_norm_epsilon": 1e-3}
        | {"use_bias": True, "use_conv_bias": False, "tie_word_embeddings": False},
    ),
    "hf_mamba2_biased": (
        "Mamba2",
        {"vocab_size": 32, "hidden_size": 18, "num_heads": 9, "head_dim": 6, "n_groups": 3}
        | {"expand": 3, "state_size": 5, "conv_kernel": 3, "num_hidden_layers": 2}
        | {"layer_norm_epsilon": 1e-3, "time_step_limit": [0.2, 0.9], "chunk_size": 8}
        | {"use_bias": True, "use_conv_bias": False, "tie_word_embeddings": True},
    ),
    "hf_falcon_h1_biased": (
        "FalconH1",
        {**FALCON, "num_hidden_layers": 1, "attention_bias": True, "mlp_bias": True}
        | {"mamba_proj_bias": True, "mamba_conv_bias": False, "mamba_rms_norm": True}
        | {"mamba_d_conv": 3, "time_step_limit": [0.1, 0.8], "rms_norm_eps": 1e-3},
    ),
    "hf_bamba": (
        "Bamba",
        {**SMALL, **MAMBA_2, "num_hidden_layers": 3, "attn_layer_indices": [1]}
        | {"attention_bias": True, "mlp_bias": True, "mamba_proj_bias": True}
        | {"mamba_conv_bias": False, "rms_norm_eps": 1e-3, "time_step_limit": [0.1, 0.8]}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
    ),
    "hf_granite4": (
        "GraniteMoeHybrid",
        {**SMALL, **MAMBA_2, **GRANITE, "num_hidden_layers": 3, "attention_bias": True}
        | {"num_local_experts": 3, "intermediate_size": 12, "shared_intermediate_size": 14}
        | {"layer_types": ["linear_attention", FULL, "linear_attention"]}
        | {"position_embedding_type": "rope", "tie_word_embeddings": True},
    ),
    "hf_granite4_dense": (
        "GraniteMoeHybrid",
        {**SMALL, **MAMBA_2, **GRANITE, "num_local_experts": 0, "shared_intermediate_size": 13}
        | {"layer_types": ["linear_attention", FULL], "mamba_proj_bias": True}
        | {"mamba_conv_bias": False, "rms_norm_eps": 1e-3, "mamba_d_head": 8, "mamba_n_heads": 4},
    ),
    "hf_nemotron_h": (
        "NemotronH",
        {**NEMOTRON, "layers_block_type": ["linear_attention", "mlp", FULL, "mlp"]}
        | {"use_bias": True, "mlp_bias": True, "use_conv_bias": False, "time_step_min": 0.2},
    ),
    "hf_nemotron_h_moe": (
        "NemotronH",
        {**NEMOTRON, "layers_block_type": ["linear_attention", "moe", FULL, "moe"]}
        | {"n_routed_experts": 6, "num_experts_per_tok": 2, "n_group": 3, "topk_group": 2}
        | {"moe_intermediate_size": 12, "moe_shared_expert_intermediate_size": 14}
        | {"routed_scaling_factor": 1.7},
    ),
    "hf_jamba": (
        "Jamba",
        {**SMALL, "num_hidden_layers": 4, "attn_layer_period": 3, "attn_layer_offset": 1}
        | {"expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 3}
        | {"intermediate_size": 12}
        | {"num_experts_per_tok": 2, "mamba_d_state": 5, "mamba_d_conv": 3, "mamba_dt_rank": 3}
        | {"mamba_expand": 3, "mamba_proj_bias": True, "mamba_conv_bias": False}
        | {"rms_norm_eps": 1e-3},
    ),
    "hf_qwen3_next": (
        "Qwen3Next",
        {
            **DELTAS,
            **SHARED,
            "num_hidden_layers": 4,
            "num_experts": 3,
            "mlp_only_layers": [1],
            "norm_topk_prob": False,
            "attention_bias": True,
            "rms_norm_eps": 1e-2,
        },
    ),
    "hf_qwen3_5": (
        "Qwen3_5",
        {
            **DELTAS,
            "num_hidden_layers": 3,
            "layer_types": [LINEAR, FULL, LINEAR],
            "tie_word_embeddings": True,
        },
    ),
    "hf_olmo_hybrid": (
        "OlmoHybrid",
        {
            **SMALL,
            "num_hidden_layers": 3,
            "layer_types": [LINEAR, FULL, LINEAR],
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 6,
            "linear_value_head_dim": 3,
            "linear_conv_kernel_dim": 3,
            "rms_norm_eps": 1e-4,
            "rope_parameters": {"rope_type": "default", "rope_theta": None},
            "eos_token_id": None,
        },
    ),
    "hf_kimi_linear": (
        "KimiLinear",
        {
            **SMALL,
            "num_hidden_layers": 3,
            "num_key_value_heads": 4,
            "layer_types": [LINEAR, FULL, LINEAR],
            "mlp_layer_types": ["sparse", "dense", "sparse"],
            "linear_head_dim": 4,
            "linear_num_heads": 2,
            "linear_conv_kernel_dim": 3,
            "kv_lora_rank": 10,
            "q_lora_rank": 6,
            "qk_nope_head_dim": 6,
            "qk_rope_head_dim": 3,
            "v_head_dim": 5,
            "attention_bias": True,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "n_shared_experts": 2,
            "moe_intermediate_size": 8,
            "n_group": 2,
            "routed_scaling_factor": 1.5,
            "rms_norm_eps": 1e-4,
            "bos_token_id": None,
            "eos_token_id": None,
        },
    ),
    "hf_qwen3_5_moe": ("Qwen3_5Moe", {**DELTAS, **SHARED, "layer_types": [FULL, LINEAR]}),
}
"""Folder -> (class of transformers, configuration); every multiplier differs from 1."""
