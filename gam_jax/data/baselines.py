"""What a model must beat: counting tokens, counting pairs of tokens, and two file compressors."""

from __future__ import annotations

import lzma
import math
import zlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

CHUNK = 1 << 22
"""Tokens counted at once."""
DENSE = 1 << 24
"""Pairs of ids up to which every pair has a counter."""
COMPRESSED = 64 << 20
"""Bytes of text given to the compressors at most."""


def baselines(
    train_tokens: np.ndarray,
    validation_tokens: np.ndarray,
    vocab: int,
    validation_text_bytes: int,
    documents: Sequence[str],
    *,
    window: int = 0,
    stride: int = 0,
) -> dict[str, dict[str, float]]:
    """Losses of models that learn nothing but counts, and of compressors.

    - unigram: add-one estimate, p(b) = (n(b) + 1) / (N + V).
    - bigram: interpolated with the unigram by Witten and Bell's weight of the context a, which
      occurs N(a) times before D(a) distinct tokens: p(b|a) = (n(ab) + D(a) p(b)) / (N(a) + D(a)).
    - gzip, xz: at level 9, over the validation text (its first 64 MiB at most: `text_bytes` says
      how many bytes were compressed).

    Args:
      train_tokens: [N], counted.
      validation_tokens: [M], scored: all but the first, which are those that a model is scored on.
      vocab: V.
      validation_text_bytes: UTF-8 bytes of the validation text.
      documents: the validation text, for the compressors.
      window: with `stride`, when it leaves gaps between windows (stride > window): the tokens in
        the gaps are not scored, as they are not for a model.
      stride: see `window`.

    Returns:
      name -> loss (nats per token), perplexity and bits_per_byte (loss / ln 2 * M / bytes, as for
      a model); the compressors also have text_bytes.

    Reference: Witten and Bell 1991, "The zero-frequency problem" (their method C).
    """
    tokens_per_byte = len(validation_tokens) / max(1, validation_text_bytes)
    scored = _scored(len(validation_tokens), window, stride)
    unigram, bigram = _count_losses(train_tokens, validation_tokens, vocab, scored)
    result = {
        "unigram": _figures(unigram, tokens_per_byte),
        "bigram": _figures(bigram, tokens_per_byte),
    }
    text_bytes, sizes = _compressed(documents)
    for name, size in sizes.items():
        loss = size * 8 * math.log(2) / max(1, text_bytes) / tokens_per_byte
        result[name] = {**_figures(loss, tokens_per_byte), "text_bytes": float(text_bytes)}
    return result


def counted_baselines(
    train: np.ndarray,
    validation: np.ndarray,
    train_counts: np.ndarray,
    validation_counts: np.ndarray,
    vocab: int,
) -> dict[str, dict[str, float]]:
    """The same counts of the tokens that count, scored on those that do; no compressors.

    A pair is of a token that counts and the one before it, which need not.

    Args:
      train: [N] tokens.
      validation: [M] tokens.
      train_counts: [N], above 0 where a token counts.
      validation_counts: [M], likewise.
      vocab: V.

    Returns:
      name -> loss (nats per token that counts) and perplexity.
    """
    scored = np.flatnonzero(validation_counts[1:]) + 1
    losses = _count_losses(train, validation, vocab, scored, train_counts)
    return {n: _figures(loss) for n, loss in zip(("unigram", "bigram"), losses, strict=True)}


def _figures(loss: float, tokens_per_byte: float | None = None) -> dict[str, float]:
    found = {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf}
    if tokens_per_byte is None:
        return found
    return {**found, "bits_per_byte": loss / math.log(2) * tokens_per_byte}


def _scored(length: int, window: int, stride: int) -> np.ndarray:
    """Indices of the tokens that are predicted: all but the first, and but those in gaps."""
    indices = np.arange(1, length)
    if stride <= window or not window:
        return indices
    within = indices % stride
    return indices[(within >= 1) & (within <= window)]


