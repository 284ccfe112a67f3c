"""Sets of TensorFlow Datasets itself, built without TensorFlow."""

from __future__ import annotations

import shutil
import sys
import tarfile
from typing import ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import download, shuffle

from gam_jax.data.builders.local_gfile import local_gfile
from gam_jax.data.builders.prepare import prepare, quiet
from gam_jax.data.corpus import open_corpus
from gam_jax.data.text import Text
from sharding.errors import UserError


class GamJaxDummy(tfds.core.GeneratorBasedBuilder):
    """Twenty records in train, and what else its configuration names."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name=n)
        for n in ("train", "train+validation", "train+test", "test", "two_texts")
    ]

    def _info(self):
        features = {"text": tfds.features.Text(), "label": tfds.features.Scalar(np.int32)}
        if self.builder_config_name == "two_texts":
            features = {"question": tfds.features.Text(), "answer": tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        names = str(self.builder_config_name).replace("two_texts", "train").split("+")
        return {name: self._generate_examples(name) for name in names}

    def _generate_examples(self, split):
        for i in range(20):
            if self.builder_config_name == "two_texts":
                yield i, {"question": f"q{i}", "answer": f"a{i}"}
            else:
                yield i, {"text": f"{split} {i}", "label": i}


def opened(name, tmp_path, **settings):
    return open_corpus(Text(name=f"tfds:{name}", dir=str(tmp_path), **settings))


def test_a_set_with_validation_is_read_as_it_is(tmp_path):
    corpus = opened("gam_jax_dummy/train+validation", tmp_path)
    assert set(corpus.documents("validation")) == {f"validation {i}" for i in range(20)}


def test_a_set_without_validation_gives_the_tail_of_train(tmp_path):
    corpus = opened("gam_jax_dummy/train+test", tmp_path, validation_fraction=0.25)
    train, validation = corpus.documents("train"), corpus.documents("validation")
    assert len(train) == 15
    assert len(validation) == 5
    assert {*train, *validation} == {f"train {i}" for i in range(20)}
    assert corpus.splits == ("train", "validation", "test")


def test_another_share_is_another_corpus(tmp_path):
    one = opened("gam_jax_dummy/train", tmp_path, validation_fraction=0.25)
    other = opened("gam_jax_dummy/train", tmp_path, validation_fraction=0.5)
    assert one.fingerprint != other.fingerprint


def test_a_feature_can_be_chosen(tmp_path):
    corpus = opened("gam_jax_dummy/two_texts#answer", tmp_path)
    assert corpus.documents("train")[0].startswith("a")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tfds:tiny_shakespear", ("no set 'tiny_shakespear'", "did you mean 'tfds:tiny_shakesp")),
        ("tfds:qqqqqqqq", ("no set 'qqqqqqqq'", "tensorflow.org/datasets/catalog")),
        ("tfds:mnist", ("no text feature", "image, label", "choose a set of text")),
        ("tfds:gam_jax_dummy/two_texts", ("several text features", "#question", "answer")),
        ("tfds:gam_jax_dummy/train#x", ("no text feature 'x'", "#text")),
        ("tfds:gam_jax_dummy/nothing", ("cannot be opened", "nothing")),
        ("tfds:gam_jax_dummy/test", ("no train split", "choose another")),
        ("python_stdlab", ("unknown data set 'python_stdlab'", "did you mean 'python_stdlib'")),
        ("wikitext-2", ("did you mean 'wikitext2'", "tfds:NAME")),
    ],
)
def test_a_wrong_name_is_refused_in_one_line(name, words, tmp_path):
    with pytest.raises(UserError) as caught:
        open_corpus(Text(name=name, dir=str(tmp_path)))
    message = str(caught.value)
    assert "\n" not in message
    for part in words:
        assert part in message


def test_a_missing_split_is_refused(tmp_path):
    with pytest.raises(UserError, match="no split 'test': it has train, validation"):
        opened("gam_jax_dummy/train", tmp_path).documents("test")


def test_a_set_prepared_in_a_format_of_tensorflow_is_refused(tmp_path):
    opened("gam_jax_dummy/train", tmp_path)
    info = tmp_path / "gam_jax_dummy" / "train" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    shutil.rmtree(tmp_path / "gam_jax" / "built")  # as if another program had prepared it
    with pytest.raises(UserError, match=r"needs TensorFlow: point data.dir at another folder"):
        opened("gam_jax_dummy/train", tmp_path)


def test_tiny_shakespeare_needs_no_tensorflow(tmp_path, monkeypatch):
    text = "First Citizen:\nBefore we proceed any further, hear me speak.\n\n" * 20
    (tmp_path / "input.txt").write_text(text)
    local = tmp_path / "input.txt"
    monkeypatch.setattr(download.DownloadManager, "download", lambda self, url: str(local))
    corpus = opened("tiny_shakespeare", tmp_path)
    assert corpus.splits == ("train", "validation", "test")
    assert "".join("".join(corpus.documents(s)) for s in corpus.splits) == text


def test_lm1b_and_its_archive_need_no_tensorflow(tmp_path, monkeypatch):
    top = "1-billion-word-language-modeling-benchmark-r13output"
    folders = {"training-monolingual": "news.en-00001", "heldout-monolingual": "news.en.heldout-01"}
    with tarfile.open(tmp_path / "lm1b.tar.gz", "w:gz") as archive:
        for folder, file in folders.items():
            path = tmp_path / file
            path.write_text("".join(f"{folder} sentence {i} .\n" for i in range(10)))
            archive.add(path, f"{top}/{folder}.tokenized.shuffled/{file}")
    packed = str(tmp_path / "lm1b.tar.gz")
    monkeypatch.setattr(
        download.DownloadManager, "download_and_extract", lambda self, url: self.extract(packed)
    )
    corpus = opened("lm1b", tmp_path)
    assert len(corpus.documents("train")) == 9
    assert len(corpus.documents("test")) == 10
    assert "tensorflow" not in sys.modules


def test_a_split_too_large_for_memory_is_shuffled_as_in_memory(tmp_path, monkeypatch):
    def texts(folder):
        with quiet():
            builder = GamJaxDummy(config="train", data_dir=folder)
            builder = prepare(builder, "dummy")
            return [record["text"] for record in builder.as_data_source(split="train")]

    in_memory = texts(tmp_path / "one")
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 0)
    assert texts(tmp_path / "two") == in_memory


def test_the_stand_in_is_gone_afterwards_and_says_what_it_lacks():
    from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow as tf

    with local_gfile():
        assert tf.io.gfile.exists(".")
        with pytest.raises(ImportError, match=r"tensorflow\.data is needed"):
            _ = tf.data
    with pytest.raises(ImportError):
        _ = tf.io
