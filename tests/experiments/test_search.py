"""A search of real runs: what is refused and why, what is in doubt, and that it goes on."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import random
import signal
import time

import jax
import numpy as np
import pytest

from experiments.search import gates
from experiments.search.causal import check_causal
from experiments.search.results import Result, SearchFolder, best_of
from experiments.search.rules import Rules, check_limits, check_paths, steps_of, with_tokens_of
from experiments.search.spaces import SPACES, space_of
from experiments.search.trials import Trials, about
from gam_jax.bilevel import of_logits, with_logits
from gam_jax.config import from_dict
from gam_jax.layers import LAYERS, MLP, Mixed, Residual
from gam_jax.search import Space, through
from gam_jax.training import Experiment, fit
from gam_jax.training.progress import Progress
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import make_mesh
from tests.arrays import initial, put
from tests.experiments import commands

pytestmark = pytest.mark.usefixtures("compiled_once")
FILE = pathlib.Path(__file__).parent / "search_space.py"
POINTS = [(0, 0), (0, 1), (1, 0), (2, 1)]
"""The base; at a high rate; a layer that looks ahead at once; one that learns to."""
RULES = Rules(round=4, halvings=1, parameters=0, flops=0, held=0)
STOPPED = 21
"""The step, of all runs together, at which the search is stopped: in the first trial's run."""


@pytest.fixture(autouse=True, scope="module")
def layers_of_the_file_are_forgotten():
    """Other files ask about every registered layer."""
    known = dict(LAYERS)
    yield
    LAYERS.clear()
    LAYERS.update(known)


class Stopped(Exception):
    """In place of a signal."""


class Counted(Progress):
    """Stops everything at a step, counted over all runs."""

    left = STOPPED

    def __init__(self, title, lines):
        super().__init__(False, title, lines)

    def step(self, step, loss):
        Counted.left -= 1
        if not Counted.left:
            raise Stopped


@pytest.fixture(scope="module")
def space(workshop):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CORPUS", str(workshop.path / "corpus.txt"))
        yield space_of(str(FILE))


