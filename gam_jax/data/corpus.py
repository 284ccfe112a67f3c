"""Opens a corpus by name: documents of text, in splits, read lazily from array_record files."""

from __future__ import annotations

import difflib
import functools
import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

from gam_jax.data.storage import cache_path, cached, data_dir, digest_of
from gam_jax.data.text import Text
from sharding.errors import UserError
from sharding.json_file import read_json

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

NAMES = (
    "python_stdlib",
    "wikitext2",
    "wikitext103",
    "tinystories",
    "domain:python",
    "domain:english",
    "domain:c",
)
PREFIXES = ("text:", "tfds:")
# Where TensorFlow Datasets keeps text builders of its older kind; it stops looking for these at
# the first one of its families that another missing package breaks.
OLDER_TFDS = ("text", "question_answering", "summarization", "text_simplification", "translate")


class Documents(Sequence[str]):
    """The documents of a split, decoded when asked for.

    Args:
      source: records, as `as_data_source` gives them.
      feature: the field of a record that holds its text.
      in_parts: whether a long document is several records in a row, numbered by `part`.
      rows: read that many first records alone; 0 for all.
    """

    def __init__(self, source: Sequence[Any], feature: str, in_parts: bool, rows: int = 0) -> None:
        self._source, self._feature, self._in_parts = source, feature, in_parts
        self._rows = min(rows or len(source), len(source))

    def first(self, rows: int) -> Documents:
        """Those of that many first records; of all for 0."""
        return Documents(self._source, self._feature, self._in_parts, rows)

    def _records(self) -> Iterator[Any]:
        return (self._source[i] for i in range(self._rows))

    def pieces(self) -> Iterator[tuple[bool, str]]:
        """(whether a document starts here, text), in order: what to read a long split with."""
        for record in self._records():
            starts = not self._in_parts or record["part"] == 0
            yield starts, record[self._feature].decode("utf-8")

    def records(self) -> Iterator[tuple[str, str]]:
        """(where it stands, text) of each document of `text:PATH`, in order."""
        for index in range(len(self)):
            yield self._source[self._starts[index]]["path"].decode(), self[index]

    @functools.cached_property
    def _starts(self) -> Sequence[int]:
        """The record at which each document starts, and at the end the number of records."""
        if not self._in_parts:
            return range(self._rows + 1)
        starts = [i for i, record in enumerate(self._records()) if record["part"] == 0]
        return [*starts, self._rows]

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of all the text."""
        return sum(len(record[self._feature]) for record in self._records())

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        index %= len(self)
        parts = range(self._starts[index], self._starts[index + 1])
        return "".join(self._source[i][self._feature].decode("utf-8") for i in parts)


@dataclass(frozen=True, eq=False)
class Corpus:
    """A data set of text.

    Attributes:
      name: as the user gave it.
      fingerprint: changes whenever the text of any split does.
      folder: where its data set and everything cached for it are kept.
      sources: split -> its documents; always train and validation, and test where it exists.
    """

    name: str
    fingerprint: str
    folder: Path
    sources: Mapping[str, Documents]

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, train first."""
        return tuple(self.sources)

    def documents(self, split: str) -> Documents:
        """The documents of a split, in a fixed order.

        Raises:
          UserError: there is no such split.
        """
        if split not in self.sources:
            raise UserError(f"{self.name} has no split {split!r}: it has {', '.join(self.splits)}")
        return self.sources[split]

    def first(self, rows: Mapping[str, int]) -> Corpus:
        """Of each split named, that many first records alone; 0 for all."""
        cut = {split: self.sources[split].first(count) for split, count in rows.items()}
        fingerprint = digest_of(self.fingerprint, dict(rows))
        return Corpus(self.name, fingerprint, self.folder, {**self.sources, **cut})

    def bytes(self, split: str) -> int:
        """UTF-8 bytes of the text of a split, without separators: counted once and kept."""
        settings: dict[str, object] = {"corpus": self.fingerprint, "split": split}
        path = cache_path(self.folder, "sizes", settings, ".json")

        def write(target: Path) -> None:
            target.write_text(str(self.documents(split).text_bytes))

        return read_json(cached(self.folder, path, write), int)


