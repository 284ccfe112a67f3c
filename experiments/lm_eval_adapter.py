"""A run as a model of lm-evaluation-harness (the package lm-eval, 0.4.13), and its task files.

This module needs the extra `eval`; `tasks` imports it where --tasks is given.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import LM  # type: ignore[import-not-found]
from lm_eval.evaluator import simple_evaluate  # type: ignore[import-not-found]
from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]

from experiments.text_scorer import TextScorer
from gam_jax.likelihood import Likelihood
from sharding.errors import UserError


class RunLM(LM):
    """A run that lm-eval asks.

    Args:
      scorer: of the run.
    """

    def __init__(self, scorer: TextScorer) -> None:
        super().__init__()
        self.scorer = scorer

    def loglikelihood(self, requests: list[Any]) -> list[Likelihood]:
        """Of (context, continuation): the logarithm of the probability, and whether greedy."""
        return self.scorer.loglikelihood([request.args for request in requests])

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """Of whole texts."""
        return self.scorer.rolling([request.args[0] for request in requests])

    def generate_until(self, requests: list[Any]) -> list[str]:
        """What contexts are continued by."""
        return self.scorer.generate([request.args for request in requests])


def open_tasks(path: pathlib.Path) -> list[Any]:
    """The tasks of a task file, or of all task files (*.yaml) in a folder.

    Raises:
      UserError: there is none, or lm-eval cannot open one.
    """
    files = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise UserError(f"--tasks={path}: no task file of lm-eval (NAME.yaml) is there")
    manager, found = TaskManager(include_defaults=False), {}
    for file in files:
        try:
            found |= manager.load([str(file)])["tasks"]
        except Exception as error:  # of YAML, data sets, Python beside it: anything
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"{file}: lm-eval cannot open this task: {reason}; mend it") from error
    return list(found.values())


def scores_of(model: LM, tasks: Sequence[Any]) -> dict[str, dict[str, float]]:
    """Task -> score -> value. Nothing random is estimated, so there are no standard errors."""
    manager = TaskManager(include_defaults=False)
    found = simple_evaluate(
        model,
        tasks=list(tasks),
        task_manager=manager,
        bootstrap_iters=0,
        log_samples=False,
        torch_random_seed=None,  # type: ignore[arg-type]
    )
    return {
        task: {
            name.removesuffix(",none"): value
            for name, value in values.items()
            if isinstance(value, int | float) and "_stderr" not in name
        }
        for task, values in (found or {})["results"].items()
    }
