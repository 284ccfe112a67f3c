"""`text:PATH`: a file, a folder, a glob or an address of the user's own text.

A document is a file of prose; or the text of a line of JSON, of an item of a JSON list, or of a
row of a Parquet or Arrow table. What a file holds is looked up in it (`formats`). Records keep the
order of the sorted file names, and a document longer than a MiB is several records in a row (`part`
0, 1, ...).

What is held out for validation is a share of the bytes (`shares`): the tail of every document that
is larger than that share, and whole documents, by a hash of their content, of all others.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from gam_jax.data.builders import files, shares
from gam_jax.data.builders.built import own_builder
from gam_jax.data.builders.formats import EMPTY, JSON, NO_TEXTS, TEXT, Look, look, suffix
from gam_jax.data.builders.records import EXAMPLES, FIELDS
from gam_jax.data.builders.sources import Found, Source, digest_and_size, printable
from gam_jax.data.builders.texts import Document, Reading, documents
from gam_jax.data.builders.walk import find_local
from gam_jax.data.storage import check_room, say
from sharding.errors import UserError
from sharding.paths import scheme

PROSE = "prose"
"""Why a file is left out where records are read."""
READING = 2
"""Raised whenever the same files would give other documents, or other sides."""


class TextFile(NamedTuple):
    """A file that is read.

    Attributes:
      source: where it is.
      look: what it holds.
      sha256: of its bytes.
      size: of its bytes.
    """

    source: Source
    look: Look
    sha256: str
    size: int


@dataclasses.dataclass
class TextFilesConfig(tfds.core.BuilderConfig):
    """Which files, and how they are read and split. Its name holds a digest of all that."""

    path: str = ""
    files: tuple[TextFile, ...] = dataclasses.field(default=(), repr=False)
    validation_fraction: float = 0.1
    reading: Reading = Reading("text", "strict")


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
        config: TextFilesConfig = self.builder_config  # pyright: ignore[reportAssignmentType]
        found = _shares(config)
        check_room(Path(self.data_dir), found.bytes)
        return {s: self._generate_examples(found, s) for s in ("train", "validation")}

    def _generate_examples(
        self, found: shares.Shares, split: str
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        config: TextFilesConfig = self.builder_config  # pyright: ignore[reportAssignmentType]
        key = 0
        for number, (file, (place, document)) in enumerate(_documents(config)):
            data, start = found.part(number, document, split), found.start(number, split)
            named = config.reading.format != "text" and place
            path = f"{file.source.name}, {place}" if named else file.source.name
            for part, (offset, piece) in enumerate(files.pieces(data)):
                where, errors = file.source.where, config.reading.errors
                text = files.decode(piece, where, start + offset, errors)
                yield key, {"text": text, "path": path, "part": part}
                key += 1
        if not key:
            raise too_little(config.path, split)


def too_little(path: str, split: str) -> UserError:
    """The error for text without anything on one side."""
    return UserError(f"text:{printable(path)} has too little text for a {split} split: add more")


def _documents(config: TextFilesConfig) -> Iterator[tuple[TextFile, Document]]:
    for file in config.files:
        for document in documents(file.source, file.look, config.reading, file.sha256):
            yield file, document


def _shares(config: TextFilesConfig) -> shares.Shares:
    measured, ends = shares.Measured(), []
    for file in config.files:
        for document in documents(file.source, file.look, config.reading, file.sha256):
            measured.add(document.data)
        ends.append(len(measured))
    if not len(measured):
        raise UserError(f"text:{printable(config.path)} holds no text: add some text")
    fraction = config.validation_fraction
    whole = config.reading.format != "text"
    found = shares.shares(
        measured, fraction, lambda: (d.data for _, d in _documents(config)), whole
    )
    if len(measured) == 1 and not 0 < found.held < found.bytes:
        raise too_little(config.path, "train" if found.held else "validation")

    def name(number: int) -> str:
        return config.files[int(np.searchsorted(ends, number, side="right"))].source.where

    shares.check_share(found, measured, fraction, name, f"text:{printable(config.path)}")
    return found


def text_files_builder(
    path: str,
    data_dir: Path,
    validation_fraction: float,
    decode_errors: str,
    field: str = "text",
    format: str = "text",
) -> tuple[TextFiles, int]:
    """The builder for the files at a path as they are now, and the bytes that they have.

    Raises:
      UserError: nothing is there that holds text, or a file is not what its name says.
    """
    if not path:
        raise UserError("text: names no path: give one, such as text:notes.txt")
    found = find_files(path)
    how = Reading(field, decode_errors, format)
    given = _read(found, path, how)
    stem = re.sub(r"[^A-Za-z0-9_]+", "_", Path(path).name).strip("_")[:40] or "files"
    hashes = [(file.source.name, file.sha256) for file in given]
    settings: tuple[object, ...] = (validation_fraction, decode_errors)
    if not _as_ever(given):
        structured = any(file.look.kind != TEXT for file in given)
        settings += (READING, field if structured or not field else "")
    if format != "text":
        settings += (format,)
    config = TextFilesConfig(
        name=f"{stem}-{files.content_digest(hashes, *settings)}",
        path=path,
        files=given,
        validation_fraction=validation_fraction,
        reading=how,
    )
    return own_builder(TextFiles, data_dir, config), sum(file.size for file in given)


def _as_ever(given: tuple[TextFile, ...]) -> bool:
    """Whether every version of this package reads and splits these files alike: one of prose."""
    if len(given) != 1:
        return False
    name, (kind, packed, mark, _) = given[0].source.name, given[0].look
    return kind == TEXT and not mark and packed == name.endswith(".gz") and suffix(name) != ".jsonl"


def find_files(path: str) -> Found:
    """The files that a path means, without what is hidden, in the order of their names.

    Raises:
      UserError: nothing is there.
    """
    if scheme(path) == "file":
        path = "/" + path.partition(":")[2].lstrip("/")
    if scheme(path):
        from gam_jax.data.builders.remote import find_remote

        return find_remote(path)
    return find_local(path)


def _read(found: Found, path: str, how: Reading) -> tuple[TextFile, ...]:
    """Those of the files that hold text; says which do not."""
    shown, alone = f"text:{printable(path)}", len(found.sources) == 1 and not found.left_out
    given: list[TextFile] = []
    seen = Look()
    for source in found.sources:
        seen = look(source, FIELDS[how.format][0] if how.format in FIELDS else how.field)
        if seen.kind == TEXT and how.format != "text":
            seen = Look(why=PROSE)
        if seen.kind:
            given.append(TextFile(source, seen, *digest_and_size(source)))
        else:
            found.leave_out(source.name, seen.why)
    left_out = found.told()
    if not given and alone:
        _refuse(found.sources[0], seen, how)
    if not found.sources and not left_out:
        raise UserError(f"{shown} names no file: check it")
    if not given:
        what = f": left out {left_out}" if left_out else ""
        raise UserError(f"{shown} holds no text{what}; add some text")
    if left_out:
        say(f"{shown}: {len(given)} file{'s' * (len(given) > 1)} read; left out: {left_out}")
    return tuple(given)


def _refuse(source: Source, seen: Look, how: Reading) -> None:
    """Says of the only file why it is not read; nothing of an empty one."""
    if seen.why == NO_TEXTS:
        for _ in documents(source, seen._replace(kind=JSON), how, ""):
            pass
    elif seen.why == PROSE:
        raise UserError(
            f"{source.where} is prose, no lines such as {EXAMPLES[how.format]}: write such, or set "
            f"data.format=text"
        )
    elif seen.why != EMPTY:
        mend = "unpack it" if seen.why.startswith("packed") else "convert it to text"
        raise UserError(f"{source.where} is {seen.why}: {mend}")
