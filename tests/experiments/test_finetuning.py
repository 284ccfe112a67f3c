"""A model folder is trained on conversations by one command, and becomes a folder again."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import sys

import numpy as np
import pytest

from gam_jax.convert.folder import read_config, read_tensors
from gam_jax.training.folder import RunFolder, load_params
from sharding.layout import Layout
from sharding.mesh import make_mesh
from tests.model_folder import MARKS, conversations, model_folder
from tests.workshop import metrics_of

FILLERS = tuple(f"<|{i}|>" for i in range(15))
"""With them the tokenizer has 46 ids of the model's 48: of three new ones, the last has no row."""
NEW = (*MARKS, "<|more|>")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of a model without words for conversations, and conversations."""
    path = tmp_path_factory.mktemp("finetuning")
    model_folder(path / "llama", special=FILLERS)
    conversations(path / "my.jsonl")
    return path


def settings(place, **more):
    fields = {
        "data.name": f"text:{place / 'my.jsonl'}",
        "data.format": "chat",
        "data.dir": place / "data",
        "data.window": 48,
        "train.batch": 4,
        "train.steps": 4,
        "train.log_every": 1,
        **more,
    }
    return [f"--config.{name}={value}" for name, value in fields.items()]


@pytest.fixture
def tuned(place, command):
    """The run: two steps on four devices, and two more when the folder is gone."""
    run = place / "run"
    if not run.exists():
        where = ("--mesh=data=4", f"--run={run}", "--json")
        sharded = "--config.parallel.preset=fully_sharded"
        shutil.copytree(place / "llama", place / "gone")
        first = command(
            "train",
            f"--init=hf:{place / 'gone'}",
            f"--add_tokens={','.join(NEW)}",
            *settings(place, **{"train.stop_at": 2, "model.remat": True, "checkpoint.keep": 9}),
            sharded,
            *where,
        )
        assert first.code == 0, first.err
        assert "taken: 10 (" in first.err
        assert "resized: 2 (embedding, head)" in first.err
        shutil.rmtree(place / "gone")
        second = command("train", "--resume", "--config.train.stop_at=0", sharded, *where)
        assert second.code == 0, second.err
        assert json.loads(second.out)["step"] == 4
    return run


def params(run, step):
    folder = RunFolder(run)
    return load_params(folder, folder.experiment(), Layout(make_mesh()), step)[1]


def test_model_vocabulary_and_rows_are_what_the_folder_says(tuned, place):
    config = json.loads((tuned / "config.json").read_text())
    model, data = config["model"], config["data"]
    assert (model["vocab"], model["width"], model["remat"]) == (49, 24, True)
    assert (data["documents"], data["window"]) == ("packed", 48)
    old = read_tensors(place / "llama")["model.embed_tokens.weight"]
    new = np.asarray(params(tuned, "0")["embedding"])
    np.testing.assert_array_equal(new[:46], old[:46])
    np.testing.assert_allclose(new[46:], np.tile(old[:46].mean(axis=0), (3, 1)), atol=1e-6)
    rows = [row for row in metrics_of(tuned) if row["split"] == "train"]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(math.isfinite(row["loss"]) for row in rows)


def test_it_comes_back_as_a_folder_with_what_its_makers_gave(tuned, place, command):
    back = place / "back"
    written = command("convert", f"--run={tuned}", f"--to-hf={back}")
    assert written.code == 0, written.err
    original, config = read_config(place / "llama"), read_config(back)
    assert config["vocab_size"] == 49
    assert config["eos_token_id"] == original["eos_token_id"]
    same = ("chat_template.jinja", "generation_config.json", "tokenizer_config.json", "LICENSE")
    for name in same:
        assert (back / name).read_bytes() == (place / "llama" / name).read_bytes()
    assert (back / "tokenizer.json").read_bytes() == (tuned / "source/tokenizer.json").read_bytes()
    added = json.loads((back / "tokenizer.json").read_text())["added_tokens"]
    assert [(one["id"], one["content"]) for one in added][-3:] == list(
        zip(range(46, 49), NEW, strict=True)
    )
    again = command("convert", f"--from-hf={back}", f"--run={place / 'again'}")
    assert again.code == 0, again.err
    trained, read = params(tuned, "4"), params(place / "again", "0")
    np.testing.assert_array_equal(read["head"], trained["head"])
    assert (place / "again/source/LICENSE").read_text() == "to be kept"
    scored = command("evaluate", f"--run={tuned}", "--mesh=data=1", "--json")
    assert json.loads(scored.out)["loss"] > 0, scored.err
    sampled = command("sample", f"--run={tuned}", "--prompt=ab", "--tokens=4", "--mesh=data=1")
    assert sampled.code == 0, sampled.err


def test_another_tokenizer_or_template_takes_the_place_of_the_kept_one(tuned, place, command):
    run = shutil.copytree(tuned, place / "other")
    kept = json.loads((run / "chat_template.json").read_text())
    (run / "chat_template.json").write_text(json.dumps(kept | {"template": "another"}))
    shutil.copy(place / "llama/tokenizer.json", run / "source")
    written = command("convert", f"--run={run}", f"--to-hf={place / 'others'}")
    assert written.code == 0, written.err
    found = {path.name for path in (place / "others").iterdir()}
    assert found == {
        *("LICENSE", "chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json")
    }
    assert (place / "others/chat_template.jinja").read_text() == "another"
    assert "<|more|>" in (place / "others/tokenizer.json").read_text()


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--init=hf:"], "name the folder, as hf:FOLDER"),
        (["--init=hf:org/name"], "nothing is downloaded: name a folder of this machine"),
        (["--init=hf:gs://bucket/x"], "is no path of a file system"),
        (["--init=hf:LLAMA", "--init_include=emb*"], "--init_include is for --init=RUN"),
        (["--init=hf:LLAMA", "--init_vocab=resize"], "--init_vocab is for --init=RUN"),
        (["--init=hf:LLAMA", "--config=gam_small"], "leave --config out"),
        (["--init=hf:LLAMA", "--config.model.width=32"], "model.width=32 but the model of"),
        (["--init=hf:LLAMA", "--config.model.vocab=64"], "add tokens by --add_tokens"),
        (["--init=hf:LLAMA", "--config.model.block.mixer.window=8"], "model.block.mixer.window=8"),
        (["--init=hf:LLAMA", "--config.model.widht=24"], "did you mean 'width'"),
        (["--init=hf:LLAMA", "--add_tokens=<|3|>"], "'<|3|>' is in"),
        (["--add_tokens=<|x|>"], "--add_tokens needs --init=hf:FOLDER"),
        (["--init=hf:LLAMA", "--config.data.window=65"], "65 tokens do not fit"),
        (["--init=hf:LLAMA", "--config.data.tokenizer=bytes"], "model.vocab=48 but the tokenizer"),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(args, told, place, command):
    given = [arg.replace("LLAMA", str(place / "llama")) for arg in args]
    corpus = place / "plain.txt"
    corpus.write_text("the cat sat\n" * 40)
    text = (f"--config.data.name=text:{corpus}", f"--config.data.dir={place / 'data'}")
    result = command("train", f"--run={place / 'new'}", *given, *text)
    assert (result.code, result.err.strip().count("\n") <= 2) == (2, True), result.err
    assert told in result.err
    assert not (place / "new" / "config.json").exists()


def test_a_run_that_lost_its_first_checkpoint_does_not_begin_with_other_numbers(
    tuned, place, command
):
    run = shutil.copytree(tuned, place / "lost")
    shutil.rmtree(run / "checkpoints")
    result = command("train", "--resume", f"--run={run}", "--mesh=data=1")
    assert result.code == 2
    assert "add the --init that it began with" in result.err


def test_documents_are_packed_where_streams_differ_in_prefixes_alone(place, command):
    shown = command(
        "train",
        "--show_config",
        f"--init=hf:{model_folder(place / 'parscale', 'hf_parscale', special=())}",
        *settings(place),
    )
    assert shown.code == 0, shown.err
    assert "data.documents=packed " in shown.out
    assert "model.streams=3 " in shown.out


@pytest.mark.slow
def test_processes_read_the_folder_each_and_compare_what_they_read(tuned, place, workshop):
    def job(name, folder):
        own = settings(place, **{"train.stop_at": 2, "parallel.preset": "fully_sharded"})
        words = [f"--init=hf:{folder}", f"--add_tokens={','.join(NEW)}", f"--run={place / name}"]
        train = shlex.join([sys.executable, "-m", "experiments.train", *words, *own])
        train = train.replace("RANK", "$JAX_PROCESS_ID")
        launch = ("--processes=2", "--devices_per_process=2", "--")
        return workshop.run("launch", *launch, "sh", "-c", f"exec {train}")

    def losses(run):
        rows = [row for row in metrics_of(run) if row["split"] == "train"]
        return [row["loss"] for row in rows][:2]

    for rank in range(2):
        shutil.copytree(place / "llama", place / f"own-{rank}")
    result = job("two", place / "llama")
    assert result.code == 0, result.err
    np.testing.assert_allclose(losses(place / "two"), losses(tuned), rtol=1e-5)
    file = place / "own-1/model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + np.float32(3).tobytes())
    result = job("unlike", place / "own-RANK")
    assert result.code == 2
    assert "of process 1 is not that of process 0" in result.err
