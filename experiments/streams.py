"""A language model's first parallel streams alone, of a run that was trained with more."""

from __future__ import annotations

import dataclasses
import functools
from typing import cast

import jax

from gam_jax.data.text import TOKENIZER
from gam_jax.data.tokenizer import Tokenizer
from gam_jax.models import LanguageModel
from gam_jax.params import Params, param_specs, shardings
from gam_jax.training.experiment import Experiment
from gam_jax.training.folder import RunFolder, load_params
from sharding.checkpoint import Checkpoints
from sharding.errors import UserError
from sharding.layout import Layout


def language_model(experiment: Experiment) -> LanguageModel:
    """The experiment's model, which must be a language model.

    Raises:
      UserError: it is another.
    """
    if not isinstance(experiment.model, LanguageModel):
        raise UserError(
            f"this command is for language models, and the model is a "
            f"{type(experiment.model).__name__}"
        )
    return experiment.model


def check_tokenizer(folder: RunFolder, step: int, tokenizer: Tokenizer) -> None:
    """Refuses a tokenizer of a run that is not the one its checkpoint was trained with.

    Raises:
      UserError: its fingerprint is not the one that the checkpoint recorded.
    """
    with Checkpoints(folder.checkpoints, read_only=True) as checkpoints:
        saved = checkpoints.extra(step).get("tokenizer")
    if saved not in (None, tokenizer.fingerprint):
        raise UserError(
            f"{folder.path / TOKENIZER} has changed since checkpoint {step} was saved, so its ids "
            f"mean other text: bring the old one back"
        )


def of_streams(experiment: Experiment, streams: int) -> Experiment:
    """A run's experiment with its first parallel streams alone; as it is for 0.

    Raises:
      UserError: more than it was trained with.
    """
    if not streams:
        return experiment
    own = language_model(experiment)
    trained_with = own.streams
    if streams > trained_with:
        raise UserError(
            f"--streams={streams} of a run that has {trained_with}: train it on with more, as in "
            f"--init=RUN --config.model.streams={streams}"
        )
    model = dataclasses.replace(own, streams=streams)
    optimizer = dataclasses.replace(experiment.optimizer, only="")  # it may name what is gone
    return dataclasses.replace(experiment, model=model, optimizer=optimizer)


def params_of_streams(
    folder: RunFolder, experiment: Experiment, layout: Layout, which: str, streams: int
) -> tuple[int, Params]:
    """Step and parameters of a run's checkpoint, of its first streams alone; of all for 0.

    Args:
      folder: the run.
      experiment: of the run.
      layout: where to put them.
      which: "latest", "best" or a step.
      streams: how many to take.

    Raises:
      UserError: no such checkpoint, a damaged one, or fewer streams than asked for.
    """
    step, params = load_params(folder, experiment, layout, which)
    if streams:
        table = of_streams(experiment, streams).model.table()
        placed = shardings(param_specs(table, layout), layout)
        trunk = language_model(experiment).trunk
        first = functools.partial(trunk.first, streams=streams)
        params = cast(Params, jax.jit(first, out_shardings=placed)(params))
    return step, params
