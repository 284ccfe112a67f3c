"""One call from a configuration to tokens."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from gam_jax.data import Text, load
from gam_jax.data.tokenizer import ByteTokenizer, HFTokenizer
from gam_jax.data.windows import train_batches, validation_batches, windows
from sharding.errors import UserError


def test_bytes_are_the_default(text_config):
    data = load(text_config)
    assert isinstance(data.tokenizer, ByteTokenizer)
    tokens, text = len(data.validation), data.corpus.bytes("validation")
    assert data.bytes_per_token == pytest.approx(text / tokens)
    assert tokens == text + len(data.corpus.documents("validation")) - 1
    assert data.test is None


def test_the_papers_protocol_is_one_configuration(text_config):
    config = dataclasses.replace(
        text_config,
        tokenizer="bpe:400",
        bpe_splits="all",
        bpe_pre_tokenizer="whitespace",
        window=16,
        stride=17,
        separators=False,
    )
    data = load(config)
    assert isinstance(data.tokenizer, HFTokenizer)
    assert data.tokenizer.vocab <= 400
    rows = windows(data.train, config.window, config.step)
    with train_batches(rows, config, batch=4, seed=0) as stream:
        assert next(stream)["inputs"].shape == (4, 16)
    scored = sum(b["weights"].sum() for b in validation_batches(data.validation, config, batch=4))
    n = len(data.validation)
    assert scored == n - len(range(0, n, 17))


def test_the_first_rows_of_a_split_are_a_data_set_of_their_own(text_config):
    whole, cut = load(text_config), load(dataclasses.replace(text_config, train_rows=1))
    documents = whole.corpus.documents("train")
    assert len(documents) > 1
    assert cut.tokenizer.decode(cut.train) == documents[0]
    assert np.array_equal(cut.validation, whole.validation)
    assert cut.corpus.fingerprint != whole.corpus.fingerprint


def test_a_given_tokenizer_is_used_on_other_text(text_config, tmp_path):
    trained = load(dataclasses.replace(text_config, tokenizer="bpe:300"))
    (tmp_path / "other.txt").write_text("another text entirely\n" * 50)
    config = Text(name=f"text:{tmp_path}/other.txt", window=8, dir=str(tmp_path / "data"))
    other = load(config, trained.tokenizer)
    assert other.tokenizer is trained.tokenizer
    assert trained.tokenizer.decode(other.train).startswith("another text")


def test_a_tokenizer_file_is_opened(text_config, tmp_path):
    load(dataclasses.replace(text_config, tokenizer="bpe:300")).tokenizer.save(tmp_path / "t.json")
    data = load(dataclasses.replace(text_config, tokenizer=str(tmp_path / "t.json")))
    assert data.tokenizer.vocab == 300


def test_loading_again_gives_the_same_tokens(text_config):
    one, two = load(text_config), load(text_config)
    np.testing.assert_array_equal(one.train, two.train)
    assert one.corpus.fingerprint == two.corpus.fingerprint


def test_a_corpus_shorter_than_a_window_is_refused(text_config):
    with pytest.raises(UserError, match=r"tokens long, and one window needs 100001: give more"):
        load(dataclasses.replace(text_config, window=100_000))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("window", 0, "data.window=0: window must be at least 1"),
        ("window", 2**31, "data.window=2147483648: window must be at most 2147483647"),
        ("stride", -1, "data.stride=-1: stride must not be negative"),
        ("stride", 10**30, "data.stride"),
        ("workers", -1, "data.workers=-1"),
        ("workers", 10**6, "data.workers=1000000: workers must be at most 1024"),
        ("train_rows", 2**60, "data.train_rows"),
        ("validation_rows", 1.5, "validation_rows must be a whole number"),
        ("tokenizer", "bpe:many", "give the vocabulary size after 'bpe:'"),
        ("tokenizer", "bpe:99999999", "at most 16,777,216"),
        ("tokenizer", "bpe:" + "9" * 5000, "at most 16,777,216"),
        ("tokenizer", "bpe:\u00b2", "give the vocabulary size after 'bpe:'"),
        ("tokenizer", "gs://bucket/tokenizer.json", "is no path of a file system"),
        ("dir", "s3://bucket/data", "is no path of a file system"),
        ("field", "a\nb", "give a name of at most 200 characters"),
        ("field", "a" * 201, "give a name of at most 200 characters"),
        ("bpe_splits", "test", "choose 'train' or 'all'"),
        ("bpe_pre_tokenizer", "none", "choose 'byte_level' or 'whitespace'"),
        ("decode_errors", "ignore", "choose 'strict' or 'replace'"),
        ("validation_fraction", 1.0, "give a share between 0 and 1"),
    ],
)
def test_a_field_without_sense_is_refused(field, value, words):
    with pytest.raises(UserError) as caught:
        Text(**{field: value})
    assert words in str(caught.value)
    assert f"data.{field}" in str(caught.value)


def test_importing_is_quick_and_needs_no_tensorflow():
    code = "import gam_jax.data, sys; print([m for m in ('tensorflow', 'tensorflow_datasets', "
    code += "'tokenizers', 'grain') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
