"""A mixture of texts that has been opened."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from gam_jax.data.base import Batch, Dataset, Sums
from gam_jax.data.chat_template import find_template
from gam_jax.data.corpus import open_corpus
from gam_jax.data.mixture import TextMixture
from gam_jax.data.stream import TrainBatches, mixed, train_stream
from gam_jax.data.text import Text
from gam_jax.data.text_dataset import (
    TextDataset,
    beside,
    kept_template,
    kept_tokenizer,
    make_tokenizer,
    open_text,
    text_changed,
    text_scores,
)
from gam_jax.data.tokenizer import Tokenizer


def open_mixture(config: TextMixture, files: Mapping[str, str]) -> MixedTextDataset:
    """Opens each text of a mixture with the tokenizer of all.

    Args:
      config: of the mixture.
      files: of a run, whose tokenizer and chat template are used; none for a new run.

    Raises:
      UserError: anything that a person can mend.
    """
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(Text)}
    texts = {name: Text(**{**fields, "name": name}) for name in config.weights}
    tokenizer, template = kept_tokenizer(files), kept_template(files)
    if config.format == "chat" and template is None:
        template = find_template(config.tokenizer, config.template)
    if tokenizer is None:
        tokenizer = make_tokenizer(config, [open_corpus(text) for text in texts.values()])
    opened = {name: open_text(text, tokenizer, template) for name, text in texts.items()}
    return MixedTextDataset(config, opened)


@dataclasses.dataclass(frozen=True, eq=False)
class MixedTextDataset(Dataset):
    """Texts that are read in turn.

    Attributes:
      config: what it was opened with.
      texts: by name.
    """

    config: TextMixture
    texts: Mapping[str, TextDataset]

    unit = "tokens"

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of all texts."""
        return next(iter(self.texts.values())).tokenizer

    @property
    def units_per_row(self) -> int:  # type: ignore[override]
        """Tokens of a window."""
        return self.config.window

    @property
    def sizes(self) -> Mapping[str, int]:  # type: ignore[override]
        """vocab, and the window's tokens."""
        return next(iter(self.texts.values())).sizes

    @property
    def fingerprints(self) -> Mapping[str, str]:  # type: ignore[override]
        """Of each text, of the tokenizer and, of conversations, of their template."""
        found = {f"corpus {name}": text.corpus.fingerprint for name, text in self.texts.items()}
        of_all = dict(next(iter(self.texts.values())).fingerprints)
        del of_all["corpus"]
        return {**found, **of_all}

    @property
    def files(self) -> Mapping[str, str]:  # type: ignore[override]
        """Those of each text."""
        return next(iter(self.texts.values())).files

    @property
    def parts(self) -> tuple[str, ...]:  # type: ignore[override]
        """The names of the texts."""
        return tuple(self.texts)

    def train_stream(
        self, rows: int, seed: int, process: int = 0, processes: int = 1, position: int = 0
    ) -> TrainBatches:
        """Windows of each text, as often as its weight says."""
        config = self.config
        sources = [text.rows("train") for text in self.texts.values()]
        weights = config.weights
        return train_stream(
            mixed(sources, [weights[name] for name in self.texts], seed, config.shuffle),
            batch=rows,
            process=process,
            processes=processes,
            position=position,
            workers=config.workers,
        )

    def validation_stream(
        self, part: str, rows: int, process: int = 0, processes: int = 1
    ) -> Iterator[Batch]:
        """The validation windows of one text."""
        return self.texts[part].validation_stream("", rows, process, processes)

    def scores(self, sums: Mapping[str, Sums]) -> dict[str, float]:
        """Of all tokens and bytes together; and the loss of each text, as loss/NAME."""
        total = sum(part["loss"][0] for part in sums.values())
        count = sum(part["loss"][1] for part in sums.values())
        sizes = {name: self.texts[name].bytes_per_token for name in sums}
        known = {name: size for name, size in sizes.items() if size is not None}
        text_bytes = sum(sums[name]["loss"][1] * size for name, size in known.items())
        each = {f"loss/{name}": part["loss"][0] / part["loss"][1] for name, part in sums.items()}
        found = text_scores(total / count, text_bytes / count if known else None)
        return {**found, **each, **beside(sums.values())}

    def first(self, train: int, validation: int) -> MixedTextDataset:
        """That many first tokens of each text's splits; 0 for all."""
        cut = {name: text.first(train, validation) for name, text in self.texts.items()}
        return dataclasses.replace(self, texts=cut)

    def changed(self, name: str, saved: Mapping[str, Any]) -> str:
        """That of one text, of its split or of the tokenizer."""
        return text_changed(name, name.removeprefix("corpus "), saved)

    def described(self) -> str:
        """Tokens of each text."""
        return "; ".join(f"{name}: {text.described()}" for name, text in self.texts.items())
