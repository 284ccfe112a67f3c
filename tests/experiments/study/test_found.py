"""Figures come back from their file as they were, values or means alone."""

from __future__ import annotations

import json

import pytest

from experiments.study.claim import Summary
from experiments.study.found import ArmFound, Found, merge, path_of, read
from sharding.errors import UserError

OLD = ArmFound(
    figures={"steps": (300.0,)},
    summaries={"loss": Summary(1.5, 3, 0.01), "accuracy": Summary(0.5, 3)},
    command="python -m old",
    before=True,
    note="values of single seeds were not kept",
)
NEW = ArmFound(figures={"loss": (1.0, 2.0), "seconds": (3.0,)}, seeds=(0, 1), turns=("seconds",))


def test_values_and_means_come_back(tmp_path):
    merge("one", Found("cpu", {"old": OLD, "new": NEW}), tmp_path)
    (found,) = read("one", tmp_path).values()
    assert found.arms == {"old": OLD, "new": NEW}
    losses = found.of("loss")
    assert (losses["old"].mean, losses["old"].deviation, losses["old"].count) == (1.5, 0.01, 3)
    assert (losses["new"].values, losses["new"].seeds) == ((1.0, 2.0), (0, 1))
    assert found.of("seconds")["new"].kind == "turns"


def test_what_is_kept_again_takes_the_place_of_what_was(tmp_path):
    merge("one", Found("cpu", {"old": OLD, "new": NEW}), tmp_path)
    merge("one", Found("cpu", {"old": NEW}), tmp_path)
    merge("one", Found("paper", {"old": OLD}), tmp_path)
    found = read("one", tmp_path)
    assert found["cpu"].arms == {"old": NEW, "new": NEW}
    assert found["paper"].arms == {"old": OLD}


def test_a_damaged_file_is_refused_in_one_line(tmp_path):
    path_of("one", tmp_path).write_text(json.dumps({"cpu": {"arms": {"a": {}}}}))
    with pytest.raises(UserError, match="restore or remove it"):
        read("one", tmp_path)
