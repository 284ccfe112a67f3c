"""Tiny configurations of the classes of Hugging Face transformers that are read and written."""

from __future__ import annotations

from typing import Any

from experiments.selftest import attention_families, memory_families

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    **attention_families.CONFIGS,
    **memory_families.CONFIGS,
}
"""Folder -> (class of transformers, configuration)."""
