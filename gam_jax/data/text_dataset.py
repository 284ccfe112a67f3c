"""Text that has been opened: a corpus, its tokenizer and the tokens of its splits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gam_jax.data.base import Batch, Dataset, Sums
from gam_jax.data.baselines import baselines
from gam_jax.data.bpe import cached_bpe
from gam_jax.data.corpus import Corpus, open_corpus
from gam_jax.data.stream import TrainBatches
from gam_jax.data.text import TOKENIZER, Text
from gam_jax.data.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer
from gam_jax.data.tokens import tokenize_split
from gam_jax.data.windows import train_batches, validation_batches, windows
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
      bytes_per_token: UTF-8 bytes of the validation text / tokens of the validation split
        (separators count as tokens and not as bytes). Bits per byte are
        loss / ln 2 / bytes_per_token.
    """

    config: Text
    corpus: Corpus
    tokenizer: Tokenizer
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray | None
    bytes_per_token: float

    unit = "tokens"

    @property
    def units_per_row(self) -> int:  # type: ignore[override]
        """Tokens of a window."""
        return self.config.window

    @property
    def sizes(self) -> Mapping[str, int]:  # type: ignore[override]
        """vocab, and the window's tokens."""
        return {"vocab": self.tokenizer.vocab, "window": self.config.window}

    @property
    def fingerprints(self) -> Mapping[str, str]:  # type: ignore[override]
        """Of the text and of the tokenizer."""
        return {"corpus": self.corpus.fingerprint, "tokenizer": self.tokenizer.fingerprint}

    @property
    def files(self) -> Mapping[str, str]:  # type: ignore[override]
        """The tokenizer."""
        return {TOKENIZER: self.tokenizer.to_text()}

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
        return dataclasses.replace(self, validation=held[: tokens + 1] if tokens else held)

    def train_stream(
        self, rows: int, seed: int, process: int = 0, processes: int = 1, position: int = 0
    ) -> TrainBatches:
        """Windows of the training tokens, see `windows.train_batches`."""
        return train_batches(
            self.train,
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
        """Windows in which each validation token is scored once."""
        return validation_batches(
            self.validation, self.config, batch=rows, process=process, processes=processes
        )

    def scores(self, sums: Mapping[str, Sums]) -> dict[str, float]:
        """loss in nats per token, perplexity, bits per byte of the text."""
        (part,) = sums.values()
        total, count = part["loss"]
        return text_scores(total / count, self.bytes_per_token)

    def baselines(self) -> dict[str, dict[str, float]]:
        """Of the tokens that a model is validated on."""
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
            data = dataclasses.replace(data, validation=data.validation[: validation + 1])
        if train and train < len(data.train) - 1:
            data = dataclasses.replace(data, train=data.train[: train + 1])
            windows(data.train, self.config.window, self.config.step)
        return data

    def described(self) -> str:
        """Tokens of each split, and the share of the text's bytes that validation has."""
        held, train = (self.corpus.bytes(split) for split in ("validation", "train"))
        return (
            f"{len(self.train):,} training and {len(self.validation):,} validation tokens "
            f"({held / (train + held):.1%} of the bytes held out)"
        )

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
    if name == "tokenizer":
        return f"the tokenizer of '{of}' ({TOKENIZER}) has changed"
    if of.startswith("text:") and saved and "field" not in saved:  # of a version before that field
        return f"the split of '{of}' has changed (by bytes, no longer by files), or its text has,"
    return f"the text of '{of}' has changed"


def text_scores(loss: float, bytes_per_token: float) -> dict[str, float]:
    """loss, perplexity (infinite where it is too large for a float) and bits per byte."""
    return {
        "loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else math.inf,
        "bits_per_byte": loss / math.log(2) / bytes_per_token,
    }


def open_text(config: Text, tokenizer: Tokenizer | None = None) -> TextDataset:
    """Opens the corpus, makes or opens the tokenizer, and tokenizes every split.

    Args:
      config: what to read.
      tokenizer: used in place of the one that `config` names: a run's own, on other text.

    Raises:
      UserError: anything that a person can mend, before any training starts.
    """
    corpus = open_corpus(config)
    tokenizer = tokenizer or make_tokenizer(config, [corpus])
    tokens = {s: tokenize_split(corpus, s, tokenizer, config.separators) for s in corpus.splits}
    windows(tokens["train"], config.window, config.step)
    if len(tokens["validation"]) < 2:
        raise UserError(f"the validation text of {config.name} is under two tokens: give more text")
    return TextDataset(
        config=config,
        corpus=corpus,
        tokenizer=tokenizer,
        train=tokens["train"],
        validation=tokens["validation"],
        test=tokens.get("test"),
        bytes_per_token=corpus.bytes("validation") / len(tokens["validation"]),
    )


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
