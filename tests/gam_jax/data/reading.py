"""Texts of files that a test writes, read without building a data set of them."""

from __future__ import annotations

from pathlib import Path

from gam_jax.data.builders.prepare import quiet
from gam_jax.data.builders.text_files import _documents, text_files_builder


def write(folder: Path, files: dict[str, bytes]) -> None:
    """Files by relative name."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def texts(path: object, folder: Path, errors: str = "strict", field: str = "text") -> list[str]:
    """The documents that `text:PATH` means."""
    with quiet():
        builder, _ = text_files_builder(str(path), folder, 0.1, errors, field)
    config = builder.builder_config
    return [document.data.decode("utf-8", errors) for _, document in _documents(config)]  # type: ignore[arg-type]
