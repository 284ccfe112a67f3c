"""Files of a model folder that stay with its weights: tokenizer, template, generation, licence.

Nothing in them is run. Names are from a list, files are plain, of bounded size, and lie in the
folder, see `folder.file_in`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from gam_jax.convert.folder import CONFIG, file_in
from sharding.errors import UserError
from sharding.json_file import MAX_BYTES, parse_json

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
JINJA, ADDED = "chat_template.jinja", "added_tokens.json"
OF_TOKENS = (
    TOKENIZER,
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    ADDED,
    JINJA,
    "generation_config.json",
)
"""What speaks of a tokenizer's ids."""
FILES = (CONFIG, *OF_TOKENS)
_PAPER = re.compile(r"(LICEN[CS]E|NOTICE)[A-Za-z0-9._-]{0,60}|README\.md")
"""Names of licences, notices and the model's card."""
MOST_PAPERS = 16
MOST = 8 << 20
"""Bytes of a file; a tokenizer may be larger."""


def read_source(folder: Path) -> dict[str, bytes]:
    """The files of a folder that are kept, by name.

    Raises:
      UserError: one leads out of the folder, is no plain file, is too large, cannot be read, or is
        no JSON where its name says so.
    """
    try:
        there = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise UserError(
            f"cannot read the model folder {folder}: {error.strerror}; nothing is downloaded: name "
            f"a folder of this machine"
        ) from error
    papers = [name for name in there if _PAPER.fullmatch(name) and not (folder / name).is_dir()]
    if len(papers) > MOST_PAPERS:
        raise UserError(f"{folder} has {len(papers)} licences: keep {MOST_PAPERS} at most")
    kept = {*FILES, *papers}
    return {name: _content(folder, name) for name in there if name in kept}


def _content(folder: Path, name: str) -> bytes:
    path = file_in(folder, name)
    most = MAX_BYTES if name == TOKENIZER else MOST
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > most:
        raise UserError(f"{path} is larger than {most:,} bytes: take it out of the folder")
    if name.endswith(".json") and name != TOKENIZER:  # that one is read as a tokenizer
        parse_json(content, path, mend="download it again", finite=False)
    return content


def without_tokens(source: Mapping[str, bytes]) -> dict[str, bytes]:
    """What stays true of a folder's files where the tokenizer has become another."""
    return {name: content for name, content in source.items() if _PAPER.fullmatch(name)}
