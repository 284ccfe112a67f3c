"""`wikitext2` and `wikitext103`: the raw WikiText corpora, one document an article.

Source: https://huggingface.co/datasets/Salesforce/wikitext at a fixed revision (parquet files;
the zip files of the paper are no longer served). TensorFlow Datasets has no checksums for them,
so none are checked. The documents joined are the original file: records keep their order, and the
empty lines, which the parquet files hold as '', are again the ' \\n' that they were.

Reference: Merity et al. 2016, "Pointer Sentinel Mixture Models", arXiv:1609.07843.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from etils import epath

SOURCE = (
    "https://huggingface.co/datasets/Salesforce/wikitext/resolve/"
    "b08601e04326c79dfdd32d625aee71d232d685c3"
)
FILES = {
    "wikitext2": {
        "train": ["wikitext-2-raw-v1/train-00000-of-00001.parquet"],
        "validation": ["wikitext-2-raw-v1/validation-00000-of-00001.parquet"],
        "test": ["wikitext-2-raw-v1/test-00000-of-00001.parquet"],
    },
    "wikitext103": {
        "train": [
            "wikitext-103-raw-v1/train-00000-of-00002.parquet",
            "wikitext-103-raw-v1/train-00001-of-00002.parquet",
        ],
        "validation": ["wikitext-103-raw-v1/validation-00000-of-00001.parquet"],
        "test": ["wikitext-103-raw-v1/test-00000-of-00001.parquet"],
    },
}
HEADING = re.compile(r" = [^=].* = \n")
"""An article's title line; sections have two or more equals signs on either side."""


class Wikitext(tfds.core.GeneratorBasedBuilder):
    """WikiText-2 and WikiText-103, raw."""

    name = "wikitext"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name="wikitext2", description="2 million words."),
        tfds.core.BuilderConfig(name="wikitext103", description="103 million words."),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Verified good and featured articles of the English Wikipedia.",
            features=tfds.features.FeaturesDict(
                {"text": tfds.features.Text(), "title": tfds.features.Text()}
            ),
            disable_shuffling=True,
            homepage="https://huggingface.co/datasets/Salesforce/wikitext",
            license="CC BY-SA 3.0",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        files = FILES[str(self.builder_config_name)]
        urls = {split: [f"{SOURCE}/{name}" for name in names] for split, names in files.items()}
        paths: Any = dl_manager.download(urls)
        return {split: self._generate_examples(paths[split]) for split in files}

    def _generate_examples(self, paths: list[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
        for key, text in enumerate(articles(rows(paths))):
            title = HEADING.match(text)
            yield key, {"text": text, "title": title.group().strip(" =\n") if title else ""}


def rows(paths: Iterable[Any]) -> Iterator[str]:
    """The lines of the original files, from the column "text" of parquet files."""
    from pyarrow import parquet

    for path in paths:
        with epath.Path(path).open("rb") as file:
            for batch in parquet.ParquetFile(file).iter_batches(columns=["text"]):
                for text in batch.column("text").to_pylist():
                    yield text or " \n"


def articles(lines: Iterable[str]) -> Iterator[str]:
    """Joins lines into articles.

    A title is a heading of one equals sign that follows an empty line or starts the file. What
    stands before the first title belongs to the first article.
    """
    article: list[str] = []
    titled, after_empty = False, True
    for line in lines:
        if after_empty and HEADING.fullmatch(line):
            if titled:
                yield "".join(article)
                article = []
            titled = True
        article.append(line)
        after_empty = not line.strip()
    if article:
        yield "".join(article)
