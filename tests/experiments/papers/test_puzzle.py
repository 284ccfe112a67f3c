"""The study of Puzzle: the integer program, and a library as it is published."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from experiments.papers.puzzle import STUDY, official
from experiments.papers.puzzle.children import solver
from experiments.study import Setting
from experiments.study.run import Request, run_study
from gam_jax.training.progress import Progress
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import make_mesh


def library(random, layers=4, variants=3):
    """In the form of the published file."""

    def one():
        cost, memory, runtime = random.uniform(1, 9, 3)
        stats = {"memory_mib": memory, "runtime_ms": runtime}
        return {"stats": stats, "metrics": {"kl_div": cost, "lm_loss": 1.6}}

    return {f"layer_{i}": {f"variant {j}": one() for j in range(variants)} for i in range(layers)}


def test_the_program_is_brute_force():
    assert solver(Setting("short"), 0) == {"off": 0.0, "below": 0.0}


@pytest.mark.parametrize("seed", range(3))
def test_a_published_library_is_read_and_its_best_child_found(seed, tmp_path, monkeypatch):
    made = library(np.random.default_rng(seed))
    path = tmp_path / "library.json"
    path.write_text(json.dumps(made))
    blocks = [list(block.values()) for block in made.values()]

    def sums(chosen):
        cost = sum(one["metrics"]["kl_div"] for one in chosen)
        used = (sum(one["stats"][name] for one in chosen) for name in ("memory_mib", "runtime_ms"))
        return cost, *used

    points = [sums(chosen) for chosen in itertools.product(*blocks)]
    memory, runtime = np.median([each[1:] for each in points], axis=0)
    monkeypatch.setitem(official.LIMITS, "official-80", (memory, runtime))
    found = official.official("official-80", Setting(data=str(path)), 0)
    best = min(each for each in points if each[1] <= memory and each[2] <= runtime)
    np.testing.assert_allclose([found[n] for n in ("published", "mib", "ms")], best)


def test_without_its_file_such_an_arm_is_not_run(tmp_path):
    assert not set(official.OFFICIAL) & set(STUDY.default_arms)
    request = Request(("official-80",), (0,), Setting("short"), tmp_path)
    with pytest.raises(
        UserError, match=r"arm official-80 reads block_library\.json of .*: give it"
    ):
        run_study(STUDY, request, Layout(make_mesh()), Progress(False))
    others = {"other.json": '{"layer_0": [1]}', "none.json": "{}", "empty.json": '{"layer_0": {}}'}
    for name, text in others.items():
        (tmp_path / name).write_text(text)
    for name in (*others, "missing.json"):
        with pytest.raises(UserError, match=rf"{name}.* no library of blocks as published"):
            official.official("official-80", Setting(data=str(tmp_path / name)), 0)
