"""Closed forms of papers about machines come out in the digits that the papers print."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from experiments.papers import STUDIES
from experiments.papers.intar import FEW, in_chunks, scores
from experiments.study import Setting
from experiments.study.claim import HOLDS, NOT_RUN, Values
from experiments.study.declare import SHORT

PAGE = "machines.md"
MACHINES = [study for study in STUDIES.values() if study.page == PAGE]
SERVED = ("samba-coe", "served")
"""An arm that trains three runs and serves them; its short form is serve/test_loaded.py."""


@pytest.mark.parametrize("study", MACHINES, ids=lambda study: study.name)
def test_every_claim_on_what_is_exact_holds(study):
    """Measures that are timed, and claims on drawn numbers, are judged and never tested."""
    judge(study, [name for name in study.arms if (study.name, name) != SERVED])


@pytest.mark.slow
def test_a_server_with_room_for_fewer_hits_as_the_simulator_says():
    study, arm = SERVED
    judge(STUDIES[study], [arm])


def judge(study, arms):
    found: dict[str, dict[str, Values]] = {}
    for name in arms:
        arm = study.arms[name]
        if arm.exact and arm.numbers is not None:
            for measure, value in arm.numbers(Setting(SHORT), 0).items():
                assert measure in study.measures
                found.setdefault(measure, {})[name] = Values((float(value),), "exact")
    judged = [(claim.text, claim.judge(found.get(claim.measure, {}))) for claim in study.claims]
    assert judged
    for text, verdict in judged:
        assert verdict.word in (HOLDS, NOT_RUN), (text, verdict.detail)


def test_each_row_is_told_on_the_page_with_its_command():
    with open(f"docs/{PAGE}", encoding="utf-8") as file:
        page = file.read()
    for study in MACHINES:
        assert f"gam study run {study.name}`" in page, study.name


def test_a_study_that_trains_nothing_writes_into_a_new_folder(command, tmp_path):
    result = command("study.__main__", "run", "c4-comm", f"--out={tmp_path / 'new'}")
    assert result.code == 0, result.err
    assert {path.suffix for path in (tmp_path / "new").iterdir()} == {".json", ".md", ".png"}
    assert "-91.9" in result.out


def test_attention_in_chunks_of_queries_is_that_of_the_whole():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 2 * FEW, 8))
    np.testing.assert_allclose(in_chunks(q, k, v), scores(q, k, v), rtol=1e-5, atol=1e-6)
