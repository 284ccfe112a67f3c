"""What is tried, by area."""

from __future__ import annotations

from collections.abc import Callable

from tests.fuzz import fields, files, lines
from tests.fuzz.case import Cases
from tests.fuzz.shop import Shop

AREAS: dict[str, tuple[Callable[[Shop], Cases], int]] = {
    "config fields": (fields.config_fields, 60),
    "config flags": (lines.flags_of_config, 8),
    "other flags": (lines.other_flags, 16),
    "forged manifests": (files.manifests, 8),
    "model folders": (files.model_folders, 16),
    "texts": (files.texts, 6),
    "caches": (files.caches, 4),
    "reports": (files.reports, 10),
    "locks": (files.locks, 6),
    "histories": (files.histories, 8),
    "tokenizers": (files.tokenizers, 8),
}
"""Area -> (how its cases are made, how many of 150)."""