LAYOUT = Layout(make_mesh(devices=jax.devices()[:1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, space):
    found = SearchFolder(tmp_path_factory.mktemp("search") / "out")
    found.begin({"from": str(FILE)} | about(space, RULES, "all", 4, LAYOUT))
    return found


@pytest.fixture(scope="module")
def trials(space, folder):
    """A round that was stopped in the middle of a run, and went on."""
    with pytest.raises(Stopped):
        Trials(space, RULES, folder, LAYOUT, 4, Counted).measure(POINTS)
    assert folder.read() == []
    assert not (folder.run("0001") / "metrics.jsonl").read_text().count("validation")
    found = Trials(space, RULES, folder, LAYOUT, 4, Counted)
    found.scores = found.measure(POINTS)
    return found


def test_half_a_round_ends_early_and_is_compared_with_the_base(trials, folder):
    first, second, *_ = trials.results
    assert list(first.losses) == ["8"]
    assert (first.score, first.finished) == (1.0, False)  # the base itself, which was not run twice
    assert not folder.run("0000").exists()
    assert list(second.losses) == ["8", "16"]
    assert second.finished
    assert best_of(trials.results) is second


def test_what_was_stopped_ends_as_one_unbroken_run(trials, space, tmp_path):
    experiment = space.config(POINTS[1])
    whole = fit(experiment, run=tmp_path / "run", layout=LAYOUT, progress=Progress(False))
    assert whole.outcome.last is not None
    assert trials.results[1].losses["16"] == whole.outcome.last.loss
    again = Trials(space, RULES, trials._folder, LAYOUT, 4, Counted)  # all is read, nothing is run
    assert again.measure(POINTS) == trials.scores
    assert again.results == trials.results


def test_who_looks_ahead_is_refused_before_training_or_after(trials):
    _, _, at_once, learned = trials.results
    assert (at_once.refused, at_once.losses) == (gates.CAUSAL, {})
    assert learned.refused == gates.DOUBT
    assert learned.losses["8"] < 0.9 * trials.base_loss(8)
    for each in (at_once, learned):
        assert "depend on later ones" in each.why
        assert each.score is None


def test_a_loss_far_below_is_confirmed_by_a_second_seed_and_has_the_worse_of_both(trials, folder):
    second = trials.results[1]
    assert "below the base's loss after 8 steps; causal" in second.doubt
    assert "from a second seed" in second.doubt
    own = second.losses["16"] / trials.base_loss(16)
    again = json.loads((folder.run("0001-second") / "metrics.jsonl").read_text().splitlines()[-1])
    other = again["loss"] / trials.base_loss(16, second=True)
    assert second.score == max(own, other)
    assert own != other


def test_lines_of_another_search_are_refused(trials, space, folder):
    other = Trials(space, RULES, folder, LAYOUT, 4, Counted)
    with pytest.raises(UserError, match="trial 0 is another one"):
        other.measure([(1, 0), *POINTS[1:]])


def test_a_line_that_was_cut_short_is_written_anew(trials, tmp_path):
    folder = SearchFolder(tmp_path)
    folder.add(trials.results)
    whole = folder.results.read_bytes()
    folder.results.write_bytes(whole[:-20])
    assert folder.read() == trials.results[:-1]
    folder.add(trials.results[-1:])
    assert folder.results.read_bytes() == whole


def test_the_best_is_written_as_a_config_that_trains(trials, folder, command):
    result = command("search.__main__", "extract", f"--out={folder.path}")
    assert result.code == 0, result.err
    words = (f"--config={folder.best}", "--show_config", "--config.train.batch=8")
    shown = command("train", *words)
    assert shown.code == 0, shown.err
    assert "optimizer.learning_rate=0.2 " in shown.out
    scope: dict = {}
    exec(folder.best.read_text(), scope)
    found = from_dict(Experiment, scope["get_config"]().to_dict())
    wanted = with_tokens_of(trials._space.config(POINTS[1]), trials.base)
    assert found == wanted


@pytest.mark.slow
def test_eight_trials_killed_at_random_moments_end_as_eight_unbroken_ones(
    workshop, tmp_path, monkeypatch
):
    monkeypatch.setenv("CORPUS", str(workshop.path / "corpus.txt"))
    words = ("--strategy=evolve:pool=4,parents=2", "--trials=8", "--round=4", "--halvings=1")
    every = (f"--space={FILE}", *words, "--parameters=0")
    began = time.monotonic()
    whole = commands.finish(commands.start("search", *every, f"--out={tmp_path / 'whole'}"))
    took = time.monotonic() - began
    assert whole.code == 0, whole.err
    kills = 0
    while True:
        process = commands.start("search", *every, f"--out={tmp_path / 'killed'}")
        try:
            process.wait(timeout=took * random.uniform(0.2, 0.9) if kills < 3 else 300)
        except Exception:  # it is not done yet
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0, process.communicate()[1]
        break
    assert kills
    names = ("search.json", "results.jsonl")
    one, other = ([(tmp_path / f / n).read_text() for n in names] for f in ("whole", "killed"))
    assert one == other


def test_gates_are_asked_in_turn_and_tell_what_a_candidate_costs(space):
    hybrid = SPACES["hybrid"]()
    base = dataclasses.replace(hybrid.base.model, vocab=256)
    experiment = dataclasses.replace(hybrid.base, model=base)
    found = gates.parameters(experiment) | gates.costs(experiment, LAYOUT)
    assert found["flops"] > 6 * found["parameters"]  # of weights, and of attention
    assert found["held"] > 16 * found["parameters"]  # parameters, two averages and gradients
    check_limits(found, found, Rules(parameters=1, flops=1, held=1))
    with pytest.raises(UserError, match=r"flops .* are 2.00 times the base's, and --flops=1.5"):
        check_limits(found, {**found, "flops": found["flops"] / 2}, Rules(flops=1.5))
    with pytest.raises(UserError, match="flops nan are nan times"):
        check_limits({**found, "flops": math.nan}, found, Rules(flops=1.5))


def test_blocks_of_the_hybrid_space_have_alike_many_parameters():
    space = SPACES["hybrid"]()
    assert space.size == 7**4
    counts = []
    for value in range(7):
        config = space.config((value,) * 4)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab=256))
        counts.append(gates.parameters(config)["parameters"])
    assert max(counts) / min(counts) < 1.02


