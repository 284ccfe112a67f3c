"""Tokenizers: nothing is lost, streams equal wholes, files open again."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from gam_jax.data.bpe import cached_bpe, train_bpe
from gam_jax.data.text import Text
from gam_jax.data.tokenizer import ByteTokenizer, HFTokenizer, load_tokenizer
from sharding.errors import UserError

TEXTS = [
    "the cat sat on the mat\n" * 20,
    "naïve façade — 猫 🐈‍⬛ [EOS] \x00 end  ",
    "def f(x):\n    return x",
]
BYTES = ByteTokenizer()
BPE = train_bpe(TEXTS, 320, "byte_level")
WORDS = train_bpe(TEXTS, 90, "whitespace")


def third_party(*extra: str) -> HFTokenizer:
    """A word tokenizer with a leading-space decoder, as somebody else would bring."""
    vocab = {t: i for i, t in enumerate(["<unk>", "▁the", "▁cat", "s", "▁sat", *extra])}
    library = Library(models.WordLevel(vocab, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    library.enable_truncation(2)
    library.enable_padding(length=9)
    return HFTokenizer(library)


lossless = pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
every = pytest.mark.parametrize(
    "tokenizer", [BYTES, BPE, WORDS, third_party("</s>")], ids=["bytes", "bpe", "words", "other"]
)
some_text = st.text(max_size=60) | st.sampled_from(TEXTS)


@lossless
@given(text=some_text)
def test_decoding_what_was_encoded_gives_the_text(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == text


@every
@given(texts=st.lists(some_text, max_size=4))
def test_a_batch_is_encoded_as_each_text(tokenizer, texts):
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(text))


@every
@given(data=st.data())
def test_streaming_equals_decoding_the_whole(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab - 1), max_size=40))
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids)


@lossless
@given(text=some_text)
def test_a_stream_never_gives_half_a_character(tokenizer, text):
    stream = tokenizer.stream()
    given_out = ""
    for token in tokenizer.encode(text):
        given_out += stream.push(int(token))
        assert text.startswith(given_out)
    assert given_out + stream.flush() == text


@every
def test_a_saved_tokenizer_opens_again(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        again = load_tokenizer(path)
        assert (again.vocab, again.separator) == (tokenizer.vocab, tokenizer.separator)
        assert again.fingerprint == tokenizer.fingerprint
        np.testing.assert_array_equal(again.encode(TEXTS[0]), tokenizer.encode(TEXTS[0]))
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]


def test_bytes_are_their_values():
    assert BYTES.encode("aé").tolist() == [97, 195, 169]
    assert (BYTES.vocab, BYTES.separator) == (256, 0)


def test_an_id_that_is_no_byte_is_no_text():
    assert BYTES.decode([104, 300]) == "h\ufffd"
    assert BYTES.stream().push(300) == "\ufffd"


def test_the_first_ids_of_a_bpe_are_the_special_tokens(tmp_path):
    BPE.save(tmp_path / "t.json")
    vocab = json.loads((tmp_path / "t.json").read_text())["model"]["vocab"]
    assert [vocab[t] for t in ("[UNK]", "[PAD]", "[SOS]", "[EOS]")] == [0, 1, 2, 3]
    assert BPE.separator == 3
    assert BPE.vocab <= 320


def test_training_a_bpe_twice_gives_the_same_tokenizer():
    for pre_tokenizer in ("byte_level", "whitespace"):
        prints = {train_bpe(TEXTS, 300, pre_tokenizer).fingerprint for _ in range(3)}
        assert len(prints) == 1


def test_the_whitespace_pre_tokenizer_drops_whitespace():
    assert WORDS.decode(WORDS.encode("the  cat\n")) == WORDS.decode(WORDS.encode("the cat"))


def test_text_that_spells_a_special_token_stays_text():
    assert BPE.separator not in BPE.encode("a [EOS] b")


def test_nothing_is_cut_padded_or_added_whatever_the_file_asks_for():
    assert third_party().encode("the cat sat the").tolist() == [1, 2, 4, 1]


@pytest.mark.parametrize("end", ["</s>", "<|endoftext|>", "[EOS]", "<eos>"])
def test_the_separator_of_another_tokenizer_is_its_end_token(end):
    assert third_party(end).separator == 5
    assert third_party().separator is None


def test_a_bpe_is_trained_once_and_again_for_other_settings(corpus, text_config, monkeypatch):
    first = cached_bpe([corpus], text_config, 290)
    with monkeypatch.context() as patch:
        patch.setattr("gam_jax.data.bpe.train_bpe", None)
        assert cached_bpe([corpus], text_config, 290).fingerprint == first.fingerprint
    before = set((corpus.folder / "gam_jax" / "bpe").glob("*.json"))
    everything = Text(name=text_config.name, dir=text_config.dir, bpe_splits="all")
    assert cached_bpe([corpus], everything, 290).vocab == 290
    assert len(set((corpus.folder / "gam_jax" / "bpe").glob("*.json")) - before) == 1


def test_ids_that_no_model_could_have_and_what_is_no_file_are_refused(tmp_path):
    model = {"type": "WordLevel", "vocab": {"a": 0, "b": 4 * 10**9}, "unk_token": "a"}
    (tmp_path / "t.json").write_text(
        json.dumps({"version": "1.0", "added_tokens": [], "model": model})
    )
    os.mkfifo(tmp_path / "pipe")
    cases = {"t.json": "an id of 4,000,000,000", "pipe": "no plain file", "a" * 300: "longer than"}
    for name, words in cases.items():
        with pytest.raises(UserError, match=words):
            load_tokenizer(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file or directory; give 'bytes', 'bpe:10000' or the path"),
        (b"{}", "is not a tokenizer.json"),
        (b"not json", "is not a tokenizer.json"),
        (b'{"gam_jax": "words"}', "is not a tokenizer.json"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_refused(content, words, tmp_path):
    path = tmp_path / "mine.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_tokenizer(path)
    assert words in str(caught.value)
    assert "mine.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(UserError, match="bpe:100 is too small a vocabulary: give 260 or more"):
        train_bpe(TEXTS, 100, "byte_level")
