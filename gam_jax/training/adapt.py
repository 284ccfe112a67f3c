"""An experiment that trains adapters alone."""

from __future__ import annotations

import dataclasses

from gam_jax.adapters import NAMES, adapted, adapters_of
from gam_jax.training.experiment import Experiment
from sharding.errors import UserError


def with_adapters(
    experiment: Experiment, on: str, rank: int = 8, alpha: float = 16.0, rooted: bool = False
) -> Experiment:
    """The experiment with adapters in each block of its model, which alone are trained.

    Where `optimizer.only` names parameters already, these are trained too. An experiment that has
    these adapters, as one that goes on, comes back as it is.

    Args:
      experiment: of a model without adapters, or with the same.
      on: patterns of the names of matrices in a block, as "mixer/*,ffn/*".
      rank: see `layers.Adapted`.
      alpha: likewise.
      rooted: likewise.

    Raises:
      UserError: a pattern that matches no matrix, a model without blocks, or with other adapters.
    """
    model, optimizer = experiment.model, experiment.optimizer
    if found := adapters_of(model):
        wanted = rank, alpha, rooted
        patterns = {pattern for one in found for pattern in one.on.split(",")}
        same = all((one.rank, one.alpha, one.rooted) == wanted for one in found)
        if not same or patterns != {one.strip() for one in on.split(",")}:
            raise UserError(
                f"the model has adapters of rank={found[0].rank}, alpha={found[0].alpha:g} on "
                f"'{found[0].on}' already: ask for the same, or for none"
            )
    else:
        model = adapted(model, on, rank, alpha, rooted)
    only = [name for name in optimizer.only.split(",") if name]
    if NAMES not in only:
        optimizer = dataclasses.replace(optimizer, only=",".join([*only, NAMES]))
    return dataclasses.replace(experiment, model=model, optimizer=optimizer)