def _count_losses(
    train: np.ndarray,
    validation: np.ndarray,
    vocab: int,
    scored: np.ndarray,
    counting: np.ndarray | None = None,
) -> tuple[float, float]:
    """Mean nats per scored token of the unigram and the bigram."""
    if counting is None:
        counting = np.broadcast_to(np.uint8(1), len(train))
    own = zip(_chunks(train), _chunks(counting), strict=True)
    counts = sum((np.bincount(c[k > 0], minlength=vocab) for c, k in own), np.zeros(vocab, int))
    unigram = (counts + 1) / (counts.sum() + vocab)
    pairs, pair_counts = _count_pairs(train, vocab, counting)
    contexts = pairs // vocab
    followers = np.bincount(contexts, minlength=vocab)
    occurrences = np.bincount(contexts, weights=pair_counts, minlength=vocab)
    unigram_nats = bigram_nats = 0.0
    for part in np.array_split(scored, max(1, len(scored) // CHUNK)):
        before, token = validation[part - 1].astype(np.int64), validation[part].astype(np.int64)
        p = unigram[token]
        seen = _look_up(pairs, pair_counts, before * vocab + token)
        weight = occurrences[before] + followers[before]
        # A context that was never seen has weight 0: there the unigram alone speaks.
        conditional = np.where(
            weight > 0, (seen + followers[before] * p) / np.maximum(weight, 1), p
        )
        unigram_nats -= float(np.log(p).sum())
        bigram_nats -= float(np.log(conditional).sum())
    return unigram_nats / max(1, len(scored)), bigram_nats / max(1, len(scored))


def _chunks(tokens: np.ndarray, overlap: int = 0) -> Iterator[np.ndarray]:
    """Runs of tokens as int64, each repeating the last `overlap` of the one before."""
    for start in range(0, len(tokens) - overlap, CHUNK):
        yield tokens[start : start + CHUNK + overlap].astype(np.int64)


def _count_pairs(
    tokens: np.ndarray, vocab: int, counting: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sorted codes a * V + b of the pairs of neighbours whose second counts, and their numbers."""
    chunks = zip(_chunks(tokens, overlap=1), _chunks(counting, overlap=1), strict=True)
    codes = ((chunk[:-1] * vocab + chunk[1:])[own[1:] > 0] for chunk, own in chunks)
    if vocab * vocab <= DENSE:
        table = np.zeros(vocab * vocab, np.int64)
        for code in codes:
            table += np.bincount(code, minlength=vocab * vocab)
        pairs = np.flatnonzero(table)
        return pairs, table[pairs]
    pairs, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for code in codes:
        more, more_counts = np.unique(code, return_counts=True)
        merged, place = np.unique(np.concatenate([pairs, more]), return_inverse=True)
        weights = np.concatenate([counts, more_counts])
        pairs, counts = merged, np.bincount(place, weights=weights).astype(np.int64)
    return pairs, counts


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """values[i] where keys[i] is wanted, 0 where none is; keys are sorted."""
    if not len(keys):
        return np.zeros(len(wanted), np.int64)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


def _compressed(documents: Sequence[str]) -> tuple[int, dict[str, int]]:
    """Bytes of text compressed, and the size that each compressor makes of them."""
    text = bytearray()
    for document in documents:
        text += document.encode()
        if len(text) >= COMPRESSED:
            del text[COMPRESSED:]
            break
    compressors: dict[str, _Compressor] = {
        "gzip": zlib.compressobj(9, wbits=31),
        "xz": lzma.LZMACompressor(filters=[_xz_9(len(text))]),
    }
    data = bytes(text)
    return len(data), {k: len(c.compress(data)) + len(c.flush()) for k, c in compressors.items()}


def _xz_9(size: int) -> dict[str, int]:
    """The filter of `xz -9` with a dictionary no larger than the text, to spare memory."""
    whole = 1 << max(12, (size - 1).bit_length() if size else 0)
    return {"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": min(64 << 20, whole)}
