"""The studies of search strategies: their pieces by hand, and that they run."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.papers import archgym, marl_dse
from experiments.study.declare import SHORT


def test_a_design_that_is_asked_for_again_does_not_count():
    seconds = np.array([5.0, 4.0, 3.0, 2.0])
    asked = np.array([0, 0, 1, 0, 2, 3])
    assert archgym._best_of(asked, seconds, 2) == 4.0
    assert archgym._best_of(asked, seconds, 3) == 3.0
    assert archgym._best_of(asked, seconds, 9) == 2.0


def test_the_memory_controller_has_the_published_designs():
    assert archgym.sizes() == {"designs": 1_769_472, "documented": 442_368}


def test_agents_are_one_agent_and_stall_where_values_are_coupled():
    assert marl_dse.identity(1) < 1e-6
    assert marl_dse.xor(joint=False) < 1e-6 < marl_dse.xor(joint=True)


@pytest.mark.slow
def test_every_strategy_is_scored_on_the_planner_s_designs():
    land = archgym.landscape(SHORT)
    assert np.isfinite(land.seconds).any()
    assert land.seconds.shape == (land.space.size,)
    for name in (*archgym.GRIDS, *archgym.TABLES):
        assert min(archgym.gaps(name, SHORT)) >= -1e-4, name
