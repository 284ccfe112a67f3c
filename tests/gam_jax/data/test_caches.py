"""What is kept on disk is held against its checksums: damage is made anew, with a word, or refused.

Nothing damaged is ever trained on, and no damage ends in a trace.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from gam_jax.data.builders import built, text_files
from gam_jax.data.corpus import open_corpus
from gam_jax.data.storage import cached
from gam_jax.data.text import Text
from gam_jax.data.text_dataset import open_text
from sharding.errors import UserError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small text, opened once with a BPE: (configuration, its tokens, the data folder)."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "a.txt").write_text("some words of a small text\n" * 60)
    config = Text(
        name=f"text:{folder}/a.txt", dir=str(folder / "data"), tokenizer="bpe:270", window=8
    )
    data = open_text(config)
    data.described()
    return config, [np.array(tokens) for tokens in (data.train, data.validation)], folder / "data"


@pytest.fixture
def place(whole, tmp_path):
    """A copy of that data folder, and how to open the text with it: (folder, open)."""
    config, tokens, folder = whole
    shutil.copytree(folder, tmp_path / "data")

    def opened():
        fields = {"name": config.name, "tokenizer": config.tokenizer, "window": config.window}
        data = open_text(Text(**fields, dir=str(tmp_path / "data")))
        for own, wanted in zip((data.train, data.validation), tokens, strict=True):
            np.testing.assert_array_equal(own, wanted)
        return data.described()

    return tmp_path / "data", opened


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 4
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def remove(path):
    path.unlink()


DAMAGE = (flip, cut, empty, remove)
FILES = (
    "gam_jax/tokens/*.npy",
    "gam_jax/tokens/*.npy.sha256",
    "gam_jax/sizes/*.json",
    "gam_jax/sizes/*.json.sha256",
    "gam_jax/bpe/*.json",
    "gam_jax/built/*.json",
    "text_files/*/1.0.0/dataset_info.json",
    "text_files/*/1.0.0/features.json",
    "text_files/*/1.0.0/*.array_record*",
)


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("pattern", FILES)
def test_every_damaged_file_is_made_anew_and_the_tokens_are_the_same(place, pattern, damage, capfd):
    folder, opened = place
    described = opened()
    assert capfd.readouterr().err == ""
    paths = sorted(folder.glob(pattern))
    assert paths
    for path in paths:
        damage(path)
    assert opened() == described
    said = capfd.readouterr().err
    if "built" not in pattern and (damage is not remove or "1.0.0" in pattern):
        assert "anew" in said or "built again" in said
    assert "Traceback" not in said
    assert opened() == described
    assert capfd.readouterr().err == ""


def test_a_folder_in_the_place_of_a_cache_is_refused_in_one_line(place):
    folder, opened = place
    path = next(folder.glob("gam_jax/tokens/*.npy"))
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="is a folder, not a file"):
        opened()


@pytest.mark.parametrize("other", ["a file", "a broken link"])
@pytest.mark.parametrize(
    "pattern", ["gam_jax", "gam_jax/*", "text_files", "text_files/*", "text_files/*/1.0.0"]
)
def test_what_stands_where_a_folder_belongs_is_replaced_or_told_in_one_line(place, pattern, other):
    folder, opened = place
    for path in sorted(folder.glob(pattern)):
        kept = path.rename(folder.parent / "kept")
        if other == "a file":
            path.write_text("x")
        else:
            path.symlink_to("nowhere")
        try:
            opened()
        except UserError as error:
            line = str(error)
            assert "\n" not in line
            path.unlink()
            kept.rename(path)
        else:
            shutil.rmtree(kept)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', "\0"])
def test_a_set_whose_description_is_damaged_before_its_checksums_were_kept_is_built_again(
    place, content, capfd
):
    folder, opened = place
    shutil.rmtree(folder / "gam_jax" / "built")
    next(folder.glob("text_files/*/*/dataset_info.json")).write_text(content)
    opened()
    assert "it is built again" in capfd.readouterr().err


def test_a_set_that_was_downloaded_is_not_removed_but_refused(tmp_path):
    target = tmp_path / "set" / "1.0.0"
    target.mkdir(parents=True)
    (target / "data").write_text("as it came")
    built.keep_record(tmp_path, target)
    built.check_whole(tmp_path, target, renew=False)
    (target / "data").write_text("as it is now")
    with pytest.raises(
        UserError, match=r"damaged \(data has other bytes.*remove it, and it is down"
    ):
        built.check_whole(tmp_path, target, renew=False)
    assert (target / "data").exists()


def test_a_damaged_set_of_tensorflow_datasets_is_one_line(tmp_path):
    from tests.gam_jax.data.test_tfds_sets import opened

    opened("gam_jax_dummy/train", tmp_path)
    for damaged in (tmp_path / "gam_jax_dummy" / "train" / "1.0.0").iterdir():
        kept = damaged.read_bytes()
        flip(damaged)
        with pytest.raises(UserError, match="remove") as error:
            opened("gam_jax_dummy/train", tmp_path)
        assert "\n" not in str(error.value)
        damaged.write_bytes(kept)
    opened("gam_jax_dummy/train", tmp_path)


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_text_that_changes_while_it_is_read_poisons_no_cache(tmp_path, monkeypatch, at):
    path = tmp_path / "a.txt"
    path.write_text("one line\n" * 100)
    config = Text(name=f"text:{path}", dir=str(tmp_path / "data"), window=8)
    read, times = text_files.documents, []

    def changed_later(*args):
        times.append(1)
        if len(times) == at:  # measured, cut, or written into train or validation
            path.write_text("two line\n" * 100)
        return read(*args)

    with monkeypatch.context() as patch:
        patch.setattr(text_files, "documents", changed_later)
        with pytest.raises(UserError, match=r"a.txt changed while it was read"):
            open_corpus(config)
    assert not list((tmp_path / "data").rglob("*.array_record*"))
    path.write_text("one line\n" * 100)
    assert open_corpus(config).documents("train")[0].startswith("one")


def test_a_cache_that_cannot_be_written_whole_leaves_nothing(tmp_path):
    def write(path):
        path.write_text("half")
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        cached(tmp_path, tmp_path / "kept" / "a", write)
    assert list((tmp_path / "kept").iterdir()) == []
    cached(tmp_path, tmp_path / "kept" / "a", lambda path: json.dump(1, path.open("w")))
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == ["a", "a.sha256"]
