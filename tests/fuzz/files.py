"""Files that a person can hand over, or a disk can damage."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from typing import Any

from hypothesis import strategies as st

from experiments.papers import STUDIES
from experiments.study import found
from gam_jax.convert import from_hf
from gam_jax.data.bpe import train_bpe
from gam_jax.data.text_dataset import open_text
from gam_jax.data.tokenizer import load_tokenizer
from gam_jax.training.history import Began
from gam_jax.training.lock import Owner, run_lock
from sharding.checkpoint import manifest
from tests.fuzz import strange
from tests.fuzz.case import Case, command
from tests.fuzz.lines import GOOD
from tests.fuzz.shop import GOLDEN, Shop


@st.composite
def manifests(draw: st.DrawFn, shop: Shop) -> Case:
    """A checkpoint whose manifest was made by another, with the checksum that it asks for."""
    place = pathlib.Path("run/checkpoints/120") / manifest.FILE
    values = draw(strange.mutated(shop.json(str(place))["manifest"]))
    try:
        content = manifest._text(values).encode()
    except (ValueError, TypeError, AttributeError):
        content = strange.as_json({"manifest": values, "sha256": ""})
    if draw(st.integers(0, 9)) == 0:
        content = draw(strange.files({"manifest": values, "sha256": ""}))
    line = draw(st.sampled_from([
        ("checkpoint", "inspect", "run"), ("checkpoint", "inspect", "run", "--verify", "--json"),
        ("checkpoint", "diff", "run", "run@80"), ("checkpoint", "export", "run", "--to=out"),
        ("evaluate", "--run=run"), ("sample", "--run=run", "--tokens=2"),
        ("train", "--run=run", "--resume"), ("train", "--run=run", "--resume=latest-good"),
        ("train", *GOOD["train"], "--init=run"), ("convert", "--run=run", "--to_hf=out"),
    ]))  # fmt: skip
    return command(*line, files={str(place): content})


@st.composite
def model_folders(draw: st.DrawFn, shop: Shop) -> Case:
    """A folder of Hugging Face whose config.json, index, header or arrays are not as they were."""
    name = draw(st.sampled_from(sorted(p.name for p in GOLDEN.glob("hf_*"))))
    files = model_files(name)
    config = json.loads(files["hf/config.json"])
    which = draw(st.sampled_from(["config"] * 4 + ["index", "header", "bytes"]))
    if which == "config":
        files["hf/config.json"] = draw(strange.files(config))
    elif which == "index":
        arrays = sorted(_header(files["hf/model.safetensors"])[0].keys() - {"__metadata__"})
        shard = "model-00001-of-00001.safetensors"
        files[f"hf/{shard}"] = files.pop("hf/model.safetensors")
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(arrays, shard)}
        escapes = st.sampled_from(["../good.txt", "/etc/passwd", "..", ".", "", "a/b.safetensors"])
        if draw(st.booleans()):
            index["weight_map"][draw(st.sampled_from(arrays))] = draw(escapes)
        files["hf/model.safetensors.index.json"] = draw(strange.files(index))
    elif which == "header":
        header, rest = _header(files["hf/model.safetensors"])
        changed = draw(strange.files(header))
        size = draw(st.just(len(changed)) | st.integers(0, 2**64 - 1))
        files["hf/model.safetensors"] = size.to_bytes(8, "little") + changed + rest
    else:
        files["hf/model.safetensors"] = draw(strange.damaged(files["hf/model.safetensors"]))
    told = {n: c for n, c in files.items() if not n.endswith(".safetensors")}
    return command("convert", "--from_hf=hf", "--run=new", files=files)._replace(
        told=f"{name}, {which}: {str(told)[:1500]}", call=lambda: from_hf("hf")
    )


def model_files(name: str) -> dict[str, bytes]:
    """What a folder of tests/golden holds, as a folder hf of a shop."""
    wanted = ("config.json", "model.safetensors")
    return {f"hf/{file}": (GOLDEN / name / file).read_bytes() for file in wanted}


def _header(content: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


@st.composite
def texts(draw: st.DrawFn, shop: Shop) -> Case:
    """JSON lines that are no texts, and prose that is none."""
    rows = [{"text": f"some words of a text, {i}", "meta": {"id": i}} for i in range(4)]
    content = draw(strange.lines(rows) | strange.files(rows) | st.binary(max_size=60))
    name = draw(st.sampled_from(["x", "x.json", "x.jsonl", "x.json.gz", "x.parquet"]))
    field = draw(st.sampled_from(["text", "text", "meta.id", ""]) | strange.texts)

    def call() -> None:
        config = dataclasses.replace(shop.texts, name=f"text:{name}", field=field)
        open_text(config).described()

    return Case(f"{name} field={field!a} {content[:400]!r}", {name: content}, call)


@st.composite
def caches(draw: st.DrawFn, shop: Shop) -> Case:
    """What is kept of a text is damaged, with or without its checksum."""
    paths = sorted(p for p in (shop.template / "data").rglob("*") if p.is_file())
    path = draw(st.sampled_from(paths))
    content = draw(strange.damaged(path.read_bytes()) | st.just(b""))
    files = {str(path.relative_to(shop.template)): content}

    def call() -> None:
        open_text(shop.texts).described()

    return Case(f"{path.relative_to(shop.template)} {content[:200]!r}", files, call)


@st.composite
def reports(draw: st.DrawFn, shop: Shop) -> Case:
    """Files of runs and of figures that are read to be shown."""
    which = draw(st.sampled_from(["metrics.jsonl"] * 3 + ["config.json"] * 2 + [
        "baselines.json", "found", "figures",
    ]))  # fmt: skip
    if which == "found":
        study = draw(st.sampled_from(sorted(STUDIES)))
        saved = json.loads((found.FOLDER / f"{study}.json").read_text())
        scale = draw(st.sampled_from(sorted(saved)))
        files = {f"../found/{study}.json": draw(strange.files({scale: saved[scale]}))}
        return command("study", "claims", "--page=page.md", files=files)
    if which == "figures":
        files = {"figures.json": draw(strange.files(shop.json("figures.json")))}
        two = draw(st.sampled_from([("page", "page.md"), ("compare", "figures.json")]))
        return command("benchmark", two[0], "figures.json", two[1], files=files)
    if which == "metrics.jsonl":
        content = draw(strange.lines(shop.rows(f"run/{which}")))
    else:
        content = draw(strange.files(shop.json(f"run/{which}")))
    more = draw(st.sampled_from([(), ("--markdown", "--out=-")]))
    return command("report", "run", *more, files={f"run/{which}": content})


@st.composite
def locks(draw: st.DrawFn, shop: Shop) -> Case:
    """A run.lock that no run has written."""
    owner = {**dataclasses.asdict(Owner.this()), "pid": 99999, "born": "99999", "since": 1.5}
    content = draw(strange.files(owner))

    def call() -> None:
        with run_lock(pathlib.Path("run"), lambda _: None, 0.01, 9.0):
            pass

    return Case(f"{content[:400]!r}", {"run/run.lock": content}, call)


@st.composite
def histories(draw: st.DrawFn, shop: Shop) -> Case:
    """A history.jsonl that tells of starts that never were."""
    change = {"train.batch": [8, 16], "optimizer.learning_rate": [0.1, 0.2]}
    rows = [Began(step, position=step, changed=change, skipped=1) for step in (0, 80, 120)]
    content = draw(strange.lines([dataclasses.asdict(row) for row in rows]))
    line = draw(st.sampled_from([("report", "run"), ("train", "--run=run", "--resume")]))
    return command(*line, files={"run/history.jsonl": content})


@st.composite
def tokenizers(draw: st.DrawFn, shop: Shop) -> Case:
    """A tokenizer.json of somebody else's."""
    content = draw(strange.files(_bpe()))

    def call() -> None:
        tokenizer = load_tokenizer("tokenizer.json")
        ids = tokenizer.encode("the cat sees é\n")
        tokenizer.decode(ids)
        tokenizer.encode_batch(["a", ""])

    return Case(f"{content[:600]!r}", {"tokenizer.json": content}, call)


@functools.cache
def _bpe() -> Any:
    return json.loads(train_bpe(["the cat sees the dog"], 262, "byte_level").to_text())
