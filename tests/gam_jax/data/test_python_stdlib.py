"""The standard library as a corpus."""

from __future__ import annotations

import sys

import pytest

from gam_jax.data.builders import python_stdlib
from gam_jax.data.builders.prepare import prepare, quiet
from gam_jax.data.corpus import open_corpus
from gam_jax.data.text import Text
from sharding.errors import UserError


@pytest.fixture
def library(tmp_path):
    """A folder laid out as a standard library, tests and all."""
    root = tmp_path / "lib"
    names = [f"module{i}.py" for i in range(20)]
    names += ["pkg/a.py", "test/b.py", "pkg/tests/c.py", "idlelib/idle_test/d.py"]
    names += ["site-packages/e.py", "pkg/data.txt"]
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"NAME = {name!r}\n")
    return root


def built(data_dir, root, fraction=0.1):
    with quiet():
        builder, _ = python_stdlib.python_stdlib_builder(data_dir, fraction, str(root))
        builder = prepare(builder, "python_stdlib")
        sources = {
            split: list(builder.as_data_source(split=split)) for split in ("train", "validation")
        }
    return builder, sources


def test_tests_and_installed_packages_are_left_out(library):
    names = python_stdlib.source_files(library)
    assert len(names) == 21
    assert not [n for n in names if "test" in n or "site-packages" in n or n.endswith(".txt")]


def test_every_file_is_in_one_split_and_whole(library, tmp_path):
    _, sources = built(tmp_path / "data", library)
    paths = {split: {r["path"].decode() for r in records} for split, records in sources.items()}
    assert paths["train"] | paths["validation"] == set(python_stdlib.source_files(library))
    assert not paths["train"] & paths["validation"]
    assert len(paths["validation"]) == 2
    for record in sources["train"]:
        assert record["text"].decode() == (library / record["path"].decode()).read_text()


def test_the_same_library_gives_the_same_records_in_the_same_order(library, tmp_path):
    assert built(tmp_path / "one", library)[1] == built(tmp_path / "two", library)[1]


def test_the_same_library_has_the_digest_that_it_always_had(library, tmp_path):
    builder, _ = built(tmp_path / "data", library)
    assert builder.builder_config.name.endswith("-4fb1e6d6bf46b02f")


def test_a_file_that_changes_while_it_is_read_is_refused(library, tmp_path):
    with quiet():
        builder, _ = python_stdlib.python_stdlib_builder(tmp_path / "data", 0.1, str(library))
        (library / "module3.py").write_text("NAME = 'changed'\n")
        with pytest.raises(UserError, match=r"module3.py changed while it was read"):
            prepare(builder, "python_stdlib")


def test_a_changed_file_makes_another_data_set(library, tmp_path):
    before, _ = built(tmp_path / "data", library)
    (library / "module3.py").write_text("NAME = 'changed'\n")
    after, sources = built(tmp_path / "data", library)
    assert before.data_dir != after.data_dir
    assert any(b"changed" in r["text"] for records in sources.values() for r in records)


def test_a_declared_encoding_is_honoured(tmp_path):
    path = tmp_path / "latin.py"
    path.write_bytes(b"# -*- coding: latin-1 -*-\nNAME = '\xe9'\n")
    assert "é" in python_stdlib.read_source(path)


def test_the_running_interpreter_is_a_corpus_of_megabytes(tmp_path):
    corpus = open_corpus(Text(dir=str(tmp_path)))
    assert corpus.splits == ("train", "validation")
    assert corpus.bytes("train") > 5e6
    assert corpus.bytes("validation") > 2e5
    assert any("def dumps(" in text for _, text in corpus.documents("train").pieces())
    assert open_corpus(Text(dir=str(tmp_path))).fingerprint == corpus.fingerprint
    assert "tensorflow" not in sys.modules
