"""Three kinds of text that every machine with this package has."""

from __future__ import annotations

import pytest

from gam_jax.data.builders.domains import DOMAINS, LIMIT, documents
from gam_jax.data.corpus import open_corpus
from gam_jax.data.text import Text
from sharding.errors import UserError

TYPICAL = {"python": "def ", "english": "statement", "c": "#define"}


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_domain_is_text_of_its_kind_and_whole_documents_are_held_out(domain, tmp_path):
    corpus = open_corpus(Text(name=f"domain:{domain}", dir=str(tmp_path)))
    train, held = (list(corpus.documents(split)) for split in ("train", "validation"))
    texts = documents(domain)
    assert sorted(train + held) == sorted(texts.values())
    assert len(held) == round(len(texts) / 10)
    assert 300_000 < sum(len(text.encode()) for text in texts.values()) <= LIMIT
    assert any(TYPICAL[domain] in text for text in train)
    again = open_corpus(Text(name=f"domain:{domain}", dir=str(tmp_path)))
    assert again.fingerprint == corpus.fingerprint


def test_an_unknown_domain_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'domain:english'"):
        open_corpus(Text(name="domain:englisch"))
