"""Candidates are measured: gates, then training in halvings, then what is in doubt."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax

from experiments.search import gates
from experiments.search.results import Result, SearchFolder, plain
from experiments.search.rules import Rules, stopped_at, with_tokens_of
from experiments.search.shown import in_words
from gam_jax.config import to_dict
from gam_jax.data.base import Data, Dataset
from gam_jax.search import Point, Space, through
from gam_jax.training.divergence import Diverged
from gam_jax.training.experiment import Experiment
from gam_jax.training.fit import fit, opened
from gam_jax.training.folder import RunFolder, load_params
from gam_jax.training.metrics import read_metrics
from gam_jax.training.progress import Progress
from sharding.errors import UserError
from sharding.json_file import read_json
from sharding.layout import Layout
from sharding.whole_file import write_atomically

BASE = "base"


@dataclasses.dataclass
class _Trial:
    """A candidate on its way; `run` is the name of its run folder."""

    number: int
    point: Point
    run: str
    experiment: Experiment | None = None
    losses: dict[int, float] = dataclasses.field(default_factory=dict)
    score: float = math.inf
    finished: bool = False
    figures: Any = dataclasses.field(default_factory=dict)
    refused: str = ""
    why: str = ""
    doubt: str = ""

    def refuse(self, gate: str, why: str) -> None:
        """It is out."""
        self.refused, self.why, self.score, self.finished = gate, why, math.inf, False


class Trials:
    """What `gam_jax.search.search` measures with; runs that are there already are read.

    Args:
      space: of experiments.
      rules: how candidates are judged.
      folder: of the search.
      layout: the mesh.
      trials: how many there will be, for the person who watches.
      progress: title, whether lines are said -> what that person sees.
    """

    def __init__(
        self,
        space: Space,
        rules: Rules,
        folder: SearchFolder,
        layout: Layout,
        trials: int,
        progress: Callable[[str, bool], Progress] = lambda title, lines: Progress(
            title=title, lines=lines
        ),
    ) -> None:
        self._space, self._rules, self._folder, self._layout = space, rules, folder, layout
        self._trials, self._progress, self._say = trials, progress, progress("", True).say
        self._data: dict[Data, Dataset] = {}
        self._count = 0
        self.results: list[Result] = []
        self._known = folder.read()
        self._built = functools.cache(self._experiment)
        self.base = self._fitted(space.base)
        self.rungs = rules.rungs(self.base.train.steps)
        self._check_rungs(self.base)
        gates.check_mesh(self.base, layout)
        self.base_figures = gates.parameters(self.base) | gates.costs(self.base, layout)
        self._gates = gates.gates(self._built, layout, rules, self.base_figures)

    def measure(self, points: Sequence[Point]) -> list[float]:
        """Scores of a round; lines of what is not in the file yet.

        Raises:
          UserError: the file holds other results than this search has.
          KeyboardInterrupt: a person has stopped it; the same command goes on.
        """
        numbers = range(self._count, self._count + len(points))
        self._count += len(points)
        known = self._known[numbers.start : numbers.stop]
        found = known if len(known) == len(points) else self._round(numbers, points)
        for result, point in zip(found, points, strict=True):
            if tuple(result.point) != point:
                raise self._other(result.trial)
        for before, after in zip(known, found, strict=False):
            if plain(before) != plain(after):
                raise self._other(before.trial)
        self._folder.add(found[len(known) :])
        self.results += found
        self._built.cache_clear()
        return [each.told for each in found]

    def base_loss(self, step: int, second: bool = False) -> float:
        """The base's, after so many of its steps; from a second seed if asked."""
        name = f"{BASE}-second" if second else BASE
        return self._loss(name, self._seeded(self.base, second), step, "base")

    def _other(self, trial: int) -> UserError:
        return UserError(
            f"{self._folder.results}: trial {trial} is another one than this search has there: "
            f"name another folder with --out"
        )

    def _round(self, numbers: Sequence[int], points: Sequence[Point]) -> list[Result]:
        """Gates for all; then the better half goes on, again and again."""
        base = [self.base_loss(step) for step in self.rungs]
        trials = [_Trial(n, point, f"{n:04}") for n, point in zip(numbers, points, strict=True)]
        for trial in trials:
            self._admit(trial)
        left = [trial for trial in trials if not trial.refused]
        for step, base_loss in zip(self.rungs, base, strict=True):
            for trial in left:
                self._train(trial, step, base_loss)
            left = _better_half([trial for trial in left if not trial.refused])
        found = [self._result(trial) for trial in trials]
        for trial in trials:
            self._tell(trial)
        jax.clear_caches()  # of programs that no later candidate has
        return found

    def _admit(self, trial: _Trial) -> None:
        shown = in_words(self._space, trial.point)
        self._say(f"trial {trial.number + 1} of {self._trials}: {shown}")
        verdict = through(self._gates, trial.point)
        trial.figures = verdict.figures
        if verdict.refused:
            trial.refuse(verdict.refused, verdict.why)
        else:
            trial.experiment = self._built(trial.point)
            if trial.experiment == self.base:
                trial.run = BASE

    def _train(self, trial: _Trial, step: int, base_loss: float) -> None:
        """To the tokens of a step of the base; what is too good is looked at."""
        experiment = trial.experiment
        assert experiment is not None
        try:
            loss = self._loss(trial.run, experiment, step, f"trial {trial.number + 1}")
        except Diverged as error:
            trial.refuse(gates.TRAINS, str(error))
            return
        trial.losses[step], trial.score = loss, loss / base_loss
        trial.finished = step == self.rungs[-1]
        if trial.score < 1 - self._rules.doubt and not trial.doubt:
            trial.doubt = f"{1 - trial.score:.1%} below the base's loss after {step} steps"
        if trial.doubt:
            self._doubted(trial, step)

    def _doubted(self, trial: _Trial, step: int) -> None:
        """Trained parameters must be causal; at the end, another seed must be better too."""
        experiment = trial.experiment
        assert experiment is not None
        if why := self._dependence(trial.run, experiment, step):
            trial.refuse(gates.DOUBT, why)
            return
        if not trial.finished:
            return
        again = self._seeded(experiment, True)
        try:
            loss = self._loss(f"{trial.run}-second", again, step, f"trial {trial.number + 1} again")
        except Diverged as error:
            trial.refuse(gates.DOUBT, f"from a second seed {error}")
            return
        score = loss / self.base_loss(step, second=True)
        if score >= 1:
            trial.refuse(gates.DOUBT, f"from a second seed its loss is {score:.3f} of the base's")
            return
        trial.doubt += (
            f"; causal as trained, and {1 - score:.1%} below after {step} from a second seed"
        )
        trial.score = max(trial.score, score)

    def _dependence(self, name: str, experiment: Experiment, step: int) -> str:
        """What trained parameters have of later tokens; empty for nothing.

        It is kept in the run folder, since a search that goes on may find later parameters there.
        """
        folder = RunFolder(self._folder.run(name))
        kept = folder.path / f"causal-{step}.json"
        if kept.exists():
            return read_json(kept)["why"]
        layout = dataclasses.replace(self._layout, parallel=experiment.parallel)
        why = ""
        try:
            gates.check_trained(experiment, load_params(folder, experiment, layout)[1])
        except UserError as error:
            why = str(error)
        write_atomically(kept, json.dumps({"why": why}) + "\n")
        return why

    def _loss(self, name: str, experiment: Experiment, step: int, title: str) -> float:
        """The validation loss after the tokens of a step of the base."""
        experiment = stopped_at(step, experiment, self.base)
        own = experiment.train.stop_at
        folder = RunFolder(self._folder.run(name))
        if (found := _loss_at(folder, own)) is not None:
            return found
        fitted = fit(
            experiment,
            self._opened(experiment.data),
            run=folder.path,
            layout=dataclasses.replace(self._layout, parallel=experiment.parallel),
            resume=True,
            progress=self._progress(title, False),
        )
        if fitted.outcome.interrupted:
            self._say("stopped: the same command goes on")
            raise KeyboardInterrupt
        found = _loss_at(folder, own)
        if found is None:
            raise UserError(
                f"{folder.metrics} has no validation of step {own}: remove {folder.path}"
            )
        return found

    def _experiment(self, point: Point) -> Experiment:
        """That of a point, its model fitted to the data; it can stop where all are compared."""
        found = self._fitted(with_tokens_of(self._space.config(point), self.base))
        self._check_rungs(found)
        return found

    def _check_rungs(self, experiment: Experiment) -> None:
        for step in self.rungs:
            stopped_at(step, experiment, self.base)

    def _fitted(self, experiment: Experiment) -> Experiment:
        """With its model fitted to the data."""
        data = self._opened(experiment.data)
        found = opened(experiment, data, None)[0]
        self._data[found.data] = data
        return found

    def _opened(self, data: Data) -> Dataset:
        if data not in self._data:
            self._data[data] = data.open()
        return self._data[data]

    def _seeded(self, experiment: Experiment, second: bool) -> Experiment:
        seed = experiment.train.seed + second
        return dataclasses.replace(
            experiment, train=dataclasses.replace(experiment.train, seed=seed)
        )

    def _result(self, trial: _Trial) -> Result:
        return Result(
            trial.number,
            list(trial.point),
            self._space.values(trial.point),
            dict(trial.figures),
            {str(step): loss for step, loss in trial.losses.items()},
            None if trial.refused else trial.score,
            trial.finished,
            trial.refused,
            trial.why,
            trial.doubt,
        )

    def _tell(self, trial: _Trial) -> None:
        self._say(f"trial {trial.number + 1}: {_told(trial)}")


