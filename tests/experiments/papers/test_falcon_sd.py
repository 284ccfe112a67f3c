"""Rules that keep the law, rules that do not, and the published count of tokens a pass."""

from __future__ import annotations

import pytest

from experiments.papers.falcon_sd import EXACT, RULES, WRONG, error, pair, same_draw
from experiments.study import Setting


@pytest.mark.parametrize("name", RULES)
def test_the_two_wrong_rules_fail_and_the_others_hold_by_enumeration(name):
    found = error(name, Setting(), 0)["error"]
    assert found < EXACT if RULES[name][2] else found > WRONG
    assert [name for name, (_, _, right) in RULES.items() if not right] == [
        "likeliest_as_drawn",
        "siblings_kept",
    ]


def test_tokens_a_pass_of_a_markov_pair_are_those_of_the_formula():
    found = pair(Setting(), 0)
    assert found["accepted"] == pytest.approx(0.791, abs=5e-4)
    assert found["formula"] == pytest.approx(3.301, abs=0.002)
    assert found["tokens"] == pytest.approx(3.303, abs=0.002)
    assert found["apart"] < 0.01
    assert same_draw(Setting(), 0)["accepted"] < found["accepted"]
