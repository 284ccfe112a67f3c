"""Text that has been opened: a corpus, its tokenizer and the tokens of its splits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gam_jax.data.base import Batch, Dataset, Sums
from gam_jax.data.baselines import baselines, counted_baselines
from gam_jax.data.bpe import cached_bpe
from gam_jax.data.chat_template import ChatTemplate, find_template, template_from_text
from gam_jax.data.corpus import Corpus, open_corpus
from gam_jax.data.counted import counted_split
from gam_jax.data.packing import DocumentRows, check_rows, first_documents
from gam_jax.data.stream import TrainBatches, validation_stream
from gam_jax.data.text import TEMPLATE, TOKENIZER, Text
from gam_jax.data.tokenizer import (
    ByteTokenizer,
    Tokenizer,
    load_tokenizer,
    tokenizer_from_text,
)
from gam_jax.data.tokens import document_lengths, tokenize_split
from gam_jax.data.windows import Windows, train_batches, validation_batches, windows
from sharding.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class TextDataset(Dataset):
    """A corpus, its tokenizer and the tokens of its splits.

    Attributes:
      config: what it was loaded with.
      corpus: the text.
      tokenizer: text to ids.
      train: [N] tokens, read-only, uint16 or uint32.
      validation: likewise.
      test: likewise, None where the corpus has no test split.
      lengths: split -> tokens of each document, where rows hold whole documents.
      counts: split -> uint8 [N], 1 where a token counts; empty for texts, which count whole.
      template: of conversations.
      bytes_per_token: UTF-8 bytes of the validation text / tokens of the validation split
        (separators count as tokens and not as bytes). Bits per byte are
        loss / ln 2 / bytes_per_token. None of prompts and conversations.
    """

    config: Text
    corpus: Corpus
    tokenizer: Tokenizer
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray | None
    bytes_per_token: float | None
    lengths: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    counts: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    template: ChatTemplate | None = None

    unit = "tokens"

    @property
    def units_per_row(self) -> int:  # type: ignore[override]
        """Tokens of a window."""
        return self.config.window

    @property
    def sizes(self) -> Mapping[str, int]:  # type: ignore[override]
        """vocab, the window's tokens, and whether rows are packed."""
        return {"vocab": self.tokenizer.vocab, **self.config.row_sizes}

    @property
    def fingerprints(self) -> Mapping[str, str]:  # type: ignore[override]
        """Of the text, of the tokenizer and, of conversations, of their template."""
        own = {"corpus": self.corpus.fingerprint, "tokenizer": self.tokenizer.fingerprint}
        return own if self.template is None else {**own, "template": self.template.fingerprint}

    @property
    def files(self) -> Mapping[str, str]:  # type: ignore[override]
        """The tokenizer, and the chat template."""
        own = {TOKENIZER: self.tokenizer.to_text()}
        return own if self.template is None else {**own, TEMPLATE: self.template.to_text()}

    def split(self, name: str) -> np.ndarray:
        """The tokens of "train", "validation" or "test".

        Raises:
          UserError: the corpus has no such split.
        """
        tokens = {"train": self.train, "validation": self.validation, "test": self.test}[name]
        if tokens is None:
            raise UserError(f"{self.config.name} has no split '{name}': use train or validation")
        return tokens

    def scored_on(self, split: str, tokens: int = 0) -> TextDataset:
        """The same with another split, or the first tokens of it, as its validation stream."""
        held = self.split(split)
        lengths, counts = (
            {**of, "validation": of[split]} if of else of for of in (self.lengths, self.counts)
        )
        found = dataclasses.replace(self, validation=held, lengths=lengths, counts=counts)
        return found.first(0, tokens)

    def rows(self, split: str, multiple: int = 1) -> Windows | DocumentRows:
        """A split as rows to train on, or, with another multiple, as rows to score.

        Args:
          split: "train" or "validation".
          multiple: rows of no weight follow until there are a multiple of it.

        Raises:
          UserError: there is not one whole row of training text.
        """
        config, tokens = self.config, self.split(split)
        if config.documents == "joined":
            return windows(tokens, config.window, config.step)
        separator = self.tokenizer.separator if config.separated else None
        packed, counts = config.documents == "packed", self.counts.get(split)
        rows = DocumentRows(
            tokens, self.lengths[split], config.window, separator, packed, multiple, counts
        )
        if split == "train":
            check_rows(rows, config.window)
        return rows

    def train_stream(
        self, rows: int, seed: int, process: int = 0, processes: int = 1, position: int = 0
    ) -> TrainBatches:
        """The rows of the training text in an order drawn from the seed, then in another, ..."""
        return train_batches(
            self.rows("train"),
            self.config,
            batch=rows,
            seed=seed,
            process=process,
            processes=processes,
            position=position,
        )

    def validation_stream(
        self, part: str, rows: int, process: int = 0, processes: int = 1
    ) -> Iterator[Batch]:
        """Rows in which each validation token is scored once."""
        if self.config.documents == "joined":
            return validation_batches(
                self.validation, self.config, batch=rows, process=process, processes=processes
            )
        source = self.rows("validation", rows)
        return validation_stream(source, batch=rows, process=process, processes=processes)

    def scores(self, sums: Mapping[str, Sums]) -> dict[str, float]:
        """loss in nats per token that counts, perplexity; of texts, bits per byte; and what the
        model tells besides."""
        (part,) = sums.values()
        total, count = part["loss"]
        return {**text_scores(total / count, self.bytes_per_token), **beside([part])}

    def baselines(self) -> dict[str, dict[str, float]]:
        """Of the tokens that a model is validated on."""
        if self.bytes_per_token is None:
            return counted_baselines(
                self.train,
                self.validation,
                self.counts["train"],
                self.counts["validation"],
                self.tokenizer.vocab,
            )
        return baselines(
            self.train,
            self.validation,
            self.tokenizer.vocab,
            round(len(self.validation) * self.bytes_per_token),
            self.corpus.documents("validation"),
            window=self.config.window,
            stride=self.config.step,
        )

    def first(self, train: int, validation: int) -> TextDataset:
        """That many first tokens of each split to predict; 0 for all."""
        data = self
        if validation and validation < len(data.validation) - 1:
            data = data._cut("validation", validation)
        if train and train < len(data.train) - 1:
            data = data._cut("train", train)
            data.rows("train")
        return data

    def _cut(self, split: str, tokens: int) -> TextDataset:
        lengths, counts, end = dict(self.lengths), dict(self.counts), tokens + 1
        if lengths:
            separators, whole = self.config.separated, bool(counts)
            lengths[split] = first_documents(lengths[split], tokens, separators, whole)
        if counts:  # no record is cut
            end = int(lengths[split].sum()) + separators * (len(lengths[split]) - 1)
            counts[split] = counts[split][:end]
        changes: dict[str, Any] = {split: self.split(split)[:end], "lengths": lengths}
        return dataclasses.replace(self, **changes, counts=counts)

    def described(self) -> str:
        """Tokens of each split, and the share of the text's bytes that validation has."""
        held, train = (self.corpus.bytes(split) for split in ("validation", "train"))
        return (
            f"{len(self.train):,} training and {len(self.validation):,} validation tokens "
            f"({held / (train + held):.1%} of the bytes held out){self._of_rows()}"
        )

    def _of_rows(self) -> str:
        """How many rows documents make, and how much of them is empty."""
        rows = self.rows("train")
        if not isinstance(rows, DocumentRows):
            return ""
        number = f"{len(self.lengths['train']):,} documents in {rows.filled:,} rows"
        counts = self.counts.get("train")
        share = "" if counts is None else f"; {counts.mean():.1%} of the tokens count"
        return f"; {number}, of whose places {rows.waste:.1%} are empty{share}"

    def changed(self, name: str, saved: Mapping[str, Any]) -> str:
        """That of the text, of its split or of the tokenizer."""
        return text_changed(name, self.config.name, saved)


