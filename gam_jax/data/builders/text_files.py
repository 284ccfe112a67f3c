"""`text:PATH`: a file, a folder or a glob of the user's own text.

A document is a file, or a line of a .jsonl file (its field "text"). Records keep the order of the
sorted file names, and a document longer than a MiB is several records in a row (`part` 0, 1, ...).

What is held out for validation: of ten files or more, a share of the files, chosen by a hash of
their names; of fewer, the tail of each file: its last documents, or for plain text its last
characters, cut at a line end.
"""

from __future__ import annotations

import dataclasses
import glob
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from gam_jax.data.builders import files
from sharding.errors import UserError

SUFFIXES = (".txt", ".md", ".py", ".jsonl")
BY_FILE = 10
"""From this many files on, whole files are held out."""

Files = tuple[tuple[str, Path], ...]
"""(relative name, path), sorted by name."""


@dataclasses.dataclass
class TextFilesConfig(tfds.core.BuilderConfig):
    """Which files, and how they are read and split. Its name holds a digest of all that."""

    path: str = ""
    files: Files = ()
    validation_fraction: float = 0.1
    decode_errors: str = "strict"


class TextFiles(tfds.core.GeneratorBasedBuilder):
    """The user's text files; make one with `text_files_builder`."""

    name = "text_files"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "text": tfds.features.Text(),
            "path": tfds.features.Text(),
            "part": tfds.features.Scalar(np.int32),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Text files of the user, in the order of their names.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in ("train", "validation")}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        config: TextFilesConfig = self.builder_config  # pyright: ignore[reportAssignmentType]
        key = 0
        for name, documents in split_documents(config, split):
            for document in documents:
                for part, text in enumerate(document):
                    yield key, {"text": text, "path": name, "part": part}
                    key += 1
        if not key:
            raise UserError(f"text:{config.path} has too little text for a {split} split: add more")


def text_files_builder(
    path: str, data_dir: Path, validation_fraction: float, decode_errors: str
) -> tuple[TextFiles, int]:
    """The builder for the files at a path as they are now, and the bytes it will write.

    Raises:
      UserError: nothing is there, or no file with a known suffix, or only empty ones.
    """
    found = find_files(path)
    digest, size = files.content_digest(found, validation_fraction, decode_errors)
    if not size:
        raise UserError(f"text:{path} holds no text ({len(found)} empty files): add some text")
    stem = re.sub(r"[^A-Za-z0-9_]+", "_", Path(path).name).strip("_")[:40] or "files"
    config = TextFilesConfig(
        name=f"{stem}-{digest}",
        path=path,
        files=found,
        validation_fraction=validation_fraction,
        decode_errors=decode_errors,
    )
    return TextFiles(data_dir=data_dir, config=config), size


def find_files(path: str) -> Files:
    """The files that a path means, as sorted (relative name, path).

    A single file may have any name. Folders are searched below for .txt, .md, .py and .jsonl files
    and the same with .gz, leaving out what starts with a dot; globs likewise (`**` too).

    Raises:
      UserError: nothing is there.
    """
    given = Path(path).expanduser()
    if not path:
        raise UserError("text: names no path: give one, such as text:notes.txt")
    if given.is_file():
        return ((given.name, given),)
    if given.is_dir():
        root, found = given, list(given.rglob("*"))
    elif glob.has_magic(path):
        root = Path(*_plain_parts(given))
        found = [Path(match) for match in glob.glob(str(given), recursive=True)]
    else:
        raise UserError(f"text:{path} does not exist: check the path (from {Path.cwd()})")
    names = {file.relative_to(root).as_posix(): file for file in found if _is_text(file, root)}
    if not names:
        raise UserError(f"text:{path} holds no {', '.join(SUFFIXES)} file (or .gz of one): add one")
    return tuple(sorted(names.items()))


def _plain_parts(path: Path) -> list[str]:
    """The parts of a glob before the first one with a wildcard."""
    parts: list[str] = []
    for part in path.parts:
        if glob.has_magic(part):
            break
        parts.append(part)
    return parts


def _is_text(path: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return not hidden and _suffix(path) in SUFFIXES and path.is_file()


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def split_documents(
    config: TextFilesConfig, split: str
) -> Iterator[tuple[str, Iterator[Iterator[str]]]]:
    """(relative name, its documents in that split), each document as an iterator of pieces."""
    whole_files = len(config.files) >= BY_FILE
    validation = files.held_out([n for n, _ in config.files], config.validation_fraction)
    for name, path in config.files:
        if whole_files and (name in validation) != (split == "validation"):
            continue
        fraction = 0.0 if whole_files else config.validation_fraction
        yield name, _documents(path, split, fraction, config.decode_errors)


def _documents(path: Path, split: str, fraction: float, errors: str) -> Iterator[Iterator[str]]:
    """The documents of a file; with a fraction, those of its head (train) or tail."""
    data = files.read_bytes(path)
    if _suffix(path) == ".jsonl":
        texts = files.json_lines(data, path, errors)
        tail = max(1, round(len(texts) * fraction)) if fraction and len(texts) > 1 else 0
        cut = len(texts) - tail
        chosen = texts if not fraction else texts[:cut] if split == "train" else texts[cut:]
        for text in chosen:
            if text:
                yield _decoded(text.encode(), path, 0, "strict")
        return
    cut = files.tail_start(data, fraction) if fraction else 0
    start, end = (0, len(data)) if not fraction else (0, cut) if split == "train" else (cut, None)
    if part := data[start:end]:
        yield _decoded(part, path, start, errors)


def _decoded(data: bytes, path: Path, offset: int, errors: str) -> Iterator[str]:
    for start, piece in files.pieces(data):
        yield files.decode(piece, path, offset + start, errors)
