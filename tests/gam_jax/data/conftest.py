"""A small corpus of real text, opened once."""

from __future__ import annotations

import pytest

from gam_jax.data.corpus import Corpus, open_corpus
from gam_jax.data.text import Text

SENTENCES = [
    "The cat sat on the mat, and the mat was warm.",
    "Cats and mats: a história of naïve façades — 猫 и кот 🐈.",
    "    indented = [1, 2, 3]  # not prose",
    "It was the best of times, it was the worst of times.",
]


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory):
    """Three files of a few kilobytes."""
    folder = tmp_path_factory.mktemp("text")
    for number in range(3):
        lines = [f"{i * number} {SENTENCES[(i + number) % 4]}\n" for i in range(60)]
        (folder / f"part{number}.txt").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def text_config(text_folder, tmp_path_factory: pytest.TempPathFactory) -> Text:
    """The configuration that reads them, with a data folder of its own."""
    folder = tmp_path_factory.mktemp("data")
    return Text(name=f"text:{text_folder}", window=32, dir=str(folder))


@pytest.fixture(scope="session")
def corpus(text_config: Text) -> Corpus:
    """The small corpus."""
    return open_corpus(text_config)
