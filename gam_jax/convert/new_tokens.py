"""New special tokens for a model that others trained: in its tokenizer, and as rows of its arrays.

A new row of the embedding, and of an untied head, is the mean of the rows whose ids the tokenizer
had: its logit is then no larger than the largest of the old ones (Hewitt 2021, "Initializing new
word embeddings for pretrained language models").
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from gam_jax.convert.indices import PIECE
from gam_jax.convert.source import ADDED, TOKENIZER, TOKENIZER_CONFIG
from gam_jax.data.tokenizer import HFTokenizer, tokenizer_from_text
from gam_jax.params import Param, Params, Table
from sharding.errors import UserError

VOCAB = "vocab"
"""The logical axis that grows; and the field of a model that says how long it is."""
MOST_SIGNS = 200
FLAG = "--add_tokens"


def with_tokens(
    source: Mapping[str, bytes], names: Sequence[str], folder: Path
) -> tuple[dict[str, bytes], tuple[int, ...]]:
    """A folder's files with new special tokens, and the ids of these.

    Args:
      source: see `convert.source`.
      names: of the new tokens, as they stand in text.
      folder: where the files come from, for messages.

    Raises:
      UserError: a name that is empty, blank, too long, given twice or in the tokenizer already; a
        tokenizer that takes none.
    """
    import tokenizers

    text = source[TOKENIZER].decode()
    for number, name in enumerate(names):
        _check_name(name, names[:number])
    library = tokenizers.Tokenizer.from_str(text)
    if there := [name for name in names if library.token_to_id(name) is not None]:
        raise UserError(
            f"{FLAG}: {', '.join(map(repr, there))} is in {folder / TOKENIZER} already: leave it "
            f"out"
        )
    old = HFTokenizer(tokenizers.Tokenizer.from_str(text)).vocab
    library.add_special_tokens(
        [tokenizers.AddedToken(name, special=True, normalized=False) for name in names]
    )
    ids = tuple(range(old, old + len(names)))
    if [library.token_to_id(name) for name in names] != list(ids):
        raise UserError(
            f"{FLAG}: {folder / TOKENIZER}, whose ids go to {old - 1}, does not give new tokens "
            f"the next ones: add them to it with the Hugging Face tokenizers library"
        )
    added = {**source, TOKENIZER: library.to_str(pretty=True).encode()}
    pairs = dict(zip(names, ids, strict=True))
    if TOKENIZER_CONFIG in source:
        added[TOKENIZER_CONFIG] = _configured(source[TOKENIZER_CONFIG], pairs)
    if ADDED in source:
        added[ADDED] = _json({**json.loads(source[ADDED]), **pairs})
    return added, ids


def _check_name(name: str, before: Sequence[str]) -> None:
    if not name.strip() or not name.isprintable() or len(name) > MOST_SIGNS:
        raise UserError(f"{FLAG}: {name[:60]!r} is no name of a token, such as <|im_end|>")
    if name in before:
        raise UserError(f"{FLAG}: {name!r} is given twice: name it once")


def _configured(content: bytes, ids: Mapping[str, int]) -> bytes:
    """tokenizer_config.json, whose list of added tokens (where it has one) has the new ones too."""
    config = json.loads(content)
    listed = config.get("added_tokens_decoder")
    if not isinstance(listed, dict):
        return content
    plain = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    new = {str(i): {"content": name, **plain, "special": True} for name, i in ids.items()}
    return _json({**config, "added_tokens_decoder": {**listed, **new}})


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def tokenizer_of(source: Mapping[str, bytes], folder: Path) -> HFTokenizer:
    """The tokenizer among a folder's files.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    path = folder / TOKENIZER
    if TOKENIZER not in source:
        raise UserError(
            f"{folder} has no {TOKENIZER}: save its tokenizer there with save_pretrained, as a "
            f"fast one"
        )
    try:
        text = source[TOKENIZER].decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"cannot read the tokenizer {path}: not UTF-8; download it again"
        ) from error
    found = tokenizer_from_text(text, str(path))
    if not isinstance(found, HFTokenizer):
        raise UserError(f"{path} is none of the Hugging Face tokenizers library: put that there")
    return found


def _mean(rows: np.ndarray) -> np.ndarray:
    """The mean row, float64; some rows at a time."""
    step = max(1, PIECE // math.prod(rows.shape[1:]))
    total = np.zeros(rows.shape[1:])
    for start in range(0, len(rows), step):
        total += np.asarray(rows[start : start + step]).sum(axis=0, dtype=np.float64)
    return total / len(rows)


def with_rows(table: Table, params: Params, known: int, vocab: int, ids: Sequence[int]) -> Params:
    """Parameters with rows for new ids: the mean of the old rows, taken in float64.

    Args:
      table: of the model, with the vocabulary that it had.
      params: NumPy arrays, or such that are not read yet.
      known: ids that the tokenizer had; rows beyond them were spare.
      vocab: rows that there shall be, at least as many as there are.
      ids: of the new tokens. Spare rows among them are used; others stay as they are.
    """

    def one(param: Param, array: np.ndarray) -> np.ndarray:
        if VOCAB not in param.axes:
            return array
        axis = param.axes.index(VOCAB)
        rows = np.moveaxis(array, axis, 0)
        whose = np.minimum(np.arange(vocab), len(rows))
        whose[list(ids)] = len(rows)  # the row behind the last: the mean
        new = np.concatenate([rows, _mean(rows[:known])[None].astype(array.dtype)])[whose]
        return np.moveaxis(new, 0, axis)

    return jax.tree.map(one, table, params, is_leaf=lambda leaf: isinstance(leaf, Param))
