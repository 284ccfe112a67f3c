"""Imports run one way: experiments -> gam_jax.training -> gam_jax -> sharding."""

from __future__ import annotations

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]

FORBIDDEN = {
    "sharding": ("gam_jax", "experiments", "tests"),
    "gam_jax": ("experiments", "tests"),
    "gam_jax/ops": ("gam_jax.layers", "gam_jax.models", "gam_jax.training", "gam_jax.data"),
    "gam_jax/layers": ("gam_jax.models", "gam_jax.training", "gam_jax.data"),
    "gam_jax/models": ("gam_jax.training",),
    "gam_jax/data": ("gam_jax.training", "gam_jax.models", "gam_jax.layers"),
    "gam_jax/traffic": ("gam_jax.training",),
    "gam_jax/planning": ("gam_jax.training",),
    "gam_jax/search": (
        "gam_jax.data",
        "gam_jax.layers",
        "gam_jax.models",
        "gam_jax.planning",
        "gam_jax.training",
        "sharding.layout",
        "sharding.mesh",
    ),
    "gam_jax/serve": ("gam_jax.training",),
    "gam_jax/training": ("gam_jax.data.tokenizer", "gam_jax.models.language"),
    "experiments": ("tests",),
}
"""Folder -> what none of its files may import, at the top or inside a function."""


def imported(path: pathlib.Path) -> set[str]:
    """The modules that a file imports, for its types too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_no_file_imports_what_stands_above_it(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in sorted(imported(path))
        for barred in FORBIDDEN[folder]
        if name == barred or name.startswith(f"{barred}.")
    ]
    assert wrong == []


def test_all_imports_are_written_whole():
    """A relative import would pass the law above unseen."""
    for folder in ("sharding", "gam_jax", "experiments"):
        for path in (ROOT / folder).rglob("*.py"):
            nodes = ast.walk(ast.parse(path.read_text()))
            assert not any(isinstance(n, ast.ImportFrom) and n.level for n in nodes), path


def test_the_training_run_knows_neither_language_nor_text():
    words = ("LanguageModel", "okenizer", "perplexity", "bits_per_byte", "python_stdlib")
    allowed = {("progress.py", "perplexity")}  # how that score is written
    for path in (ROOT / "gam_jax" / "training").glob("*.py"):
        code = ast.unparse(ast.parse(path.read_text()))
        for word in words:
            if (path.name, word) not in allowed:
                assert word not in code, (path.name, word)
