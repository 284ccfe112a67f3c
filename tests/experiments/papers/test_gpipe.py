"""The study of pipeline schedules: every published figure comes out, in a folder that is new."""

from __future__ import annotations

import json

from experiments.papers.gpipe import STUDY
from experiments.study import Setting
from experiments.study.claim import HOLDS, Values


def test_every_claim_holds():
    found = {name: arm.numbers(Setting(), 0) for name, arm in STUDY.arms.items()}
    for claim in STUDY.claims:
        own = {
            name: Values((values[claim.measure],), "exact")
            for name, values in found.items()
            if claim.measure in values
        }
        assert claim.judge(own).word == HOLDS, claim.text


def test_a_study_of_numbers_alone_writes_into_a_new_folder(command, tmp_path):
    out = tmp_path / "new"
    result = command("study.__main__", "run", "gpipe", "--arms=1f1b", f"--out={out}", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out) == json.loads((out / "gpipe.json").read_text())
