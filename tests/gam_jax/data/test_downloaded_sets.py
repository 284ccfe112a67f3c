"""WikiText and TinyStories, with the builder test case of TensorFlow Datasets on dummy data.

`tfds.testing.DatasetBuilderTestCase` does not run without TensorFlow as it is: its base class is
`tf.test.TestCase`, its temporary folder and its walks over structures are TensorFlow's, it reads
what was built with `as_dataset` (a `tf.data.Dataset`), and its module imports `dill` for a test of
features. So it is imported and run here with those four names answered by their plain Python
equivalents, and `BuilderTestCase` reads with `as_data_source`. All else that the case checks runs
as its authors wrote it: registration, metadata, downloads, keys without local paths, no `os` or
`open` in the builder's module, numbers of examples, disjoint splits, reloading.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar
from unittest import mock

import pyarrow
import pytest
import tensorflow_datasets as tfds
import tree
from absl.testing import absltest
from pyarrow import parquet
from tensorflow_datasets.core import download
from tensorflow_datasets.core.utils import lazy_imports_utils

from gam_jax.data.builders import tinystories, wikitext
from gam_jax.data.corpus import open_corpus
from gam_jax.data.text import Text
from sharding.errors import UserError


@contextlib.contextmanager
def plain_tensorflow():
    """What the test case asks of TensorFlow, in plain Python."""
    names = mock.MagicMock()  # the rest is only named, in annotations
    names.test.TestCase = absltest.TestCase
    names.nest.map_structure = tree.map_structure
    names.compat.v1.test.get_temp_dir = tempfile.gettempdir
    handle: Any = lazy_imports_utils.tensorflow.__dict__
    with mock.patch.dict(handle, {"_module": names}):
        yield


def import_test_case() -> Any:
    """`tfds.testing.DatasetBuilderTestCase`."""
    absent = {} if importlib.util.find_spec("dill") else {"dill": ModuleType("dill")}
    for name, module in absent.items():
        sys.modules[name] = module
    try:
        with plain_tensorflow():
            return tfds.testing.DatasetBuilderTestCase
    finally:
        for name in absent:
            del sys.modules[name]


ARTICLES = [
    " \n = First = \n \n Text of the first . \n \n = = Section = = \n \n 1 = 1 . \n \n",
    " = Second = \n \n Text of the second . \n = not a title = \n \n",
    " = Third = \n \n Text of the third . \n",
]


def write_wikitext(folder: Path) -> None:
    """Parquet files as the source has them: a row a line, blank lines as ''."""
    for files in wikitext.FILES.values():
        for split, names in files.items():
            for number, name in enumerate(names):
                text = "".join(ARTICLES).replace("Text", f"{split} {number}")
                lines = [line if line.strip() else "" for line in text.splitlines(keepends=True)]
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                parquet.write_table(pyarrow.table({"text": lines}), path)


def write_tinystories(folder: Path) -> None:
    for split, name in tinystories.FILES.items():
        stories = [f"One day in {split} {i}.\n\nThe end." for i in range(4)]
        (folder / name).write_text("\n<|endoftext|>\n".join(stories) + "\n<|endoftext|>\n")


class BuilderTestCase(import_test_case()):
    """The case of TensorFlow Datasets without TensorFlow (see the top of this file)."""

    __test__ = False
    SKIP_CHECKSUMS = True
    WRITE_EXAMPLES: Any = None
    CONFIG: str | None = None
    SPLITS: ClassVar[dict[str, int]] = {}

    @classmethod
    def setUpClass(cls):
        cls._dummy = contextlib.ExitStack()
        cls._dummy.enter_context(plain_tensorflow())
        cls.EXAMPLE_DIR = cls._dummy.enter_context(tempfile.TemporaryDirectory())
        cls.WRITE_EXAMPLES(Path(cls.EXAMPLE_DIR))
        super().setUpClass()

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        cls._dummy.close()

    def setUp(self):
        folder = self._dummy.enter_context(tempfile.TemporaryDirectory())
        with mock.patch.object(tempfile, "tempdir", folder):
            super().setUp()

    def _make_builder(self, config=None):
        builder = super()._make_builder(config or self.CONFIG)
        if not builder.is_prepared():
            builder.info.set_file_format("array_record", override=True)
        return builder

    def _assertAsDataset(self, builder):
        seen = {}
        for split, count in self.SPLITS.items():
            texts = [record["text"] for record in builder.as_data_source(split)]
            assert len(texts) == count
            seen[split] = set(texts)
        for one, other in itertools.combinations(seen, 2):
            assert not seen[one] & seen[other]

    def test_download_and_prepare_as_dataset(self):
        self._download_and_prepare_as_dataset(self.builder)


class Wikitext2TestCase(BuilderTestCase):
    __test__ = True
    DATASET_CLASS = wikitext.Wikitext
    CONFIG = "wikitext2"
    DL_DOWNLOAD_RESULT = wikitext.FILES["wikitext2"]
    SPLITS: ClassVar = {"train": 3, "validation": 3, "test": 3}
    WRITE_EXAMPLES = staticmethod(write_wikitext)


class Wikitext103TestCase(Wikitext2TestCase):
    CONFIG = "wikitext103"
    DL_DOWNLOAD_RESULT = wikitext.FILES["wikitext103"]
    SPLITS: ClassVar = {"train": 6, "validation": 3, "test": 3}


class TinyStoriesTestCase(BuilderTestCase):
    __test__ = True
    DATASET_CLASS = tinystories.TinyStories
    DL_DOWNLOAD_RESULT = tinystories.FILES
    SPLITS: ClassVar = {"train": 4, "validation": 4}
    WRITE_EXAMPLES = staticmethod(write_tinystories)


@pytest.fixture
def served(tmp_path):
    """Downloads come from a folder."""
    write_wikitext(tmp_path)
    write_tinystories(tmp_path)

    def local(url):
        if isinstance(url, dict):
            return {key: local(value) for key, value in url.items()}
        if isinstance(url, list):
            return [local(value) for value in url]
        for source in (wikitext.SOURCE, tinystories.SOURCE):
            url = url.removeprefix(f"{source}/")
        return tmp_path / url

    with mock.patch.object(download.DownloadManager, "download", lambda self, url: local(url)):
        yield Text(dir=str(tmp_path / "data"))


@pytest.mark.parametrize(("name", "articles"), [("wikitext2", 3), ("wikitext103", 6)])
def test_the_articles_joined_are_the_file(served, name, articles):
    corpus = open_corpus(Text(name=name, dir=served.dir))
    assert corpus.splits == ("train", "validation", "test")
    documents = list(corpus.documents("test"))
    assert documents == [a.replace("Text", "test 0") for a in ARTICLES]
    assert len(corpus.documents("train")) == articles


def test_stories_are_trimmed_documents(served):
    corpus = open_corpus(Text(name="tinystories", dir=served.dir))
    assert corpus.splits == ("train", "validation")
    expected = {f"One day in validation {i}.\n\nThe end." for i in range(4)}
    assert set(corpus.documents("validation")) == expected


def test_a_mark_within_a_line_parts_stories():
    lines = ["a<|endoftext|>b\n", "c<|endoftext|><|endoftext|>d"]
    assert list(tinystories.stories(lines)) == ["a", "b\nc", "d"]


@pytest.mark.parametrize("name", ["wikitext2", "tinystories", "tfds:lm1b"])
def test_being_offline_is_said_in_one_line_and_leaves_no_file(name, tmp_path, monkeypatch):
    import requests.adapters

    def offline(self, request, **kwargs):
        raise requests.ConnectionError("Name or service not known", request=request)

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", offline)
    with pytest.raises(UserError) as caught:
        open_corpus(Text(name=name, dir=str(tmp_path)))
    message = str(caught.value)
    assert f"{name} cannot be downloaded, no connection to http" in message
    assert "go online" in message
    assert "\n" not in message
    assert not list(tmp_path.rglob("*.tmp.*"))
