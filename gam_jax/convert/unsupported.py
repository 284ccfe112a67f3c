"""Classes of known models that are not read, and what of them this project lacks, as data."""

from __future__ import annotations

from collections.abc import Mapping

_GEMMA_4 = "its layers have inputs of their own for each token, and keys and values of other layers"
_CHOSEN = "an indexer chooses the tokens that its attention sees"

UNSUPPORTED: Mapping[str, str] = {
    "Gemma4ForCausalLM": _GEMMA_4,
    "Gemma4ForConditionalGeneration": _GEMMA_4,
    "Gemma4UnifiedForCausalLM": _GEMMA_4,
    "Gemma4UnifiedForConditionalGeneration": _GEMMA_4,
    "DeepseekV32ForCausalLM": _CHOSEN,
    "GlmMoeDsaForCausalLM": _CHOSEN,
    "DeepseekV4ForCausalLM": "its attention reads compressed tokens, and it has several residual "
    "streams",
    "Mistral4ForCausalLM": "its queries grow with the place in the sequence",
    "Mistral3ForConditionalGeneration": "it has a vision tower",
    "RWKV7ForCausalLM": "its layers mix each token with the one before it, and hand on the values "
    "of the first layer",
    "RwkvForCausalLM": "its layers are those of RWKV-4, which are none of this project's",
}
"""Class -> why it is not read."""