def test_equal_tokens_for_candidates_of_other_batches_and_windows(space):
    base = space.base
    twice = dataclasses.replace(base, train=dataclasses.replace(base.train, batch=8))
    assert steps_of(16, twice, base) == 8
    assert with_tokens_of(twice, base).train.steps == 8
    odd = dataclasses.replace(base, train=dataclasses.replace(base.train, batch=3))
    with pytest.raises(UserError, match="no whole number of steps"):
        steps_of(16, odd, base)
    assert Rules(halvings=2).rungs(400) == (100, 200, 400)
    with pytest.raises(UserError, match="cannot be halved"):
        Rules(halvings=5).rungs(16)


def test_a_candidate_that_cannot_stop_where_all_are_compared_is_refused(space, tmp_path):
    """Its last step is right, and half of it is no step, or no end of a round."""
    base = dataclasses.replace(space.base, train=dataclasses.replace(space.base.train, steps=24))
    own = Space.of({"train.batch": [4, 32], "train.local.every": [1, 8]}, base)
    found = Trials(own, RULES, SearchFolder(tmp_path), LAYOUT, 4, Counted)
    for point, why in (((1, 0), "the 1,536 of the base's 12"), ((0, 1), "train.stop_at=12 is no")):
        assert with_tokens_of(own.config(point), base).train.steps in (3, 24)
        verdict = through(found._gates[:1], point)
        assert verdict.refused == gates.BUILDS
        assert why in verdict.why


def test_each_option_of_a_mixed_layer_is_asked_for_causality(space):
    """Whichever is the likeliest, and however deep."""
    causal, ahead = MLP(hidden=8), space.config((1, 0)).model.block.inner
    inner = Mixed((causal, Mixed((causal, ahead), "two")), "one")
    model = dataclasses.replace(space.base.model, block=Residual(inner), vocab=256)
    params = initial(model)
    logits = jax.tree.map(
        lambda x: put(np.broadcast_to(9 - 18 * np.arange(x.shape[-1]), x.shape), x.dtype),
        of_logits(params),
    )
    with pytest.raises(UserError, match="depend on later ones"):
        check_causal(model, with_logits(params, logits), gates.drawn(model, 8))


@pytest.mark.parametrize("path", ["data.name", "data", "train.seed", "train.validate_every"])
def test_what_all_are_scored_on_is_no_choice(path):
    check_paths(["data.window", "train.batch", "model.block"])
    with pytest.raises(UserError, match="the same for all candidates"):
        check_paths([path])


def test_the_best_is_one_that_was_trained_to_the_end():
    def result(trial, score, finished):
        return Result(trial, (0,), {}, {}, {}, score, finished)

    ended = [result(0, 0.99, True), result(1, 0.98, True), result(2, None, False)]
    assert best_of([*ended, result(3, 0.5, False)]) is ended[1]
    with pytest.raises(UserError, match="none of 1 candidates was trained to the end"):
        best_of([result(0, 0.5, False)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--space=hibrid",), "unknown space 'hibrid'; did you mean 'hybrid'?"),
        (("--space=none.py",), "there is no such Python file"),
        (("--space=README.md",), "unknown space"),
        (("--strategy=evolv",), "did you mean 'evolve'?"),
        (("--halvings=9",), "search.halvings=9: train.steps=400 cannot be halved so often"),
        (("--config.model.width=0",), "width"),
        (("extract", "--out=nothing"), "nothing holds no search"),
        (("--out=docs",), "docs exists and holds no search"),
    ],
)
def test_bad_input_is_one_line(words, message, command):
    result = command("search.__main__", *words)
    assert (result.code, len(result.err.splitlines())) == (2, 1), result.err
    assert message in result.err


def test_another_search_in_the_folder_names_what_differs(folder, space):
    values = {"from": str(FILE)} | about(space, RULES, "all", 4, LAYOUT)
    folder.begin(values)
    folder.begin({**values, "trials": 8})  # more of them is the same search
    for other in ({**values, "strategy": "random"}, {**values, "trials": 7}):
        with pytest.raises(UserError, match=r"holds another search \((strategy|trials): "):
            folder.begin(other)
    folder.about.write_text(json.dumps(values))


IMPORT = "from gam_jax.search import Space"


def test_a_space_needs_an_experiment_as_its_base(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("x = 1\n")
    with pytest.raises(UserError, match=r"has no function get_space\(\)"):
        space_of(str(file))
    file.write_text(
        "from gam_jax.search import Space\ndef get_space():\n    return Space.of({'a': [1]})\n"
    )
    with pytest.raises(UserError, match=r"must give Space\.of"):
        space_of(str(file))
