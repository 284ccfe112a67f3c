"""New special tokens: ids behind the old ones, and rows that are the mean of the old rows."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Tokenizer

from gam_jax.convert.hf import open_hf
from gam_jax.convert.new_tokens import tokenizer_of, with_rows, with_tokens
from gam_jax.convert.source import read_source
from sharding.errors import UserError
from tests.model_folder import GOLDEN, MARKS, model_folder

LETTERS = 31


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of 31 ids where the model has 48."""
    return model_folder(tmp_path_factory.mktemp("hf") / "llama", special=())


def test_they_get_the_next_ids_and_are_special(folder):
    source, ids = with_tokens(read_source(folder), MARKS, folder)
    assert ids == (LETTERS, LETTERS + 1)
    tokenizer = tokenizer_of(source, folder)
    assert tokenizer.vocab == LETTERS + 2
    assert tokenizer.special_tokens == set(MARKS)
    ((found, _),) = tokenizer.encode_places([f"{MARKS[0]}ab{MARKS[1]}"], special=True)
    assert list(found[[0, -1]]) == list(ids)
    assert tokenizer.decode(found) == "ab"
    old = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert list(tokenizer.encode("the cat")) == old.encode("the cat").ids


def test_the_lists_of_added_tokens_that_a_folder_has_name_them_too(folder):
    listed = {"added_tokens_decoder": {"3": {"content": "a"}}, "eos_token": "a"}
    files = {"tokenizer_config.json": listed, "added_tokens.json": {"a": 3}}
    source = read_source(folder) | {n: json.dumps(v).encode() for n, v in files.items()}
    source, _ = with_tokens(source, MARKS, folder)
    config = json.loads(source["tokenizer_config.json"])
    decoder = config["added_tokens_decoder"]
    assert decoder.keys() == {"3", "31", "32"}
    assert (decoder["32"]["content"], decoder["32"]["special"]) == (MARKS[1], True)
    assert config["eos_token"] == "a"
    assert json.loads(source["added_tokens.json"]) == {"a": 3, MARKS[0]: 31, MARKS[1]: 32}


@pytest.mark.parametrize("golden", ["hf_llama", "hf_qwen2"])
@pytest.mark.parametrize(
    ("known", "vocab", "ids"), [(31, 48, (31, 32)), (47, 50, (47, 48, 49)), (48, 50, (48, 49))]
)
def test_new_rows_are_the_mean_of_the_old_and_the_rest_stays_bit_for_bit(golden, known, vocab, ids):
    model, params = open_hf(GOLDEN / golden)
    grown = with_rows(model.table(), params, known, vocab, ids)
    for name in ("embedding", "head") if golden == "hf_llama" else ("embedding",):
        old, new = params[name], grown[name]
        assert new.shape == (vocab, model.width)
        assert new.dtype == np.float32
        kept = [row for row in range(48) if row not in ids]
        np.testing.assert_array_equal(new[kept], old[kept])
        mean = old[:known].astype(np.float64).sum(axis=0) / known
        for row in ids:
            np.testing.assert_allclose(new[row], mean, rtol=1e-6, atol=1e-9)
    assert grown["blocks"]["mixer"]["query"] is params["blocks"]["mixer"]["query"]
    assert ("head" in grown) == (golden == "hf_llama")


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([""], "'' is no name of a token"),
        (["a\tb"], "is no name of a token"),
        (["x" * 300], "is no name of a token"),
        (["<|x|>", "<|x|>"], "'<|x|>' is given twice"),
        (["c"], "'c' is in .*tokenizer.json already"),
    ],
)
def test_what_is_no_new_name_is_refused(folder, names, told):
    with pytest.raises(UserError, match=told.replace("|", r"\|")):
        with_tokens(read_source(folder), names, folder)


def test_a_folder_without_a_tokenizer_is_refused(folder):
    with pytest.raises(UserError, match=r"has no tokenizer.json"):
        tokenizer_of({}, folder)
    with pytest.raises(UserError, match="is none of the Hugging Face tokenizers library"):
        tokenizer_of({"tokenizer.json": b'{"gam_jax": "bytes"}'}, folder)