def open_corpus(config: Text) -> Corpus:
    """Opens the corpus that `config.name` names, building it first if need be.

    A TensorFlow Datasets set without a validation split gives up the tail of its train split,
    `config.validation_fraction` of its records (its test split stays untouched, unless train
    is a single record).

    Raises:
      UserError: an unknown name, a path with no text, text that is not UTF-8, a set that cannot
        be downloaded or has no text, no room on disk.
    """
    if config.name not in NAMES and not config.name.startswith(PREFIXES):
        raise UserError(f"unknown data set {config.name!r}{_nearest(config.name)}")
    from gam_jax.data.builders.prepare import quiet

    with quiet():
        corpus = _open(config, config.name, data_dir(config.dir))
    rows = {"train": config.train_rows, "validation": config.validation_rows}
    return corpus if not any(rows.values()) else corpus.first(rows)


def _open(config: Text, name: str, folder: Path) -> Corpus:
    from gam_jax.data.builders.built import own_builder

    if name.startswith("text:"):
        from gam_jax.data.builders.text_files import text_files_builder

        path, share = name.removeprefix("text:"), config.validation_fraction
        builder, size = text_files_builder(
            path, folder, share, config.decode_errors, config.field, config.format
        )
        return _built(builder, name, folder, size, in_parts=True)
    if name == "python_stdlib":
        from gam_jax.data.builders.python_stdlib import python_stdlib_builder

        builder, size = python_stdlib_builder(folder, config.validation_fraction)
        return _built(builder, name, folder, size)
    if name.startswith("domain:"):
        from gam_jax.data.builders.domains import domain_builder

        domain = name.removeprefix("domain:")
        builder, size = domain_builder(domain, folder, config.validation_fraction)
        return _built(builder, name, folder, size)
    if name in ("wikitext2", "wikitext103"):
        from gam_jax.data.builders.wikitext import Wikitext

        return _built(own_builder(Wikitext, folder, name, renew=False), name, folder)
    if name == "tinystories":
        from gam_jax.data.builders.tinystories import TinyStories

        return _built(own_builder(TinyStories, folder, renew=False), name, folder)
    return _from_tfds(name, folder, config.validation_fraction)


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5)
    guess = f": did you mean {near[0]!r}?" if near else ":"
    return f"{guess} Known are {', '.join(NAMES)}, text:PATH and tfds:NAME"


def _built(
    builder: tfds.core.DatasetBuilder,
    name: str,
    folder: Path,
    room: int = 0,
    *,
    in_parts: bool = False,
) -> Corpus:
    """The corpus of one of our own builders."""
    from gam_jax.data.builders.prepare import prepare

    builder = prepare(builder, name, room)
    splits = {split: split for split in ("train", "validation", "test")}
    present = {s: e for s, e in splits.items() if s in builder.info.splits}
    return _corpus(builder, name, folder, present, "text", in_parts)


def _from_tfds(name: str, folder: Path, validation_fraction: float) -> Corpus:
    """The corpus of a builder of TensorFlow Datasets, `tfds:NAME` or `tfds:NAME#FEATURE`."""
    import tensorflow_datasets as tfds

    from gam_jax.data.builders.prepare import prepare

    tfds_name, _, feature = name.removeprefix("tfds:").partition("#")
    builder = _tfds_builder(tfds, tfds_name, folder)
    feature = _text_feature(tfds, builder, name, feature)
    builder = prepare(builder, name, renew=False)
    expressions = _tfds_splits(builder, name, validation_fraction)
    return _corpus(builder, name, folder, expressions, feature, in_parts=False)


