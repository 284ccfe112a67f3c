"""Experiments that train a run's model to be guessed for: by itself, or by a network beside it."""

from __future__ import annotations

import dataclasses

import jax

from gam_jax.adapters import is_adapted
from gam_jax.local import Local
from gam_jax.models.language import LanguageModel
from gam_jax.models.semi import TRAINED, SemiDrafter
from gam_jax.models.units import LexicalUnits, as_units
from gam_jax.params import Params
from gam_jax.training.experiment import Experiment
from sharding.errors import UserError

WINDOW = 8
"""Blocks of k slots that a drafter sees."""
GENTLE = 1 / 3
"""The part of a run's rate at which it is trained on."""


def units_of(experiment: Experiment, ahead: int, steps: int) -> Experiment:
    """The experiment that trains a run's model on, to look ahead too, see `models.units`.

    Args:
      experiment: of the run.
      ahead: k, the most tokens of a unit.
      steps: updates.

    Raises:
      UserError: a model that cannot be trained so.
    """
    model = as_units(_model(experiment), unit=ahead, every=max(ahead, 2))
    return _shorter(dataclasses.replace(experiment, model=model), steps, GENTLE)


def semi_of(experiment: Experiment, ahead: int, steps: int) -> Experiment:
    """The experiment that trains a drafter beside a run's model, see `models.semi`.

    Args:
      experiment: of the run.
      ahead: k, tokens that it tells in one pass.
      steps: updates.

    Raises:
      UserError: a model for which there can be none.
    """
    model = _model(experiment)
    if isinstance(model, LexicalUnits):
        raise UserError("the run looks ahead by itself: a drafter is for one that does not")
    heads = next((n for n in (4, 2, 1) if model.width % (2 * n) == 0), 0)
    if not heads:
        raise UserError(f"a drafter needs an even width, and the run's model has {model.width}")
    drafter = SemiDrafter(
        model,
        ahead=ahead,
        window=WINDOW * ahead,
        heads=heads,
        steps=steps,
    )
    experiment = _shorter(dataclasses.replace(experiment, model=drafter), steps)
    optimizer = dataclasses.replace(experiment.optimizer, only=TRAINED)
    return dataclasses.replace(experiment, optimizer=optimizer)


def beside(experiment: Experiment, target: Params) -> Params:
    """First parameters of a drafter: new ones, beside the model's own.

    Args:
      experiment: of `semi_of`.
      target: the run's parameters.
    """
    fresh = experiment.model.init_params(jax.random.key(experiment.train.seed))
    return {**fresh, "target": target}


def _model(experiment: Experiment) -> LanguageModel:
    model = experiment.model
    if not isinstance(model, LanguageModel):
        raise UserError(f"drafts are for language models, and this is a {type(model).__name__}")
    if is_adapted(model):
        raise UserError("the run has adapters: merge them first, see docs/adapters.md")
    return model


def _shorter(experiment: Experiment, steps: int, share: float = 1.0) -> Experiment:
    """A run of its own: so many steps, one worker, at a part of the rate."""
    train = dataclasses.replace(
        experiment.train,
        steps=steps,
        log_every=min(experiment.train.log_every, max(1, steps // 4)),
        validate_every=min(experiment.train.validate_every, steps),
        validate_first=0,
        stop_at=0,
        goal="",
        local=Local(),
    )
    optimizer = dataclasses.replace(
        experiment.optimizer,
        learning_rate=experiment.optimizer.learning_rate * share,
        schedule="cosine",
        warmup=0.05,
        only="",
    )
    return dataclasses.replace(experiment, train=train, optimizer=optimizer)
