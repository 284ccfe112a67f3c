"""Arms of studies measure what they are called after."""

from __future__ import annotations

import pytest

from experiments.papers import kling_avatar, pc_darts
from experiments.study import Setting
from experiments.study.declare import SHORT


def test_anchors_of_a_step_model_have_errors_of_their_own():
    """Otherwise a walk between them is the walk itself."""
    walk, chained, anchored = (
        kling_avatar.drift(scheme, 256, 0)["drift"]
        for scheme in ("sequential", "chained", "anchored")
    )
    assert walk != chained == pytest.approx(walk, rel=0.2)
    assert anchored < 0.1 * walk


def test_a_mixture_of_half_the_channels_holds_those_that_pass_by_too():
    half = pc_darts.memory(2, Setting(scale=SHORT), 0)["of_whole"]
    assert 0.501 < half < 0.6
