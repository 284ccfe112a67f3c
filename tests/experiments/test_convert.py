"""A model folder becomes a run that the other commands open, and a run becomes a folder."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from gam_jax.convert.folder import read_tensors

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


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--run=x"], "either --from-hf=FOLDER or --to-hf=FOLDER"),
        (["--run=/nowhere/x", "--from-hf=/nowhere"], "cannot read the model folder"),
        (["--run=/nowhere/x", "--to-hf=/nowhere"], "holds no run"),
    ],
)
def test_bad_input_is_one_line(args, message, command):
    result = command("convert", *args)
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1
