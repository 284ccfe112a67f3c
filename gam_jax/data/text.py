"""What a run reads: the data set, its tokenizer, its windows."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from gam_jax.data.base import Data
from sharding.bounds import Bound, Count, Share, Size, check_bounds
from sharding.errors import UserError
from sharding.paths import check_local

if TYPE_CHECKING:
    from gam_jax.data.text_dataset import TextDataset

TOKENIZER = "tokenizer.json"
"""The file of a run folder that holds the tokenizer of its tokens."""
TEMPLATE = "chat_template.json"
"""The file of a run folder that holds the chat template of its conversations."""
MAX_VOCAB = 1 << 24
"""Ids of a tokenizer that is trained here; published ones have about 2^18."""
MAX_FIELD = 200
"""Characters of a field's name."""
Length = Annotated[int, Bound(0, 2**31 - 1)]
Workers = Annotated[int, Bound(0, 1024)]
"""Processes that read; a machine has a few hundred cores."""


@dataclasses.dataclass(frozen=True)
class Text(Data):
    """Everything that decides which tokens a model is trained and scored on.

    Attributes:
      name: `python_stdlib`, `text:PATH`, `wikitext2`, `wikitext103`, `tinystories`,
        `domain:python`, `domain:english`, `domain:c` or `tfds:NAME` (see
        `gam_jax.data.corpus.open_corpus`).
      field: of `text:PATH`, the field of the text in lines of JSON, Parquet and Arrow; `meta.text`
        for one inside another. Empty to read JSON as it stands.
      tokenizer: `bytes`, `bpe:VOCAB` or the path of a `tokenizer.json`.
      bpe_splits: the splits a BPE is trained on, `train` or `all`. The GAM paper trains its
        BPE on every split, validation and test included.
      bpe_pre_tokenizer: `byte_level` (lossless) or `whitespace` (the paper's: drops whitespace).
      window: tokens predicted per window, T.
      stride: tokens from one window's start to the next. 0 means `window`, so that every token is
        predicted once. The paper's blocks of 257 tokens are window=256, stride=257.
      documents: `joined`: one stream of all documents, cut into windows; a window may hold parts of
        several. `packed`: whole documents, as many in a row of `window` tokens as fit, none of
        which sees another; longer ones are cut. `rows`: one document, or a piece of it, in a row.
      format: of `text:PATH`, what a record is. `text`: a text in the field `field`. `prompt`: a
        `prompt` and its `completion`. `chat`: a list of `messages`, written by a chat template.
      loss: of prompts and conversations, what counts. `completion`: completions and what the
        assistant writes. `all`: every token. A text counts whole.
      template: of `chat`, a file with a chat template (jinja); '' is the one that stands beside the
        `tokenizer.json`, in `chat_template.jinja` or `tokenizer_config.json`.
      separators: put the tokenizer's separator between documents; a conversation has what its
        template writes, and no separators.
      decode_errors: what to do with files that are not UTF-8, `strict` or `replace`.
      shuffle: visit the training windows in a seeded random order, another one each epoch.
      workers: Grain worker processes; 0 reads ahead in a thread of this process.
      dir: where data sets and caches are kept; '' is the default of TensorFlow Datasets
        (`TFDS_DATA_DIR`, else ~/tensorflow_datasets).
      validation_fraction: the share held out of corpora that have no validation split, above 0
        and below 1; of `text:PATH`, a share of the bytes.
      train_rows, validation_rows: only that many first records of a split; 0 for all. A record
        is a document, or a part of a long text file.

    Raises:
      UserError: a field has a value that makes no sense.
    """

    NAMES: ClassVar[tuple[str, ...]] = (
        "domain",
        "python_stdlib",
        "text",
        "tfds",
        "tinystories",
        "wikitext2",
        "wikitext103",
    )
    FILES: ClassVar[tuple[str, ...]] = (TOKENIZER, TEMPLATE)

    name: str = "python_stdlib"
    tokenizer: str = "bytes"
    bpe_splits: str = "train"
    bpe_pre_tokenizer: str = "byte_level"
    window: Size = 256
    stride: Length = 0
    separators: bool = True
    decode_errors: str = "strict"
    shuffle: bool = True
    workers: Workers = 0
    dir: str = ""
    validation_fraction: Share = 0.1
    train_rows: Count = 0
    validation_rows: Count = 0
    field: str = "text"
    documents: str = "joined"
    format: str = "text"
    loss: str = "completion"
    template: str = ""

    def __post_init__(self) -> None:
        check_bounds(self, "data")
        _one_of("bpe_splits", self.bpe_splits, ("train", "all"))
        _one_of("bpe_pre_tokenizer", self.bpe_pre_tokenizer, ("byte_level", "whitespace"))
        _one_of("documents", self.documents, ("joined", "packed", "rows"))
        self._check_format()
        if self.stride and self.documents != "joined":
            raise UserError(
                f"data.stride={self.stride} is of windows over joined documents: leave it 0 with "
                f"data.documents={self.documents}"
            )
        _one_of("decode_errors", self.decode_errors, ("strict", "replace"))
        if not 0 < self.validation_fraction < 1:
            raise UserError(
                f"data.validation_fraction is {self.validation_fraction}: "
                "give a share between 0 and 1, such as 0.1"
            )
        if self.tokenizer.startswith("bpe:") and not _is_size(self.tokenizer[4:]):
            raise UserError(
                f"data.tokenizer is {self.tokenizer[:60]!r}: give the vocabulary size after "
                f"'bpe:', at most {MAX_VOCAB:,}, such as bpe:10000"
            )
        check_local(self.tokenizer, "data.tokenizer")
        check_local(self.dir, "data.dir")
        if len(self.field) > MAX_FIELD or not self.field.isprintable():
            raise UserError(
                f"data.field={self.field[:60]!r}: give a name of at most {MAX_FIELD} characters"
            )

    def _check_format(self) -> None:
        _one_of("format", self.format, ("text", "prompt", "chat"))
        _one_of("loss", self.loss, ("completion", "all"))
        check_local(self.template, "data.template")
        if self.template and self.format != "chat":
            raise UserError(
                f"data.template={self.template} writes conversations: set data.format=chat, or "
                f"leave it out"
            )
        if self.format == "text":
            return
        if not self.name.startswith(("text:", "mix:")):
            raise UserError(
                f"data.format={self.format} reads records of text:PATH, and data.name={self.name} "
                f"has none: set data.format=text"
            )
        if self.documents == "joined":
            raise UserError(
                f"data.format={self.format} keeps each record apart, and data.documents=joined "
                f"joins them: set data.documents=packed (several in a row) or rows (one in a row)"
            )
        if self.field != "text":
            raise UserError(
                f"data.field={self.field} names the field of texts, and data.format={self.format} "
                f"reads fields of its own: leave it out"
            )

    @property
    def separated(self) -> bool:
        """Whether the tokenizer's separator stands between documents."""
        return self.separators and self.format != "chat"

    @property
    def kept_files(self) -> tuple[str, ...]:
        """The tokenizer; of conversations, their template too."""
        return self.FILES if self.format == "chat" else (TOKENIZER,)

    @property
    def step(self) -> int:
        """Tokens from one window's start to the next."""
        return self.stride or self.window

    def sizes(self) -> dict[str, int]:
        """window, whether rows are packed; and vocab, where the tokenizer's name tells it."""
        name, _, size = self.tokenizer.partition(":")
        known = {"bytes": 256, "bpe": int(size) if size.isdigit() else 0}.get(name)
        return {**self.row_sizes, **({"vocab": known} if known else {})}

    @property
    def row_sizes(self) -> dict[str, int]:
        """window, and packed: 1 where rows hold documents that see nothing of each other."""
        return {"window": self.window, "packed": int(self.documents == "packed")}

    def open(self, files: Mapping[str, str] | None = None) -> TextDataset:
        """Opens the corpus, makes or opens the tokenizer, and tokenizes every split.

        Args:
          files: of a run: its tokenizer is used in place of the one that `tokenizer` names, and
            its chat template.

        Raises:
          UserError: anything that a person can mend, before any training starts.
        """
        from gam_jax.data.text_dataset import kept_template, kept_tokenizer, open_text

        files = files or {}
        return open_text(self, kept_tokenizer(files), kept_template(files))

    def batch(self, rows: int) -> dict[str, Any]:
        """inputs and targets int32 [rows, window]; weights float32; packed, starts bool."""
        import jax
        import jax.numpy as jnp

        dtypes = {"inputs": jnp.int32, "targets": jnp.int32, "weights": jnp.float32}
        if self.documents == "packed":
            dtypes["starts"] = jnp.bool_
        return {n: jax.ShapeDtypeStruct((rows, self.window), d) for n, d in dtypes.items()}


def _one_of(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"data.{field} is {value!r}: choose {' or '.join(map(repr, choices))}")


def _is_size(text: str) -> bool:
    """Whether a text is a vocabulary's size that a tokenizer can be trained to."""
    return re.fullmatch(r"[0-9]{1,9}", text) is not None and int(text) <= MAX_VOCAB
