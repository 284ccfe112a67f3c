"""The study of ZeRO in levels: bytes as the papers count them, and what its closed forms give."""

from __future__ import annotations

import pathlib

import pytest

from experiments.papers.frontier_lowband import (
    DIE,
    NODES,
    OUTER,
    PARTS,
    STUDY,
    experiment,
    messages,
)
from experiments.study import Setting
from experiments.study.claim import HOLDS, REVERSED, Values
from experiments.study.trial import run_trial
from gam_jax.training.progress import Progress
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import make_mesh

MESH, DEVICES = {"data_0": 6, "data_1": 4, "data_2": 2}, 48
COUNT = 256 * DEVICES * 100
BLOCK = 4 / 256
"""Bytes of a scale for each number."""


def sent(scheme, parts=PARTS):
    """Bytes of a device over each group of axes."""
    found = {}
    for one in messages(scheme, COUNT, MESH, parts):
        found[one.axes] = found.get(one.axes, 0) + one.sent
    return found


def test_bytes_are_those_of_the_papers():
    """2 bytes a number sent as it is, 1 or 1/2 in few bits, and the scales."""
    every = sum(sent("zero3").values())
    assert every == pytest.approx(3 * PARTS * 2 * COUNT * (1 - 1 / DEVICES))
    second, byte = sent("zeropp"), 1 + BLOCK
    half = 0.5 + BLOCK
    across = byte + PARTS * half
    assert second[OUTER] == pytest.approx(COUNT / 8 * across * (1 - 1 / 6))
    three, new = sent("levels"), 2 * COUNT / 2 * (1 - 2 / DEVICES)
    assert three[DIE] == pytest.approx(PARTS * COUNT * (2 * byte + half) / 2)
    level = COUNT * half * (PARTS / 2 * (1 - 1 / 4) + (1 - 1 / 6) / 8)
    assert three[NODES[1:]] + three[OUTER] == pytest.approx(level + new)


def test_closed_forms_hold_but_where_the_docs_say_so():
    found = {name: arm.numbers(Setting(), 0) for name, arm in STUDY.arms.items() if arm.exact}
    words = {}
    for claim in STUDY.claims:
        if {*claim.arms} <= {*found}:
            own = {name: Values((found[name][claim.measure],), "exact") for name in claim.arms}
            words[claim.arms[0]] = claim.judge(own).word
    assert len(words) == 8
    assert {name for name, word in words.items() if word != HOLDS} == {"once", "explained"}
    assert words["once"] == REVERSED


def test_a_run_in_few_bits_is_refused_where_nothing_is_sent():
    arm = STUDY.arms["few"]
    with pytest.raises(UserError, match="few-0 rounds what devices send"):
        run_trial(
            arm,
            experiment("weights:8,gradients:4", Setting("short")),
            {experiment("", Setting("short")).data: None},
            pathlib.Path("few-0"),
            Layout(make_mesh()),
            {},
            (),
            Progress(False),
        )
