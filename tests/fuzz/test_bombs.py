"""A small file that asks for much: refused in one line, by bounds, with memory to spare."""

from __future__ import annotations

import functools
import gzip
import json

import pytest

from gam_jax.convert import from_hf
from gam_jax.data.text_dataset import open_text
from gam_jax.data.tokenizer import load_tokenizer
from sharding.checkpoint import manifest
from sharding.json_file import MAX_BYTES
from tests.fuzz import law, strange
from tests.fuzz.files import model_files

LARGE = [10**5, 10**6]
"""A shape whose numbers are 400 GB."""
MANIFEST = f"run/checkpoints/120/{manifest.FILE}"


def refused(shop, patch, call):
    """Whether a call is refused in one line, and leaves the folder as it was."""
    with law.nothing_long(patch, shop.place):
        return law.verdict(call, shop.place) == "refused"


@pytest.mark.parametrize(
    "line",
    [
        ("checkpoint", "inspect", "run"),
        ("checkpoint", "inspect", "run", "--json"),
        ("checkpoint", "diff", "run", "run@80"),
        ("checkpoint", "export", "run", "--to=out"),
        ("evaluate", "--run=run"),
        ("train", "--run=run", "--resume"),
    ],
    ids=" ".join,
)
def test_a_manifest_that_asks_for_400_gigabytes(line, shop, monkeypatch):
    shop.renew()
    values = shop.json(MANIFEST)["manifest"]
    for name, array in values["arrays"].items():
        if name.startswith("params/") and len(array["shape"]) == 2:
            array["shape"] = LARGE
    (shop.place / MANIFEST).write_text(manifest._text(values))
    call = functools.partial(law.gam, *line)
    with law.nothing_long(monkeypatch, shop.place):
        ended = law.verdict(call, shop.place)
    assert ended == ("taken" if line[1] == "diff" else "refused")  # which tells of both shapes


@pytest.mark.parametrize("field", ["vocab_size", "hidden_size", "num_hidden_layers"])
@pytest.mark.parametrize("size", [2**31 - 1, 10**30])
def test_a_model_folder_that_asks_for_as_much(field, size, shop, monkeypatch):
    shop.renew()
    for name, content in model_files("hf_llama").items():
        (shop.place / name).parent.mkdir(exist_ok=True)
        (shop.place / name).write_bytes(content)
    config = json.loads((shop.place / "hf/config.json").read_text())
    (shop.place / "hf/config.json").write_bytes(strange.as_json({**config, field: size}))
    assert refused(shop, monkeypatch, lambda: from_hf("hf"))


@pytest.mark.parametrize("token", [2**24 + 1, 2**31, 2**32 - 1, 2**64])
def test_a_tokenizer_of_as_many_ids(token, shop, monkeypatch):
    shop.renew()
    model = {"type": "WordLevel", "vocab": {"a": 0, "b": token}, "unk_token": "a"}
    (shop.place / "tokenizer.json").write_bytes(strange.as_json({"version": "1.0", "model": model}))
    assert refused(shop, monkeypatch, lambda: load_tokenizer("tokenizer.json"))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "baselines.json", MANIFEST[4:]])
def test_a_file_of_json_of_more_bytes_than_are_read(name, shop, monkeypatch):
    shop.renew()
    with (shop.place / "run" / name).open("r+b") as file:
        file.truncate(100 * MAX_BYTES)  # a hole: it takes no room
    for line in (("evaluate", "--run=run"), ("checkpoint", "inspect", "run")):
        call = functools.partial(law.gam, *line)
        with law.nothing_long(monkeypatch, shop.place):
            assert law.verdict(call, shop.place) in ("refused", "taken")


def packed(begin: bytes, gibibytes: int) -> bytes:
    """Gzip of many equal lines without an end, in parts that are packed once."""
    part = gzip.compress(b"a" * (64 << 20), 1)
    return gzip.compress(begin) + part * (16 * gibibytes)


@pytest.mark.slow
@pytest.mark.parametrize("begin", [b"prose ", b'{"text": "', b'[{"text": "'], ids=ascii)
@pytest.mark.parametrize("name", ["x.gz", "x.json.gz", "x.jsonl.gz"])
def test_gzip_of_six_gibibytes(begin, name, shop, monkeypatch):
    shop.renew()
    (shop.place / name).write_bytes(packed(begin, 6))
    config = type(shop.texts)(name=f"text:{name}", dir="data", tokenizer="bytes", window=32)
    assert refused(shop, monkeypatch, lambda: open_text(config).described())
    (shop.place / name).unlink()
