"""Trains a byte-pair encoding on a corpus, once: it is cached beside the corpus."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from gam_jax.data.corpus import Corpus
from gam_jax.data.counted import plain_texts
from gam_jax.data.storage import cache_path, cached
from gam_jax.data.text import Text
from gam_jax.data.tokenizer import SPECIAL_TOKENS, HFTokenizer, load_tokenizer
from sharding.errors import UserError


def train_bpe(documents: Iterable[str], vocab: int, pre_tokenizer: str) -> HFTokenizer:
    """Trains a BPE; the same documents in the same order give the same tokenizer.

    The first four ids are [UNK], [PAD], [SOS] and [EOS].

    Args:
      documents: the text to train on.
      vocab: number of ids wanted; a small corpus may give fewer.
      pre_tokenizer: `byte_level` (all 256 bytes are tokens, nothing is lost) or `whitespace`
        (words and runs of punctuation; whitespace is dropped and unknown characters are [UNK]).

    Raises:
      UserError: the vocabulary is too small for the bytes and the special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    byte_level = pre_tokenizer == "byte_level"
    least = len(SPECIAL_TOKENS) + (256 if byte_level else 1)
    if vocab < least:
        raise UserError(f"bpe:{vocab} is too small a vocabulary: give {least} or more")
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL_TOKENS[0]))
    if byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if byte_level else [],
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator(documents, trainer)
    return HFTokenizer(tokenizer)


def cached_bpe(corpora: Sequence[Corpus], config: Text, vocab: int) -> HFTokenizer:
    """The BPE of some corpora with the settings of `config`, trained if it is not cached.

    Raises:
      UserError: as `train_bpe`; no room on disk.
    """
    every = config.bpe_splits == "all"
    splits = [corpus.splits if every else ("train",) for corpus in corpora]
    settings: dict[str, object] = {
        "vocab": vocab,
        "pre_tokenizer": config.bpe_pre_tokenizer,
    }
    if len(corpora) == 1:
        settings |= {"corpus": corpora[0].fingerprint, "splits": list(splits[0])}
    else:
        pairs = zip(corpora, splits, strict=True)
        settings["corpora"] = [[corpus.fingerprint, list(own)] for corpus, own in pairs]
    folder = corpora[0].folder
    path = cache_path(folder, "bpe", settings, ".json")

    def write(target: Path) -> None:
        text = itertools.chain.from_iterable(
            _text(corpus, own, config.format) for corpus, own in zip(corpora, splits, strict=True)
        )
        made = train_bpe(text, vocab, config.bpe_pre_tokenizer)
        target.write_text(made.to_text(), encoding="utf-8")

    tokenizer = load_tokenizer(cached(folder, path, write))
    assert isinstance(tokenizer, HFTokenizer)
    return tokenizer


def _text(corpus: Corpus, splits: Iterable[str], format: str) -> Iterator[str]:
    for split in splits:
        if format == "text":
            yield from (text for _, text in corpus.documents(split).pieces())
        else:
            yield from plain_texts(corpus, split, format)