def text_changed(name: str, of: str, saved: Mapping[str, Any]) -> str:
    """What is told of a fingerprint of text that has changed, see `Dataset.changed`.

    Args:
      name: of the fingerprint.
      of: the data's name.
      saved: the configuration that was recorded.
    """
    if name == "template":
        return f"the chat template of '{of}' ({TEMPLATE}) has changed"
    if name == "tokenizer":
        return f"the tokenizer of '{of}' ({TOKENIZER}) has changed"
    if of.startswith("text:") and saved and "field" not in saved:  # of a version before that field
        return f"the split of '{of}' has changed (by bytes, no longer by files), or its text has,"
    return f"the text of '{of}' has changed"


def beside(parts: Collection[Sums]) -> dict[str, float]:
    """Means of what a model tells besides the loss and how often it was right."""
    found: dict[str, float] = {}
    for name in sorted({name for part in parts for name in part} - {"loss", "accuracy"}):
        told = [part[name] for part in parts if name in part]
        if count := sum(count for _, count in told):
            found[name] = sum(value for value, _ in told) / count
    return found


def text_scores(loss: float, bytes_per_token: float | None) -> dict[str, float]:
    """loss, perplexity (infinite where it is too large for a float) and bits per byte.

    Args:
      loss: nats per token that counts.
      bytes_per_token: None for no bits per byte.
    """
    found = {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf}
    if bytes_per_token is None:
        return found
    return {**found, "bits_per_byte": loss / math.log(2) / bytes_per_token}


