"""The study of ladders: its closed forms hold, and its arms are what their titles say."""

from __future__ import annotations

from experiments.papers.ladder_residual import DEPTH, HALF, STUDY, TUNING
from experiments.study import Setting
from experiments.study.claim import HOLDS, REVERSED, Values

BLOG = "With 8 rows it is 1.256 times as fast"
"""A figure that those beside it do not give: 595.65 / 475.04 is 1.254."""


def test_every_claim_of_closed_forms_holds_but_for_a_misprint():
    found = {name: arm.numbers(Setting(), 0) for name, arm in STUDY.arms.items() if arm.exact}
    exact = [claim for claim in STUDY.claims if {*claim.arms} <= {*found}]
    assert len(exact) == 11
    for claim in exact:
        own = {name: Values((found[name][claim.measure],), "exact") for name in claim.arms}
        want = REVERSED if claim.text == BLOG else HOLDS
        assert claim.judge(own).word == want, claim.text


def test_arms_differ_in_the_ladder_and_begin_with_the_plain_model():
    runs = {name: arm.experiment(Setting()) for name, arm in STUDY.arms.items() if arm.experiment}
    ladders = {name: run.model.ladder for name, run in runs.items()}
    assert {name: n for name, n in ladders.items() if n == HALF} == dict.fromkeys(
        ("half", "half_converted", "half_tuned"), HALF
    )
    assert [ladders[name] for name in ("ladder", "all_converted", "all_tuned")] == [DEPTH] * 3
    begun = {name for name, arm in STUDY.arms.items() if arm.begins}
    assert begun == {name for name in runs if name.endswith(("tuned", "converted"))}
    assert runs["half_tuned"].train.steps * TUNING == runs["plain"].train.steps
    assert runs["half_converted"].optimizer.learning_rate == 0
