"""Prompts and conversations as tokens, and which of them count.

What counts is found in characters first. A token counts if one of its characters does; so one that
straddles the border of what counts does. A token of no characters counts as the one at its place.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gam_jax.data.chat_template import ChatTemplate, Marked
from gam_jax.data.corpus import Corpus
from gam_jax.data.storage import cache_path, cached
from gam_jax.data.text import Text
from gam_jax.data.tokenizer import Tokenizer
from gam_jax.data.tokens import check_separator, grouped
from sharding.errors import UserError

NO_CHARACTERS = ("\ufdd0", "\ufdd1")
"""What a template is marked with, see `jinja_engine`."""


class Counted(NamedTuple):
    """Documents one after another.

    Attributes:
      tokens: [N] ids, uint16 if the vocabulary fits, else uint32; a separator between each two
        documents, if there are separators.
      counts: uint8 [N], 1 where a token counts. The first of a document that begins with no
        separator is never predicted, and does not.
      lengths: int64, tokens of each document.
    """

    tokens: np.ndarray
    counts: np.ndarray
    lengths: np.ndarray


def counted_split(
    corpus: Corpus, split: str, tokenizer: Tokenizer, config: Text, template: ChatTemplate | None
) -> Counted:
    """A split of records as tokens.

    Kept as `tokens.tokenize_split` keeps them, in three files that are made at once, in memory.

    Args:
      corpus: of records, see `builders.records`.
      split: of the corpus.
      tokenizer: turns text into ids.
      config: format, loss and separators.
      template: of `chat`.

    Raises:
      UserError: a conversation that the template refuses, or that cannot be split; a text that
        spells a special token; separators of a tokenizer that has none; no room on disk.
    """
    if config.separated:
        check_separator(tokenizer)
    settings: dict[str, object] = {
        "corpus": corpus.fingerprint,
        "split": split,
        "tokenizer": tokenizer.fingerprint,
        "format": config.format,
        "loss": config.loss,
        "template": template.fingerprint if template else "",
        "separators": config.separated,
    }
    made = functools.cache(lambda: _encoded(corpus, split, tokenizer, config, template))

    def kept(part: str) -> Path:
        def write(target: Path) -> None:
            with target.open("wb") as file:
                np.save(file, getattr(made(), part))

        path = cache_path(corpus.folder, part, settings, ".npy")
        return cached(corpus.folder, path, write)

    tokens, counts = (np.load(kept(part), mmap_mode="r") for part in ("tokens", "counts"))
    return Counted(tokens, counts, np.load(kept("lengths")))


def token_counts(places: np.ndarray, marked: Marked) -> np.ndarray:
    """uint8 [N], 1 where a token counts.

    Args:
      places: [N, 2], the characters of each token, from and to.
      marked: the text, and what counts of it.
    """
    counts = np.zeros(len(marked.text) + 1, np.int64)
    for start, end in marked.spans:
        counts[start:end] = 1
    before = np.concatenate([[0], np.cumsum(counts)])
    start, end = places[:, 0], np.maximum(places[:, 1], places[:, 0] + 1)
    return (before[end] > before[start]).astype(np.uint8)


def written(
    record: Mapping[str, Any], config: Text, template: ChatTemplate | None, place: str
) -> Marked:
    """A record as text, with what counts of it.

    Args:
      record: a prompt with its completion, or a conversation.
      config: format and loss.
      template: of `chat`.
      place: of the record, for messages.

    Raises:
      UserError: the template refuses it, or cannot be split.
    """
    whole = config.loss == "all"
    if template is None:
        text = record["prompt"] + record["completion"]
        return Marked(text, ((0 if whole else len(record["prompt"]), len(text)),))
    messages, tools = record["messages"], record.get("tools")
    if not whole:
        return template.marked(messages, tools, place)
    text = template.written(messages, tools, place)
    return Marked(text, ((0, len(text)),))


def plain_texts(corpus: Corpus, split: str, format: str) -> Iterator[str]:
    """The texts in the records of a split, as people wrote them: what a BPE is trained on."""
    for _, text in corpus.documents(split).records():
        record = json.loads(text)
        if format == "prompt":
            yield record["prompt"] + record["completion"]
        else:
            yield from (message.get("content", "") for message in record["messages"])


def _encoded(
    corpus: Corpus, split: str, tokenizer: Tokenizer, config: Text, template: ChatTemplate | None
) -> Counted:
    dtype = np.uint16 if tokenizer.vocab <= 1 << 16 else np.uint32
    separator = np.asarray([tokenizer.separator] if config.separated else [], dtype)
    tokens, counts, lengths = [], [], []
    texts = _marked(corpus, split, tokenizer, config, template)
    for group in grouped(texts, lambda marked: len(marked.text), split):
        found = tokenizer.encode_places([marked.text for marked in group], template is not None)
        for marked, (ids, places) in zip(group, found, strict=True):
            own = token_counts(places, marked)
            if not len(separator):
                own[:1] = 0
            tokens += [separator, ids.astype(dtype)] if lengths else [ids.astype(dtype)]
            counts += [np.ones_like(separator, np.uint8), own] if lengths else [own]
            lengths.append(len(ids))
    return Counted(np.concatenate(tokens), np.concatenate(counts), np.asarray(lengths, np.int64))


def _marked(
    corpus: Corpus, split: str, tokenizer: Tokenizer, config: Text, template: ChatTemplate | None
) -> Iterator[Marked]:
    """The records of a split as text."""
    never = (*sorted(tokenizer.special_tokens), *NO_CHARACTERS) if template else ()
    for path, text in corpus.documents(split).records():
        place = f"{corpus.name}: {path}"
        try:
            record = json.loads(text)
        except ValueError as error:
            raise UserError(
                f"{place}: cut in two by data.train_rows or data.validation_rows: give another"
            ) from error
        if spelled := next((name for name in never if name and name in text), None):
            raise UserError(
                f"{place}: spells {spelled!a}, which the chat template alone may write: take it out"
            )
        yield written(record, config, template, place)