def _better_half(trials: Sequence[_Trial]) -> list[_Trial]:
    """Those of the least scores, in their order; of an odd number one more."""
    best = sorted(trials, key=lambda trial: (trial.score, trial.number))
    return sorted(best[: -(-len(best) // 2)], key=lambda trial: trial.number)


def _told(trial: _Trial) -> str:
    if trial.refused:
        return f"refused, {trial.refused}: {trial.why}"
    step, loss = list(trial.losses.items())[-1]
    shown = f"loss {loss:.4f} after {step} steps, {trial.score:.4f} of the base's"
    return f"{shown}; {trial.doubt}" if trial.doubt else shown


def _loss_at(folder: RunFolder, step: int) -> float | None:
    """The validation loss of a step that a run has measured."""
    rows = read_metrics(folder.metrics)
    found = [row["loss"] for row in rows if row["split"] == "validation" and row["step"] == step]
    return found[-1] if found else None


def about(space: Space, rules: Rules, strategy: str, trials: int, layout: Layout) -> dict[str, Any]:
    """What a search is: equal ones go on in one folder."""
    return {
        "strategy": strategy,
        "trials": trials,
        "rules": dataclasses.asdict(rules),
        "mesh": layout.shown,
        "space": space.to_json(),
        "base": to_dict(space.base),
    }
