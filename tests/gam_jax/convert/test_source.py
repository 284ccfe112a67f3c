"""What of a model folder stays with its weights, and what of it is refused."""

from __future__ import annotations

import json
import os

import pytest

from gam_jax.convert import from_hf, to_hf
from gam_jax.convert.source import MOST, read_source, without_tokens
from sharding.errors import UserError
from tests.model_folder import model_folder

KEPT = {
    "LICENSE",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture
def folder(tmp_path):
    return model_folder(tmp_path / "inner" / "llama")


def test_files_of_tokens_and_licences_are_kept_and_nothing_else(folder):
    (folder / "modeling_own.py").write_text("raise SystemExit")
    (folder / "LICENSES").mkdir()
    (folder / "NOTICE.txt").write_text("and this")
    found = read_source(folder)
    assert found.keys() == KEPT | {"NOTICE.txt"}
    for name, content in found.items():
        assert content == (folder / name).read_bytes()
    assert without_tokens(found).keys() == {"LICENSE", "NOTICE.txt"}


def outside(folder, name):
    (folder.parent / name).write_text("{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(folder.parent / name)


def pipe(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)


def large(folder, name):
    os.truncate(folder / name, MOST + 1)


def damaged(folder, name):
    (folder / name).write_text("{")


@pytest.mark.parametrize(
    ("damage", "name", "told"),
    [
        (outside, "generation_config.json", "leads outside of that folder"),
        (outside, "README.md", "leads outside of that folder"),
        (pipe, "README.md", "it is no file"),
        (pipe, "special_tokens_map.json", "it is no file"),
        (large, "LICENSE", "is larger than 8,388,608 bytes"),
        (damaged, "tokenizer_config.json", "is not JSON"),
        (damaged, "added_tokens.json", "is not JSON"),
    ],
)
def test_what_is_no_plain_file_of_the_folder_is_refused_by_name(damage, name, told, folder):
    damage(folder, name)
    with pytest.raises(UserError, match=f"{name} {told}|{name}: {told}") as raised:
        read_source(folder)
    assert "\n" not in str(raised.value)


def test_a_folder_that_is_not_there_is_not_downloaded(tmp_path):
    with pytest.raises(UserError, match="nothing is downloaded"):
        read_source(tmp_path / "org" / "name")


def test_they_are_written_beside_the_weights_and_fields_that_change_nothing_travel(
    folder, tmp_path
):
    original = json.loads((folder / "config.json").read_text())
    more = {"eos_token_id": [2, 32], "auto_map": {"AutoModel": "own.Own"}, "torch_dtype": "float16"}
    source = {**read_source(folder), "config.json": json.dumps(original | more).encode()}
    to_hf(*from_hf(folder), tmp_path / "out", source=source)
    for name in KEPT - {"config.json"}:
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["eos_token_id"] == [2, 32]
    assert written["bos_token_id"] == original["bos_token_id"]
    assert not written.keys() & {"auto_map", "torch_dtype", "dtype", "transformers_version"}
    assert from_hf(tmp_path / "out")[0] == from_hf(folder)[0]


def test_fields_of_another_class_do_not_travel(folder, tmp_path):
    said = {"architectures": ["Mamba2ForCausalLM"], "eos_token_id": 2, "chunk_size": 8}
    source = {"config.json": json.dumps(said).encode()}
    to_hf(*from_hf(folder), tmp_path / "out", source=source)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["eos_token_id"], "chunk_size" in written) == (2, False)
