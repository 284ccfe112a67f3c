"""Fields that a class of Hugging Face transformers may have, and values to draw them from.

What is drawn is laid over the first configuration of the class in `families`. Each value is legal
whatever the others are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Values = Mapping[str, tuple[Any, ...]]

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
POSITIONS = (DEFAULT, LINEAR, DYNAMIC, LLAMA3, YARN, {**YARN, "attention_factor": 1.3})
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


def without(values: Values, *names: str) -> Values:
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
    "DeepseekV3": {
        "rms_norm_eps": (1e-6, 3e-3),
        "q_lora_rank": (None, 12),
        "first_k_dense_replace": (0, 1, 2),
        "n_shared_experts": (1, 2),
        "num_experts_per_tok": (2, 3),
        "routed_scaling_factor": (1.0, 1.7),
        "v_head_dim": (5, 8),
        "tie_word_embeddings": (True, False),
    },
    "Mamba": {
        "vocab_size": (29, 48),
        "state_size": (4, 6),
        "conv_kernel": (2, 4),
        "expand": (1, 2),
        "time_step_rank": (3, 5),
        "use_conv_bias": (True, False),
        "layer_norm_epsilon": (1e-5, 3e-3),
        "tie_word_embeddings": (True, False),
    },
    "Mamba2": {
        "vocab_size": (29, 48),
        "state_size": (4, 6),
        "conv_kernel": (2, 4),
        "n_groups": (1, 2, 3),
        "use_conv_bias": (True, False),
        "layer_norm_epsilon": (1e-5, 3e-3),
        "tie_word_embeddings": (True, False),
    },
    "FalconH1": {
        "vocab_size": (29, 48),
        "mamba_d_state": (6, 12),
        "mamba_n_groups": (1, 2, 3),
        "mamba_rms_norm": (True, False),
        "mamba_norm_before_gate": (True, False),
        "rms_norm_eps": (1e-5, 3e-3),
        "tie_word_embeddings": (True, False),
        "key_multiplier": (0.6, 1.0),
        "lm_head_multiplier": (0.6, 1.0),
    },
}
"""Class, without its ending -> field -> values."""
