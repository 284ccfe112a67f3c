"""Two stages, by command: a run of one stream goes on with two, its backbone frozen."""

from __future__ import annotations

import json

import pytest

STREAMS = ("--config.model.streams=2", "--config.optimizer.only=starts/*,aggregator/*")


def printed(result):
    assert result.code == 0, result.err
    return json.loads(result.out)


@pytest.fixture
def second(trained, workshop, command):
    """A second stage of a few steps, on devices for each stream."""
    path = workshop.path / "second"
    if not path.exists():
        steps = ("--config.train.steps=20", "--config.train.validate_every=20")
        result = command(
            "train",
            f"--run={path}",
            f"--init={trained.path}",
            "--mesh=stream=2",
            "--json",
            *workshop.settings,
            *STREAMS,
            *steps,
        )
        assert result.code == 0, result.err
    return path


@pytest.mark.slow
def test_a_checkpoint_of_one_stream_opens_as_two_and_what_they_add_is_new(second):
    found = json.loads((second / "init.json").read_text())
    assert found["missing"]
    assert all(name.split("/")[0] in ("starts", "aggregator") for name in found["missing"])
    assert not found["unexpected"] + found["other_shape"]


def test_its_first_stream_is_the_frozen_backbone_to_the_last_bit(second, trained, command):
    of_one = printed(command("evaluate", f"--run={second}", "--streams=1", "--json"))
    backbone = printed(command("evaluate", f"--run={trained.path}", "--json"))
    both = printed(command("evaluate", f"--run={second}", "--json"))
    assert of_one["loss"] == backbone["loss"] != both["loss"]
    sample = ("sample", "--prompt=the c", "--tokens=30", "--json")
    text = printed(command(*sample, f"--run={second}", "--streams=1"))["text"]
    assert text == printed(command(*sample, f"--run={trained.path}"))["text"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--streams=3",), "--streams=3 of a run that has 2: train it on"),
        (("--streams=1", "--mesh=stream=2"), "mesh axis stream=2 does not divide"),
    ],
)
def test_streams_that_are_not_there_are_refused(args, message, second, command):
    result = command("evaluate", f"--run={second}", *args)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert message in result.err
