"""Tiny configurations of classes with attention alone, of Hugging Face transformers."""

from __future__ import annotations

from typing import Any

LLAMA = {
    "vocab_size": 48,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
}
SMALL = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
}
SLIDING, FULL = "sliding_attention", "full_attention"
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
GRANITE = {
    "embedding_multiplier": 2.5,
    "residual_multiplier": 0.7,
    "attention_multiplier": 0.3,
    "logits_scaling": 1.6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}
EXPERTS = {
    "vocab_size": 48,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "moe_intermediate_size": 12,
    "num_experts_per_tok": 3,
}
DEEPSEEK = {
    **EXPERTS,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
    "intermediate_size": 28,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "n_group": 4,
    "topk_group": 2,
    "q_lora_rank": 12,
    "kv_lora_rank": 10,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 5,
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "hf_llama": ("Llama", {**LLAMA, "head_dim": 8}),
    "hf_qwen2": ("Qwen2", {**LLAMA, "tie_word_embeddings": True}),
    "hf_llama3": (
        "Llama",
        {
            **SMALL,
            "attention_bias": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 100.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "hf_mistral": ("Mistral", {**SMALL, "head_dim": 6, "sliding_window": 7}),
    "hf_qwen2_sliding": (
        "Qwen2",
        {
            **SMALL,
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 6,
            "max_window_layers": 1,
        },
    ),
    "hf_qwen3": (
        "Qwen3",
        {**SMALL, "head_dim": 6, "rms_norm_eps": 1e-4, "rope_parameters": YARN},
    ),
    "hf_smollm3": (
        "SmolLM3",
        {**SMALL, "num_hidden_layers": 3, "no_rope_layers": [1, 0, 1], "mlp_bias": True},
    ),
    "hf_gemma": ("Gemma", {**SMALL, "head_dim": 6, "attention_bias": True}),
    "hf_gemma2": (
        "Gemma2",
        {
            **SMALL,
            "num_hidden_layers": 3,
            "head_dim": 6,
            "query_pre_attn_scalar": 5,
            "sliding_window": 6,
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 2.5,
        },
    ),
    "hf_gemma3": (
        "Gemma3",
        {
            **SMALL,
            "num_hidden_layers": 4,
            "head_dim": 6,
            "query_pre_attn_scalar": 5,
            "sliding_window": 6,
            "layer_types": [SLIDING, FULL, SLIDING, FULL],
            "rope_parameters": {
                FULL: {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0},
                SLIDING: {"rope_type": "default", "rope_theta": 50.0},
            },
        },
    ),
    "hf_olmo2": ("Olmo2", {**SMALL, "attention_bias": True}),
    "hf_olmo3": (
        "Olmo3",
        {
            **SMALL,
            "num_hidden_layers": 3,
            "sliding_window": 6,
            "layer_types": [SLIDING, SLIDING, FULL],
            "rope_parameters": {
                FULL: YARN,
                SLIDING: {"rope_type": "default", "rope_theta": 500.0},
            },
        },
    ),
    "hf_phi3": (
        "Phi3",
        {
            **SMALL,
            "original_max_position_embeddings": 16,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 100.0,
                "short_factor": [1.0, 1.5],
                "long_factor": [2.0, 3.5],
                "original_max_position_embeddings": 16,
                "partial_rotary_factor": 1.0,
            },
        },
    ),
    "hf_glm4": (
        "Glm4",
        {**SMALL, "head_dim": 8, "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}},
    ),
    "hf_qwen3_moe_mixed": (
        "Qwen3Moe",
        {
            **SMALL,
            "num_hidden_layers": 3,
            "head_dim": 4,
            "moe_intermediate_size": 12,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "mlp_only_layers": [1],
            "use_sliding_window": True,
            "sliding_window": 7,
        },
    ),
    "hf_granite": (
        "Granite",
        {**SMALL, **GRANITE, "attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-4},
    ),
    "hf_mixtral": (
        "Mixtral",
        {**EXPERTS, "intermediate_size": 20, "head_dim": 4, "num_local_experts": 4}
        | {"num_experts_per_tok": 2},
    ),
    "hf_qwen3_moe": (
        "Qwen3Moe",
        {**EXPERTS, "num_experts": 8, "head_dim": 8, "norm_topk_prob": True},
    ),
    "hf_deepseek_v3": (
        "DeepseekV3",
        {
            **DEEPSEEK,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 500.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "beta_fast": 2.0,
                "beta_slow": 0.5,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
            },
        },
    ),
    "hf_deepseek_v3_plain": (
        "DeepseekV3",
        {**DEEPSEEK, "num_hidden_layers": 1, "first_k_dense_replace": 0, "q_lora_rank": None}
        | {"intermediate_size": 24},
    ),
    "hf_deepseek_v3_odd": (
        "DeepseekV3",
        {
            **DEEPSEEK,
            "num_hidden_layers": 2,
            "hidden_act": "gelu",
            "attention_bias": True,
            "n_shared_experts": 0,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.7,
            "rope_interleave": False,
            "rms_norm_eps": 1e-4,
            "tie_word_embeddings": True,
            "rope_parameters": {**YARN, "mscale": 0.8, "mscale_all_dim": 1.2},
        },
    ),
    "hf_deepseek_v3_dense": (
        "DeepseekV3",
        {
            **DEEPSEEK,
            "num_hidden_layers": 2,
            "first_k_dense_replace": 2,
            "q_lora_rank": None,
            "attention_bias": True,
            "rope_parameters": {
                "rope_type": "linear",
                "rope_theta": 500.0,
                "factor": 4.0,
                "mscale_all_dim": 0.707,
            },
        },
    ),
    "hf_deepseek_v2": (
        "DeepseekV2",
        {
            **DEEPSEEK,
            "num_hidden_layers": 2,
            "topk_method": "group_limited_greedy",
            "routed_scaling_factor": 1.7,
            "attention_bias": True,
            "rms_norm_eps": 1e-4,
            "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
        },
    ),
    "hf_glm4_moe": (
        "Glm4Moe",
        {
            **EXPERTS,
            "num_hidden_layers": 3,
            "intermediate_size": 20,
            "head_dim": 8,
            "n_routed_experts": 6,
            "n_group": 3,
            "topk_group": 2,
            "num_experts_per_tok": 2,
            "routed_scaling_factor": 1.7,
            "norm_topk_prob": False,
            "use_qk_norm": True,
            "attention_bias": True,
            "rms_norm_eps": 1e-4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        },
    ),
    "hf_gpt_oss": (
        "GptOss",
        {
            **SMALL,
            "num_hidden_layers": 3,
            "head_dim": 10,
            "intermediate_size": 12,
            "num_local_experts": 4,
            "num_experts_per_tok": 3,
            "sliding_window": 6,
            "swiglu_alpha": 1.3,
            "swiglu_limit": 0.8,
            "rms_norm_eps": 1e-4,
            "rope_parameters": {**YARN, "beta_fast": 1.0, "beta_slow": 0.2, "truncate": False},
        },
    ),
}
"""Folder -> (class of transformers, configuration); every multiplier differs from 1."""