def open_text(
    config: Text, tokenizer: Tokenizer | None = None, template: ChatTemplate | None = None
) -> TextDataset:
    """Opens the corpus, makes or opens the tokenizer, and tokenizes every split.

    Args:
      config: what to read.
      tokenizer: used in place of the one that `config` names: a run's own, on other text.
      template: of conversations, used in place of the one that `config` names.

    Raises:
      UserError: anything that a person can mend, before any training starts.
    """
    if config.format == "chat":
        template = template or find_template(config.tokenizer, config.template)
    corpus = open_corpus(config)
    if config.format != "text":
        return _open_records(
            config, corpus, tokenizer, template if config.format == "chat" else None
        )
    tokenizer = tokenizer or make_tokenizer(config, [corpus])
    tokens = {s: tokenize_split(corpus, s, tokenizer, config.separators) for s in corpus.splits}
    if len(tokens["validation"]) < 2:
        raise UserError(f"the validation text of {config.name} is under two tokens: give more text")
    lengths = {}
    if config.documents != "joined":
        lengths = {split: document_lengths(corpus, split, tokenizer) for split in corpus.splits}
    data = TextDataset(
        config=config,
        corpus=corpus,
        tokenizer=tokenizer,
        train=tokens["train"],
        validation=tokens["validation"],
        test=tokens.get("test"),
        bytes_per_token=corpus.bytes("validation") / len(tokens["validation"]),
        lengths=lengths,
    )
    data.rows("train")
    return data


def _open_records(
    config: Text, corpus: Corpus, tokenizer: Tokenizer | None, template: ChatTemplate | None
) -> TextDataset:
    """Prompts or conversations, with what counts of them."""
    tokenizer = tokenizer or make_tokenizer(config, [corpus])
    found = {s: counted_split(corpus, s, tokenizer, config, template) for s in corpus.splits}
    data = TextDataset(
        config=config,
        corpus=corpus,
        tokenizer=tokenizer,
        train=found["train"].tokens,
        validation=found["validation"].tokens,
        test=None,
        bytes_per_token=None,
        lengths={split: own.lengths for split, own in found.items()},
        counts={split: own.counts for split, own in found.items()},
        template=template,
    )
    data.rows("train")
    return data


def make_tokenizer(config: Text, corpora: Sequence[Corpus]) -> Tokenizer:
    """The tokenizer that `config` names: bytes, a BPE trained on the corpora, or a file.

    Raises:
      UserError: the file cannot be read; the BPE's vocabulary is too small.
    """
    if config.tokenizer == "bytes":
        return ByteTokenizer()
    if config.tokenizer.startswith("bpe:"):
        return cached_bpe(corpora, config, int(config.tokenizer.removeprefix("bpe:")))
    return load_tokenizer(config.tokenizer)


def kept_tokenizer(files: Mapping[str, str]) -> Tokenizer | None:
    """The tokenizer among the files that a run keeps; None for a new run."""
    kept = files.get(TOKENIZER)
    return None if kept is None else tokenizer_from_text(kept)


def kept_template(files: Mapping[str, str]) -> ChatTemplate | None:
    """The chat template among the files that a run keeps; None for a new run, or one of text."""
    kept = files.get(TEMPLATE)
    return None if kept is None else template_from_text(kept, TEMPLATE)
