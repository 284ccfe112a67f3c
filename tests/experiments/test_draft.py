"""`gam draft`: what is trained is served, and what cannot be is refused in one line."""

import json

import pytest

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


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["units", "semi"])
def test_what_was_stopped_goes_on_and_is_served(kind, workshop, trained, tmp_path):
    out = tmp_path / kind
    args = f"--run={trained.path}", f"--out={out}", "--steps=4", "--ahead=2", "--json"
    first = workshop.run("draft", kind, *args)
    assert first.code == 0, first.err
    assert json.loads(first.out)["step"] == 4
    again = workshop.run("draft", kind, *args, "--resume")
    assert again.code == 0, again.err
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
