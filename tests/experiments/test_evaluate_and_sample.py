"""A trained run is scored as it was while training, and writes the text that a seed decides."""

from __future__ import annotations

import json
import re

import jax
import pytest

from gam_jax.training.folder import RunFolder, load_params
from sharding.checkpoint import Checkpoints
from sharding.layout import Layout
from sharding.mesh import make_mesh


def printed(result):
    assert result.code == 0, result.err
    return json.loads(result.out)


def test_evaluation_gives_the_last_validation_again(trained, workshop):
    found = printed(workshop.run("evaluate", f"--run={trained.path}", "--json"))
    assert found["step"] == trained.summary["step"]
    assert {name: found[name] for name in trained.summary["validation"]} == trained.summary[
        "validation"
    ]


def test_a_text_that_it_was_not_trained_on_is_scored_worse(trained, workshop, command):
    other = workshop.path / "other.txt"
    other.write_text("".join(f"{i * i} apples, please!\n" for i in range(100)))
    data = f"--data=text:{other}"
    found = printed(command("evaluate", f"--run={trained.path}", data, "--tokens=50", "--json"))
    assert found["tokens"] == 50
    assert found["loss"] > 2 * trained.summary["validation"]["loss"]


def test_prompts_are_scored_on_their_completions(trained, workshop, command):
    records = [{"prompt": f"{i} apples", "completion": f" and {i}"} for i in range(30)]
    other = workshop.path / "pairs.jsonl"
    other.write_text("".join(json.dumps(record) + "\n" for record in records))
    data = (f"--run={trained.path}", f"--data=text:{other}")
    found = printed(command("evaluate", *data, "--format=prompt", "--json"))
    assert "bits_per_byte" not in found
    held = found["tokens"] / (len(" and 11") + 1)
    assert 2 <= held <= 4
    for words, told in [
        (data, "set data.format=prompt"),
        ((*data, "--format=chat"), "has no chat template"),
        ((*data[:1], "--format=prompt"), "--format=prompt is of --data"),
    ]:
        result = command("evaluate", *words)
        assert (result.code, result.out) == (2, "")
        assert told in result.err


def test_longer_and_overlapping_windows_give_every_token_more_to_go_by(trained, command):
    def score(*windows):
        return printed(command("evaluate", f"--run={trained.path}", "--json", *windows))

    own, longer, overlapping = score(), score("--window=64"), score("--stride=8")
    assert [found["window"] for found in (own, longer, overlapping)] == [32, 64, 32]
    assert own["tokens"] == longer["tokens"] == overlapping["tokens"]
    assert max(longer["loss"], overlapping["loss"]) < own["loss"]


@pytest.fixture
def write(trained, command):
    """Text of a sample with settings."""

    def write(*args):
        args = ("--prompt=the c", "--tokens=60", *args)
        return command("sample", f"--run={trained.path}", *args)

    return write


def test_the_text_streams_to_stdout_and_the_facts_to_stderr(write):
    result = write()
    assert result.code == 0
    assert result.out.startswith("the c")
    assert len(result.out) == len("the c") + 60 + len("\n")
    where, facts = result.err.splitlines()
    assert where.startswith("on 8 emulated devices, cpu, ")
    assert re.fullmatch(r"[\d,]+ tokens/s, carry of [\d,]+ bytes", facts)


def test_the_seed_decides_the_text(write):
    one, same, other = (write(f"--seed={seed}").out for seed in (1, 1, 2))
    assert one == same != other


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data=1", "data=2,seq=2,tensor=2", "tensor=8"])
def test_scores_and_text_are_the_same_on_every_mesh(mesh, trained, command, write):
    found = printed(command("evaluate", f"--run={trained.path}", "--json", f"--mesh={mesh}"))
    assert found["loss"] == pytest.approx(trained.summary["validation"]["loss"], rel=1e-5)
    assert found["tokens"] == trained.summary["validation"]["tokens"]
    assert write("--seed=1", f"--mesh={mesh}").out == write("--seed=1", "--mesh=seq=1").out


def test_greedy_text_is_made_of_the_words_of_the_corpus(write, workshop):
    facts = printed(write("--temperature=0", "--json"))
    words = set(re.findall(r"\w+", (workshop.path / "corpus.txt").read_text()))
    assert set(re.findall(r"\w+", facts["text"])[:-1]) <= words
    assert facts["carry_bytes"] == 4 + 2 * 7 * 32 * 4  # position; layers, inputs, width, float32


@pytest.fixture(scope="module")
def unsound(trained, tmp_path_factory):
    """The run with a checkpoint whose weights are finite, and its logits are not."""
    own, folder = (RunFolder(path) for path in (trained.path, tmp_path_factory.mktemp("unsound")))
    experiment, layout = own.experiment(), Layout(make_mesh())
    folder.start(experiment, own.kept(experiment.data))
    step, params = load_params(own, experiment, layout)
    with Checkpoints(own.checkpoints, read_only=True) as checkpoints:
        extra = checkpoints.extra(step)
    with Checkpoints(folder.checkpoints) as checkpoints:
        checkpoints.save(7, {"params": jax.tree.map(lambda x: 1e25 * x, params)}, extra)
    return folder.path


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("evaluate", (), "the loss of validation batch 0, row 0, position 0 is not a number"),
        ("sample", ("--prompt=the c",), "the logits for position 5 of row 0 are no numbers"),
        ("sample", ("--json", "--temperature=0"), "of row 0 are no numbers"),
    ],
)
def test_numbers_that_are_none_end_in_one_line_with_place_and_checkpoint(
    name, args, words, unsound, command
):
    result = command(name, f"--run={unsound}", *args)
    assert result.code == 2
    *_, last = result.err.splitlines()
    assert last.startswith(f"error: {unsound} at checkpoint 7: ")
    assert words in last
    assert result.out == ("the c\n" if "--prompt=the c" in args else "")
