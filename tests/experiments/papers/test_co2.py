"""The study of workers: its closed forms hold, and its arms are what their titles say."""

from __future__ import annotations

from experiments.papers.co2 import FAR, MESSAGE, STUDY, TRAINED
from experiments.study import Setting
from experiments.study.claim import HOLDS, Values
from gam_jax.planning.overlap import round_seconds, steps_to_hide


def test_every_claim_of_closed_forms_holds():
    found = {name: arm.numbers(Setting(), 0) for name, arm in STUDY.arms.items() if arm.exact}
    exact = [claim for claim in STUDY.claims if {*claim.arms} <= {*found}]
    assert len(exact) == 5
    for claim in exact:
        own = {name: Values((found[name][claim.measure],), "exact") for name in claim.arms}
        assert claim.judge(own).word == HOLDS, claim.text


def test_fewer_steps_than_hide_the_sum_leave_some_of_it_to_see():
    enough = steps_to_hide(1.0, MESSAGE)
    assert round_seconds(enough, 1.0, MESSAGE, 1) == enough
    assert round_seconds(enough - 1, 1.0, MESSAGE, 1) == MESSAGE
    assert round_seconds(enough, 1.0, MESSAGE, 0) == enough + MESSAGE


def test_the_arm_near_the_bound_is_told_to_diverge_and_a_penalty_mends_it():
    assert FAR.bound() < 0.6
    assert TRAINED["far_penalty"][1].bound() > 0.99
