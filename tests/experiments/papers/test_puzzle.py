"""The study of Puzzle: the integer program, and a library as it is published."""

from __future__ import annotations

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest

from experiments.papers.puzzle import STUDY, official
from experiments.papers.puzzle.children import solver
from experiments.search.children import budgets_of, distilled
from experiments.study import Setting
from experiments.study.run import Request, run_study
from gam_jax.blockwise import Library
from gam_jax.layers import MLP, Attention, Block
from gam_jax.models import LanguageModel
from gam_jax.replacements import NO_OP
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


PARENT = LanguageModel(Block(Attention(heads=2), MLP(hidden=8)), width=4, depth=2, vocab=8)


def test_operations_are_those_of_a_sequence_of_which_the_parent_says_the_length():
    """Of none they would all be 0, and any child would be within the budget."""
    windowed = Block(Attention(heads=2, window=2), MLP(hidden=8))
    endless = dataclasses.replace(PARENT, block=windowed)
    with pytest.raises(UserError, match="no longest sequence: give it a context"):
        budgets_of(Library(endless, (NO_OP,), (NO_OP,)), 0.5)
    longest = dataclasses.replace(endless, context=4)
    memory, work = budgets_of(Library(longest, (NO_OP,), (NO_OP,)), 0.5)
    for budget in (memory, work):
        parent, no_ffn, no_mixer, nothing = budget.uses[0]
        assert parent > max(no_ffn, no_mixer) >= min(no_ffn, no_mixer) > nothing == 0
        assert budget.limit == parent * len(budget.uses) / 2


@pytest.mark.parametrize("options", [(NO_OP,), ()])
def test_a_library_without_anything_to_train_stays_as_it_begins(options):
    library = Library(PARENT, options, options)
    tokens = np.zeros((1, 3), np.int32)
    params = jax.jit(PARENT.init_params)(jax.random.key(0))
    found, losses = distilled(library, params, [tokens] * 4, tokens, 0.1, 3, 0)
    assert losses.shape == (0,)
    assert jax.tree.all(jax.tree.map(np.array_equal, library.parent_params(found), dict(params)))
