"""The tokens of a whole split as one array on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from gam_jax.data.corpus import Corpus
from gam_jax.data.storage import cache_path, cached
from gam_jax.data.tokenizer import Tokenizer
from sharding.errors import UserError

T = TypeVar("T")

GROUP = 1 << 22
"""Characters that are tokenized at once."""


def tokenize_split(
    corpus: Corpus, split: str, tokenizer: Tokenizer, separators: bool = True
) -> np.ndarray:
    """The tokens of a split, in order, with a separator between documents.

    Tokenized once, and kept in the data folder under the fingerprints of corpus and tokenizer, with
    a checksum that is compared each time.

    Args:
      corpus: where the text comes from.
      split: which of its splits.
      tokenizer: turns text into ids.
      separators: whether to put `tokenizer.separator` between documents.

    Returns:
      A read-only memory map, [N] of uint16 if the vocabulary fits, else of uint32.

    Raises:
      UserError: separators are wanted of a tokenizer that has none; no room on disk.
    """
    if separators:
        check_separator(tokenizer)
    settings = {
        "corpus": corpus.fingerprint,
        "split": split,
        "tokenizer": tokenizer.fingerprint,
        "separators": separators,
    }
    path = cache_path(corpus.folder, "tokens", settings, ".npy")

    def write(target: Path) -> None:
        _write(target, corpus, split, tokenizer, separators)

    return np.load(cached(corpus.folder, path, write), mmap_mode="r")


def check_separator(tokenizer: Tokenizer) -> None:
    """Raises a UserError for a tokenizer without a separator."""
    if tokenizer.separator is None:
        raise UserError(
            "the tokenizer has no token that ends a text (such as </s> or <|endoftext|>) to put "
            "between documents: set data.separators=False or add one to it"
        )


def document_lengths(corpus: Corpus, split: str, tokenizer: Tokenizer) -> np.ndarray:
    """Tokens of each document of a split, int64, in order; kept as the tokens are."""
    settings: dict[str, object] = {
        "corpus": corpus.fingerprint,
        "split": split,
        "tokenizer": tokenizer.fingerprint,
    }
    path = cache_path(corpus.folder, "lengths", settings, ".npy")

    def write(target: Path) -> None:
        lengths: list[int] = []
        for group in _groups(corpus, split):
            ids = tokenizer.encode_batch([text for _, text in group])
            for (starts, _), own in zip(group, ids, strict=True):
                if starts or not lengths:
                    lengths.append(0)
                lengths[-1] += len(own)
        with target.open("wb") as file:
            np.save(file, np.asarray(lengths, np.int64))

    return np.load(cached(corpus.folder, path, write))


def _write(path: Path, corpus: Corpus, split: str, tokenizer: Tokenizer, separators: bool) -> None:
    dtype = np.dtype(np.uint16 if tokenizer.vocab <= 1 << 16 else np.uint32)
    with path.open("wb") as file:
        count = 0
        _write_header(file, dtype, count)
        for ids in _token_runs(corpus, split, tokenizer, separators):
            count += len(ids)
            file.write(ids.astype(dtype).tobytes())
        file.seek(0)
        _write_header(file, dtype, count)


def _write_header(file: BinaryIO, dtype: np.dtype, count: int) -> None:
    # NumPy leaves room in the header for the count to grow, so it can be written over.
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
    np.lib.format.write_array_header_1_0(file, {**header, "shape": (count,)})


def _token_runs(
    corpus: Corpus, split: str, tokenizer: Tokenizer, separators: bool
) -> Iterator[np.ndarray]:
    """Ids of the pieces of text in order, and separators where a document follows another."""
    separator = np.asarray([tokenizer.separator if separators else 0], np.int32)
    first = True
    for group in _groups(corpus, split):
        for (starts, _), ids in zip(
            group, tokenizer.encode_batch([text for _, text in group]), strict=True
        ):
            if starts and separators and not first:
                yield separator
            first = False
            yield ids


def _groups(corpus: Corpus, split: str) -> Iterator[list[tuple[bool, str]]]:
    """Pieces in groups large enough to be tokenized in parallel."""
    return grouped(corpus.documents(split).pieces(), lambda piece: len(piece[1]), split)


def grouped(items: Iterable[T], size: Callable[[T], int], split: str) -> Iterator[list[T]]:
    """Items in groups of `GROUP` characters or more, with a bar of progress on terminals.

    Args:
      items: with text in each.
      size: the characters of an item.
      split: they are of, for the bar.
    """
    from tqdm import tqdm

    group, characters = [], 0
    with tqdm(desc=f"tokenizing {split}", unit="char", unit_scale=True, disable=None) as bar:
        for item in items:
            group.append(item)
            characters += size(item)
            if characters >= GROUP:
                yield group
                bar.update(characters)
                group, characters = [], 0
        if group:
            yield group
            bar.update(characters)
