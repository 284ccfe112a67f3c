"""Fields of config.json and arrays that change nothing of what a model computes here, as data.

What is on no list and is not read is refused: it may change the function.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NOTE = "says who wrote the folder, and how"
_RESULT = "says what the program of transformers hands back beside logits"
_START = "says how weights are drawn before training"
_TRAINING = "belongs to training alone"
_TEXT = "says which token ids mean what, or how text is written"
_SPEED = "chooses among programs that give the same numbers"
_LABELS = "belongs to classifiers"
_ELSEWHERE = "is read by other models, and by none of this class"
_CODE = "names the code of the class for older versions of transformers, which is the same model"
_AHEAD = "belongs to blocks that predict several tokens ahead, which are not run"
_UNREAD = "is read by no code of its class"
_DENSE = "is that of dense blocks, where there are none"
_LOSS = "belongs to the balance loss of the training"

EVERYWHERE: Mapping[str, str] = {
    "transformers_version": _NOTE,
    "_name_or_path": _NOTE,
    "_commit_hash": _NOTE,
    "transformers.js_config": _NOTE,
    "unsloth_fixed": _NOTE,
    "unsloth_version": _NOTE,
    "is_llama_config": _NOTE,
    "_attn_implementation_autoset": _SPEED,
    "_attn_implementation": _SPEED,
    "attn_implementation": _SPEED,
    "dtype": "says how arrays are stored, which the files say of each",
    "torch_dtype": "says how arrays are stored, which the files say of each",
    "use_cache": _SPEED,
    "pretraining_tp": _SPEED,
    "output_attentions": _RESULT,
    "output_hidden_states": _RESULT,
    "output_router_logits": _RESULT,
    "return_dict": _RESULT,
    "use_return_dict": _RESULT,
    "initializer_range": _START,
    "attention_dropout": _TRAINING,
    "hidden_dropout": _TRAINING,
    "resid_pdrop": _TRAINING,
    "embd_pdrop": _TRAINING,
    "gradient_checkpointing": _TRAINING,
    "bos_token_id": _TEXT,
    "eos_token_id": _TEXT,
    "pad_token_id": _TEXT,
    "sep_token_id": _TEXT,
    "decoder_start_token_id": _TEXT,
    "tokenizer_class": _TEXT,
    "prefix": _TEXT,
    "task_specific_params": _TEXT,
    "do_sample": _TEXT,
    "max_length": _TEXT,
    "min_length": _TEXT,
    "temperature": _TEXT,
    "top_k": _TEXT,
    "top_p": _TEXT,
    "repetition_penalty": _TEXT,
    "id2label": _LABELS,
    "label2id": _LABELS,
    "problem_type": _LABELS,
    "finetuning_task": _LABELS,
}
"""Field -> why it changes nothing, in each class."""

NEUTRAL: Mapping[str, Any] = {
    "partial_rotary_factor": 1.0,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "tie_encoder_decoder": False,
    "chunk_size_feed_forward": 0,
    "torchscript": False,
    "use_bfloat16": False,
    "use_mrope": False,
    "rope_interleaved": False,
    "pruned_heads": {},
    "use_bidirectional_attention": False,
}
"""Field -> the one value that changes nothing, in each class."""

_SCAN = {
    "rescale_prenorm_residual": _START,
    "time_step_floor": _START,
    "time_step_max": _START,
    "time_step_min": _START,
    "residual_in_fp32": "says in which precision sums are kept: float32 here",
    "chunk_size": _SPEED,
    "fused_add_norm": _SPEED,
    "pad_vocab_size_multiple": "is how vocab_size was rounded up, and is in it",
}
_HYBRID = {
    "mamba_chunk_size": _SPEED,
    "num_logits_to_keep": _RESULT,
}
_WINDOW = {
    "max_window_layers": "says which layers have windows where layer_types does not",
}
_PERIOD = {
    "sliding_window_pattern": "says which layers have windows where layer_types does not",
    "_sliding_window_pattern": "says which layers have windows where layer_types does not",
    "cache_implementation": _SPEED,
}
_NEXT = {
    "intermediate_size": _DENSE,
    "mamba_ssm_dtype": "says in which precision states are kept: float32 here",
    "mtp_num_hidden_layers": "is of the multi-token head, which is not read",
    "mtp_use_dedicated_embeddings": "is of the multi-token head, which is not read",
}
_FLA = {
    "attn_mode": _SPEED,
    "fuse_cross_entropy": _SPEED,
    "fuse_linear_cross_entropy": _SPEED,
    "fuse_norm": _SPEED,
    "fuse_swiglu": _SPEED,
    "use_l2warp": _TRAINING,
    "max_position_embeddings": "bounds attention, of which there is none",
    "hidden_ratio": "is used without intermediate_size alone",
    "share_conv_kernel": "is read by no code any more, and would be an array of another name",
}
_PLAIN_FLA = {**_FLA, "conv_size": "is that of short convolutions, where there are none"}

OF: Mapping[str, Mapping[str, str]] = {
    "Qwen2ForCausalLM": _WINDOW,
    "Qwen3ForCausalLM": _WINDOW,
    "SmolLM3ForCausalLM": {
        **_WINDOW,
        "no_rope_layer_interval": "says which layers turn where no_rope_layers does not",
    },
    "GemmaForCausalLM": {"hidden_activation": _ELSEWHERE, "cache_implementation": _SPEED},
    "Gemma2ForCausalLM": {
        "hidden_act": _ELSEWHERE,
        "sliding_window_size": _ELSEWHERE,
        "cache_implementation": _SPEED,
    },
    "Gemma3ForCausalLM": _PERIOD,
    "Phi3ForCausalLM": {
        "original_max_position_embeddings": "is read with longrope alone",
        "auto_map": _CODE,
    },
    "Qwen2ParScaleForCausalLM": {**_WINDOW, "auto_map": _CODE},
    "MambaForCausalLM": {
        **_SCAN,
        "time_step_init_scheme": _START,
        "time_step_scale": _START,
        "use_associative_scan": _SPEED,
        "use_mambapy": _SPEED,
    },
    "Mamba2ForCausalLM": {
        **_SCAN,
        "time_step_rank": _ELSEWHERE,
        "norm_before_gate": "is read by no code of transformers, which norms after the gate",
    },
    "MambaLMHeadModel": {name: _SCAN[name] for name in ("residual_in_fp32", "fused_add_norm")},
    "BambaForCausalLM": {**_HYBRID, "z_loss_coefficient": "is added to the loss in training"},
    "GraniteMoeHybridForCausalLM": {**_HYBRID, "init_method": _START},
    "JambaForCausalLM": {
        **_HYBRID,
        "use_mamba_kernels": _SPEED,
        "use_mambapy": _SPEED,
        "use_associative_scan": _SPEED,
        "calc_logits_for_entire_prompt": _RESULT,
    },
    "NemotronHForCausalLM": {
        **_SCAN,
        "auto_map": _CODE,
        "num_logits_to_keep": _RESULT,
        "use_mamba_kernels": _SPEED,
        "mamba_ssm_cache_dtype": "says in which precision states are kept: float32 here",
        "moe_shared_expert_overlap": _SPEED,
        "num_nextn_predict_layers": _AHEAD,
        "mtp_layers_block_type": _AHEAD,
        "mtp_hybrid_override_pattern": _AHEAD,
        "expand": "is in mamba_num_heads times mamba_head_dim",
        "time_step_limit": "is read by no code of transformers, which bounds by time_step_min",
        "mamba_proj_bias": "is read by no code of transformers, which reads use_bias",
        "sliding_window": "is read by no code of transformers",
        "n_shared_experts": "is in moe_shared_expert_intermediate_size",
    },
    "FalconH1ForCausalLM": {
        **_SCAN,
        "mamba_chunk_size": _SPEED,
        "num_logits_to_keep": _RESULT,
        "mlp_expansion_factor": "is used without intermediate_size alone, which is needed here",
    },
    "MixtralForCausalLM": {"moe_intermediate_size": _ELSEWHERE},
    "Qwen3MoeForCausalLM": {
        "max_window_layers": _ELSEWHERE,
        "intermediate_size": _DENSE,
    },
    "Qwen3NextForCausalLM": _NEXT,
    "Qwen3_5ForCausalLM": _NEXT,
    "Qwen3_5MoeForCausalLM": _NEXT,
    "KimiLinearForCausalLM": {
        "intermediate_size": _DENSE,
        "first_k_dense_replace": "says which blocks are dense where mlp_layer_types does not",
        "head_dim": "is read by no code of its class, whose heads have other names",
        "rope_theta": "is of rotary positions, of which there are none",
        "auto_map": _CODE,
    },
    "OlmoHybridForCausalLM": {
        "linear_a_log_min": _START,
        "linear_a_log_max": _START,
        "linear_dt_min": _START,
        "linear_dt_max": _START,
        "linear_dt_init_floor": _START,
    },
    "GLAForCausalLM": {**_PLAIN_FLA, "use_gk": _UNREAD, "use_gv": _UNREAD},
    "DeltaNetForCausalLM": {**_FLA, "use_output_norm": _UNREAD},
    "GatedDeltaNetForCausalLM": _FLA,
    "RetNetForCausalLM": _PLAIN_FLA,
    "GptOssForCausalLM": {
        "experts_per_token": _ELSEWHERE,
        "initial_context_length": _ELSEWHERE,
    },
    "Glm4MoeForCausalLM": {"intermediate_size": _DENSE},
    "DeepseekV2ForCausalLM": {"intermediate_size": _DENSE, "auto_map": _CODE, "ep_size": _SPEED},
    "DeepseekV3ForCausalLM": {
        "intermediate_size": _DENSE,
        "auto_map": _CODE,
        "ep_size": _SPEED,
        "aux_loss_alpha": _LOSS,
        "seq_aux": _LOSS,
    },
}
"""Class -> what changes nothing in it alone, and why."""

NOT_KEPT: frozenset[str] = frozenset(
    {"dtype", "torch_dtype", "auto_map", *(n for n, why in EVERYWHERE.items() if why == _NOTE)}
)
"""Fields that are not true of a folder that is written here, or that name code."""


def kept_fields(name: str, original: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of an original config.json that a folder of its trained model says too.

    Args:
      name: the class that is written.
      original: what the config.json said.
    """
    same = original.get("architectures") == [name]
    harmless = {*EVERYWHERE, *(OF.get(name, {}) if same else ())} - NOT_KEPT
    return {field: value for field, value in original.items() if field in harmless}


ARRAYS: Mapping[str, str] = {
    r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq": (
        "wavelengths of rotary positions, which follow from config.json"
    ),
}
"""Pattern of a whole name -> why that array need not be read."""
