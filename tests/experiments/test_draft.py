"""`gam draft`: what is trained is served, and what cannot be is refused in one line."""

import json

import pytest

from experiments.draft import of_drafter, of_units
from experiments.serve.models import open_drafter, open_run
from gam_jax.training.folder import RunFolder

REFUSED = [
    (("units", "--run=/nowhere"), "/nowhere"),
    (("units", "--run={run}", "--ahead=0"), "ahead"),
    (("units", "--run={run}", "--glance=0.1"), "--glance is for semi: units does not read it"),
    (("semi", "--run={run}", "--sure=0.1"), "--sure is for units: semi does not read it"),
    (("semi", "--run={run}", "--checkpoint=7"), "7"),
    (("semi", "--run={run}", "--out={run}"), "{run}"),
    ((), "say one of units, semi"),
]


@pytest.mark.parametrize(("args", "words"), REFUSED)
def test_what_cannot_be_trained_is_refused(args, words, command, trained):
    result = command("draft", *(arg.format(run=trained.path) for arg in args))
    assert result.code == 2
    assert words.format(run=trained.path) in result.err
    assert result.err.count("\n") == 1


def test_tokens_a_pass_are_told_beside_the_ideal():
    """Of placeholders as the last validation counted them, of a drafter as its last lines say."""
    rows = [
        {"step": 2, "split": "validation", "agreed": 0.2, "tokens_a_pass": 1.1},
        {"step": 4, "split": "validation", "agreed": 0.5, "tokens_a_pass": 1.75},
    ]
    line = of_units(rows, guesses=3)
    assert "1.75 tokens a pass, 0.500 of the guesses stood: 1.88 tokens a pass are the" in line
    assert "ideal of 3 guesses" in line
    train = [{"step": step, "split": "train", "agreed": 0.5} for step in range(3)]
    assert "told 0.500" in of_drafter(train)
    assert "2.00 tokens a pass are the ideal of 15 guesses" in of_drafter(train)
    unsure = {"step": 6, "split": "validation", "agreed": float("nan"), "tokens_a_pass": 1.0}
    assert "1.00 tokens a pass: no placeholder was sure enough" in of_units([*rows, unsure], 3)
    assert of_units([], 3) == of_units(train, 3) == of_drafter(rows) == ""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["units", "semi"])
def test_what_was_stopped_goes_on_and_is_served(kind, workshop, trained, tmp_path):
    out = tmp_path / kind
    args = f"--run={trained.path}", f"--out={out}", "--steps=4", "--ahead=2", "--json"
    first = workshop.run("draft", kind, *args)
    assert first.code == 0, first.err
    assert json.loads(first.out)["step"] == 4
    again = workshop.run("draft", kind, *args[:-1], "--resume")
    assert again.code == 0, again.err
    assert "tokens a pass" in again.out
    own, base = (
        open_run(str(out), "latest", "") if kind == "units" else None,
        open_run(str(trained.path), "latest", ""),
    )
    if own is not None:
        assert own.tokenizer.fingerprint == base.tokenizer.fingerprint
        assert own.model.unit == 2
    else:
        assert open_drafter(str(out), [base]).model.target == base.model
        assert RunFolder(out).experiment().optimizer.only == "drafter/*"
