"""Data: text through TensorFlow Datasets, tokens on disk, windows through Grain.

data = load(Text(name="python_stdlib"))
for batch in train_batches(data.train, data.config, batch=8, seed=0): ...
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gam_jax.data.text import Text

if TYPE_CHECKING:
    import numpy as np

    from gam_jax.data.corpus import Corpus
    from gam_jax.data.tokenizer import Tokenizer

__all__ = ["Text", "TextDataset", "load"]


@dataclass(frozen=True, eq=False)
class TextDataset:
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

    def split(self, name: str) -> np.ndarray:
        """The tokens of "train", "validation" or "test".

        Raises:
          UserError: the corpus has no such split.
        """
        from sharding.errors import UserError

        tokens = {"train": self.train, "validation": self.validation, "test": self.test}[name]
        if tokens is None:
            raise UserError(f"{self.config.name} has no split '{name}': use train or validation")
        return tokens


def load(config: Text, tokenizer: Tokenizer | None = None) -> TextDataset:
    """Opens the corpus, makes or opens the tokenizer, and tokenizes every split.

    Args:
      config: what to read.
      tokenizer: used in place of the one that `config` names: a run's own, on other text.

    Raises:
      UserError: anything that a person can mend, before any training starts.
    """
    # Here, so that importing the package stays quick.
    from gam_jax.data.corpus import open_corpus
    from gam_jax.data.pipeline import windows
    from gam_jax.data.tokens import tokenize_split
    from sharding.errors import UserError

    corpus = open_corpus(config)
    tokenizer = tokenizer or make_tokenizer(config, corpus)
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


def make_tokenizer(config: Text, corpus: Corpus) -> Tokenizer:
    """The tokenizer that `config` names: bytes, a BPE trained on the corpus, or a file.

    Raises:
      UserError: the file cannot be read; the BPE's vocabulary is too small.
    """
    from gam_jax.data.bpe import cached_bpe
    from gam_jax.data.tokenizer import ByteTokenizer, load_tokenizer

    if config.tokenizer == "bytes":
        return ByteTokenizer()
    if config.tokenizer.startswith("bpe:"):
        return cached_bpe(corpus, config, int(config.tokenizer.removeprefix("bpe:")))
    return load_tokenizer(config.tokenizer)
