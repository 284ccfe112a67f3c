"""A model folder becomes a run that the other commands open, and a run becomes a folder."""

import json
import pathlib
import shutil

import ml_dtypes
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from gam_jax.convert.folder import open_arrays, read_tensors

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "hf_llama"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The golden Llama with a tokenizer of single letters."""
    path = tmp_path_factory.mktemp("hf") / "llama"
    shutil.copytree(GOLDEN, path)
    letters = "\nĊ abcdefghijklmnopqrstuvwxyz.Ġ"
    vocab = {letter: i for i, letter in enumerate(dict.fromkeys(letters))}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def test_a_folder_becomes_a_run_that_is_scored_sampled_and_written_back(
    folder, workshop, command, tmp_path
):
    run, back = tmp_path / "run", tmp_path / "back"
    made = command("convert", f"--from-hf={folder}", f"--run={run}")
    assert made.code == 0, made.err
    config = json.loads((run / "config.json").read_text())
    assert config["model"]["block"]["mixer"]["layer"] == "Attention"
    sampled = command("sample", f"--run={run}", "--prompt=the cat", "--tokens=8", "--json")
    assert sampled.code == 0, sampled.err
    assert json.loads(sampled.out)["text"].startswith("the cat")
    corpus = f"--data=text:{workshop.path / 'corpus.txt'}"
    scored = command("evaluate", f"--run={run}", corpus, "--tokens=256", "--json")
    assert scored.code == 0, scored.err
    assert np.isfinite(json.loads(scored.out)["loss"])
    written = command("convert", f"--run={run}", f"--to-hf={back}")
    assert written.code == 0, written.err
    assert (back / "tokenizer.json").is_file()
    want, found = read_tensors(folder), read_tensors(back)
    for name, array in want.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_a_run_stores_bfloat16_where_it_is_asked_to_and_writes_it_so(folder, command, tmp_path):
    run = tmp_path / "run"
    made = command("convert", f"--from-hf={folder}", f"--run={run}", "--param_dtype=bfloat16")
    assert made.code == 0, made.err
    assert json.loads((run / "config.json").read_text())["model"]["param_dtype"] == "bfloat16"
    for name, words in {"wide": (), "stored": ("--as_stored",)}.items():
        written = command("convert", f"--run={run}", f"--to-hf={tmp_path / name}", *words)
        assert written.code == 0, written.err
    wide, stored = (open_arrays(tmp_path / name) for name in ("wide", "stored"))
    assert {array.dtype for array in wide.values()} == {"F32"}
    assert {name for name, array in stored.items() if array.dtype == "F32"} == {"model.norm.weight"}
    for name, array in read_tensors(folder).items():
        rounded = array if stored[name].dtype == "F32" else array.astype(ml_dtypes.bfloat16)
        for found in (wide, stored):
            np.testing.assert_array_equal(found[name].array, rounded.astype(np.float32))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--run=x"], "one of --from-hf, --to-hf"),
        (["--run=/nowhere/x", "--from-hf=/nowhere"], "cannot read the model folder"),
        (["--run=/nowhere/x", "--to-hf=/nowhere"], "holds no run"),
        (["--run=x", "--to-hf=y", "--from-gam=z"], "one of --from-hf, --to-hf"),
        (["--check=x", "--run=y", "--to-hf=z"], "--check or --selftest alone"),
        (["--check=x", "--draws=3"], "--draws goes with --selftest: leave it out"),
        (["--run=x", "--from-gam=y", "--param_dtype=bfloat16"], "goes with --from_hf"),
        (["--run=x", "--to-gam=y", "--as_stored"], "--as_stored goes with --to_hf"),
    ],
)
def test_bad_input_is_one_line(args, message, command):
    result = command("convert", *args)
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1


def test_a_folder_is_told_about_before_anything_is_read(folder, command, tmp_path):
    words = ("--emulate=8", "--mesh=data=4,tensor=2", "--preset=fully_sharded+sequence+tensor")
    found = command("convert", f"--check={folder}", *words, "--json")
    assert found.code == 0, found.err
    told = json.loads(found.out)
    numbers = sum(array.size for array in read_tensors(folder).values())
    assert (told["architecture"], told["parameters"]) == ("LlamaForCausalLM", numbers)
    assert told["bytes"]["float32"]["written"] < 4 * numbers / 4
    assert told["bytes"]["bfloat16"]["written"] * 2 <= told["bytes"]["float32"]["written"] * 1.1
    positions = 4 * (2 + 1)  # of two layers and of the model
    wide, narrow = (told["cache"][dtype]["64"] - positions for dtype in ("float32", "bfloat16"))
    assert wide == 2 * narrow
    only = tmp_path / "config"
    only.mkdir()
    shutil.copy(folder / "config.json", only)
    assert "config.json alone" in command("convert", f"--check={only}").out
    config = json.loads((folder / "config.json").read_text())
    (only / "config.json").write_text(json.dumps({**config, "sliding_window": 4}))
    refused = command("convert", f"--check={only}")
    assert refused.code == 2
    assert "sliding_window=4 of model_type llama is a field that is not known" in refused.err