def _tfds_builder(tfds: Any, tfds_name: str, folder: Path) -> tfds.core.DatasetBuilder:
    from gam_jax.data.builders.built import check_whole

    for module in OLDER_TFDS:
        importlib.import_module(f"tensorflow_datasets.{module}")
    try:
        builder = tfds.builder(tfds_name, data_dir=folder)
        check_whole(folder, Path(builder.data_dir), renew=False)
        return builder
    except UserError:
        raise
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        known = tfds.list_builders(with_community_datasets=False)
        base = re.split("[/:]", tfds_name)[0]
        if base in known:
            raise UserError(
                f"tfds:{tfds_name} cannot be opened: {' '.join(str(error).split())[:200]}"
            ) from error
        near = difflib.get_close_matches(base, known, n=1, cutoff=0.5)
        guess = f": did you mean 'tfds:{near[0]}'?" if near else ":"
        raise UserError(
            f"TensorFlow Datasets has no set {base!r}{guess} See tensorflow.org/datasets/catalog"
        ) from error
    except Exception as error:  # of what is built already, which it reads
        raise UserError(
            f"tfds:{tfds_name} cannot be opened ({' '.join(str(error).split())[:160]}): remove "
            f"what is there of it in {folder}, or point data.dir at another folder"
        ) from error


def _text_feature(tfds: Any, builder: tfds.core.DatasetBuilder, name: str, wanted: str) -> str:
    """The feature that holds the text: the one asked for, else `text`, else the only one."""
    features: dict[str, Any] = dict(cast(Any, builder.info.features) or {})
    texts = [key for key, kind in features.items() if isinstance(kind, tfds.features.Text)]
    if wanted in texts:
        return wanted
    if not texts:
        raise UserError(
            f"{name} has no text feature (it has {', '.join(features)}): choose a set of text"
        )
    if not wanted and ("text" in texts or len(texts) == 1):
        return "text" if "text" in texts else texts[0]
    problem = f"no text feature {wanted!r}" if wanted else "several text features"
    raise UserError(
        f"{name} has {problem}: choose one, such as {name.partition('#')[0]}#{texts[0]} "
        f"(there are {', '.join(texts)})"
    )


def _tfds_splits(builder: tfds.core.DatasetBuilder, name: str, fraction: float) -> dict[str, str]:
    """Split -> the sub-split expression of TensorFlow Datasets that it is read with."""
    splits = builder.info.splits
    if "train" not in splits:
        raise UserError(f"{name} has no train split (it has {', '.join(splits)}): choose another")
    expressions = {"train": "train", "validation": "validation"}
    if "validation" not in splits:
        records = splits["train"].num_examples
        kept = records - max(1, round(records * fraction))
        if kept > 0:
            expressions = {"train": f"train[:{kept}]", "validation": f"train[{kept}:]"}
        elif "test" in splits:
            expressions["validation"] = "test"
        else:
            raise UserError(f"{name} has one record and no validation split: choose another set")
    if "test" in splits:
        expressions["test"] = "test"
    return expressions


def _corpus(
    builder: tfds.core.DatasetBuilder,
    name: str,
    folder: Path,
    expressions: Mapping[str, str],
    feature: str,
    in_parts: bool,
) -> Corpus:
    try:
        sources = {s: cast(Any, builder).as_data_source(split=e) for s, e in expressions.items()}
    except NotImplementedError as error:
        raise UserError(
            f"{name} is prepared in {builder.data_dir} as {builder.info.file_format}, which needs "
            "TensorFlow: point data.dir at another folder to prepare it as array_record"
        ) from error
    infos = builder.info.splits.values()
    sizes = [[info.name, info.num_examples, info.num_bytes] for info in infos]
    return Corpus(
        name=name,
        fingerprint=digest_of(builder.info.full_name, sizes, dict(expressions), feature),
        folder=folder,
        sources={s: Documents(source, feature, in_parts) for s, source in sources.items()},
    )
