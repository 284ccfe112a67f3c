"""Shows what a model would be trained on: rows of tokens, and what counts of them.

  gam data show --config=mine.py
  gam data show --config.data.name=text:notes --rows=5 --split=validation

Prints a few rows of the data that --config names, as text. What counts stands out in colour on a
terminal, and between [[ and ]] elsewhere. A line says where a document, or a piece of one, begins.
The first token of a document is read and not predicted, so it never counts.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator

import numpy as np
from absl import flags

from experiments import cli
from experiments.config_flags import define_config_flag, experiment_from_flags
from gam_jax.data.mixed_text import MixedTextDataset
from gam_jax.data.packing import DocumentRows
from gam_jax.data.text_dataset import TextDataset
from gam_jax.data.tokenizer import Tokenizer
from gam_jax.data.windows import Windows
from sharding.errors import UserError

MARKS = ("[[", "]]")
COLOUR = ("\x1b[1;32m", "\x1b[0m")
"""Bold green, and what ends it."""


def define_flags() -> None:
    """The command line."""
    define_config_flag()
    flags.DEFINE_integer("rows", 3, "How many rows to show, of each text.", 1)
    flags.DEFINE_integer("from_row", 0, "The first row to show, from 0.", 0)
    flags.DEFINE_enum("split", "train", ["train", "validation"], "Which split to show.")


def main(word: str) -> None:
    """Opens the data and prints rows."""
    args = flags.FLAGS
    config = experiment_from_flags().data
    data = config.open()
    if isinstance(data, MixedTextDataset):
        texts = dict(data.texts)
    elif isinstance(data, TextDataset):
        texts = {config.name: data}
    else:
        raise UserError(f"data.name={config.name} is no text: gam data show prints tokens of text")
    marks = COLOUR if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else MARKS
    for name, text in texts.items():
        print(f"{name}: {text.described()}")
        for line in shown_rows(text, args.split, args.from_row, args.rows, marks):
            print(line)


def shown_rows(
    data: TextDataset, split: str, first: int, count: int, marks: tuple[str, str]
) -> Iterator[str]:
    """Rows of a split as lines of text, in the order in which they are stored.

    Args:
      data: that was opened.
      split: "train" or "validation".
      first: row.
      count: of rows.
      marks: what stands before and after what counts.

    Raises:
      UserError: there are not so many rows.
    """
    rows = data.rows(split)
    if first >= len(rows):
        raise UserError(f"--from-row={first}: there are {len(rows):,} rows, from 0")
    for number in range(first, min(first + count, len(rows))):
        yield from _shown(number, rows, data.tokenizer, marks)


def _shown(
    number: int, rows: Windows | DocumentRows, tokenizer: Tokenizer, marks: tuple[str, str]
) -> Iterator[str]:
    row = rows[number]
    inputs, targets, weights = (row[name] for name in ("inputs", "targets", "weights"))
    apart = isinstance(rows, DocumentRows)
    spans = rows.spans(number) if apart else [(0, len(targets))]
    documents = f"{len(spans)} document{'s' * (len(spans) != 1)}, " if apart else ""
    yield (
        f"--- row {number}: {documents}{np.count_nonzero(weights):,} of {len(targets):,} tokens "
        f"count"
    )
    for begin, end in spans:
        if apart:
            yield f"--- document at {begin}"
        tokens = np.concatenate([inputs[begin : begin + 1], targets[begin:end]])
        counts = np.concatenate([[False], weights[begin:end] > 0])
        yield shown(tokens, counts, tokenizer, marks)


def shown(
    tokens: np.ndarray, counts: np.ndarray, tokenizer: Tokenizer, marks: tuple[str, str]
) -> str:
    """Tokens as text, with marks around what counts.

    Args:
      tokens: [N] ids.
      counts: [N], whether each counts.
      tokenizer: of the ids.
      marks: what stands before and after what counts.
    """
    found = []
    for counting, run in itertools.groupby(zip(tokens, counts, strict=True), lambda t: bool(t[1])):
        text = _harmless(tokenizer.shown(token for token, _ in run))
        found.append(f"{marks[0]}{text}{marks[1]}" if counting else text)
    return "".join(found)


def _harmless(text: str) -> str:
    """A text whose control characters a terminal does not obey."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


if __name__ == "__main__":
    cli.run(main, define_flags, choices=("show",))
