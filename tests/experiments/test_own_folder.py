"""A run of any architecture goes out as a folder of gam_jax, and becomes a run again."""

import json

import pytest

from gam_jax.convert import load_model, save_model
from gam_jax.convert.source import TOKENIZER
from gam_jax.layers import GAM, Block
from gam_jax.models import ImageClassifier
from gam_jax.training.folder import RunFolder
from tests.examples import random_like


@pytest.fixture
def written(trained, command, tmp_path):
    folder = tmp_path / "written"
    result = command("convert", f"--run={trained.path}", f"--to_gam={folder}")
    assert result.code == 0, result.err
    return folder


def test_the_folder_holds_the_model_and_its_tokenizer_and_nothing_of_the_run(written, trained):
    model, _ = load_model(written)
    assert model == RunFolder(trained.path).experiment().model
    assert {path.name for path in written.iterdir()} == {
        "config.json",
        "model.safetensors",
        TOKENIZER,
    }
    config = json.loads((written / "config.json").read_text())
    assert config.keys() == {"model_type", "format", "gam_jax", "model"}


def test_a_run_of_it_scores_and_writes_as_the_first_did(written, trained, command, tmp_path):
    made = command("convert", f"--from_gam={written}", f"--run={tmp_path / 'run'}")
    assert made.code == 0, made.err
    args = ("--prompt=the ", "--tokens=8", "--temperature=0", "--json")
    found, wanted = (
        json.loads(command("sample", f"--run={run}", *args).out)["text"]
        for run in (tmp_path / "run", trained.path)
    )
    assert found == wanted


@pytest.mark.parametrize("what", ["no model", "no tokenizer", "no language model", "small"])
def test_what_makes_no_run_is_refused_in_one_line(what, written, trained, command, tmp_path):
    folder, words = tmp_path / "model", "open it in Python"
    if what == "no model":
        folder, words = trained.path, "is not 'gam_jax'"
    elif what == "no language model":
        model = ImageClassifier(Block(GAM(slots=8)), 8, 1, side=4, classes=3)
        save_model(model, random_like(model.table()), folder)
    else:
        save_model(*load_model(written), folder)
        if what == "small":
            config = json.loads((folder / "config.json").read_text())
            config["model"]["vocab"] = 5
            (folder / "config.json").write_text(json.dumps(config))
            words = "has the shape"
    result = command("convert", f"--from_gam={folder}", f"--run={tmp_path / 'run'}")
    assert result.code == 2
    assert words in result.err
    assert result.err.count("\n") == 1
    assert not (tmp_path / "run").exists()
