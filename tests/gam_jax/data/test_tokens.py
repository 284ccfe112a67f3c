"""The tokens of a split: every document, separators between, cached and written whole."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from gam_jax.data.bpe import train_bpe
from gam_jax.data.builders import files
from gam_jax.data.corpus import open_corpus
from gam_jax.data.text import Text
from gam_jax.data.tokenizer import ByteTokenizer
from gam_jax.data.tokens import tokenize_split
from sharding.errors import UserError


class NoSeparator(ByteTokenizer):
    separator = None
    fingerprint = "no separator"


def split_at(tokens: np.ndarray, separator: int) -> list[list[int]]:
    cuts = np.flatnonzero(tokens == separator)
    return [part[part != separator].tolist() for part in np.split(tokens, cuts)]


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), train_bpe(["a cat"], 270, "byte_level")])
def test_documents_in_order_with_a_separator_between_each_two(corpus, tokenizer):
    for split in corpus.splits:
        tokens = tokenize_split(corpus, split, tokenizer)
        documents = split_at(tokens, tokenizer.separator)
        assert [tokenizer.decode(d) for d in documents] == list(corpus.documents(split))
        assert tokens.dtype == np.uint16
        assert isinstance(tokens, np.memmap)


def test_without_separators_the_documents_run_together(corpus):
    tokens = tokenize_split(corpus, "train", ByteTokenizer(), separators=False)
    assert len(tokens) == corpus.bytes("train")
    assert tokens.tobytes().replace(b"\0", b"").decode() == "".join(corpus.documents("train"))


def test_no_separator_within_a_document_of_several_records(tmp_path, monkeypatch):
    text = "a line of text\n" * 200
    (tmp_path / "long.txt").write_text(text)
    monkeypatch.setattr(files.pieces, "__defaults__", (64,))
    corpus = open_corpus(Text(name=f"text:{tmp_path}/long.txt", dir=str(tmp_path / "data")))
    assert 0 not in tokenize_split(corpus, "train", ByteTokenizer())


def test_tokenized_once(corpus, monkeypatch):
    first = tokenize_split(corpus, "train", ByteTokenizer())
    monkeypatch.setattr(ByteTokenizer, "encode_batch", None)
    np.testing.assert_array_equal(tokenize_split(corpus, "train", ByteTokenizer()), first)


def test_a_large_vocabulary_takes_four_bytes(corpus):
    class Wide(ByteTokenizer):
        vocab = 70_000
        fingerprint = "wide"

    tokens = tokenize_split(corpus, "validation", Wide())
    assert tokens.dtype == np.uint32
    assert Wide().decode(tokens[:20]) == corpus.documents("validation")[0][:20]


def test_a_tokenizer_without_separator_is_refused_unless_none_is_wanted(corpus):
    with pytest.raises(UserError, match=r"no token that ends a text.*data.separators=False"):
        tokenize_split(corpus, "train", NoSeparator())
    assert len(tokenize_split(corpus, "train", NoSeparator(), separators=False))


def test_a_disk_that_fills_up_leaves_no_tokens(corpus, monkeypatch):
    class Failing(ByteTokenizer):
        fingerprint = "failing"

        def encode_batch(self, texts):
            raise OSError(errno.ENOSPC, "No space left on device")

    before = set((corpus.folder / "gam_jax").rglob("*.npy*"))
    with pytest.raises(UserError, match=r"no room on disk in .*tokens"):
        tokenize_split(corpus, "train", Failing())
    assert set((corpus.folder / "gam_jax").rglob("*.npy*")) == before


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    config = Text(name=f"text:{tmp_path}/file", dir=str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot write .*: Not a directory; point data.dir at"):
        open_corpus(config)
