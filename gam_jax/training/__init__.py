"""A training run of any model on any data: steps, validation, checkpoints, resume."""

from gam_jax.training.experiment import Experiment, TrainConfig
from gam_jax.training.fit import Fitted, fit
from gam_jax.training.loop import Beginning, Outcome

__all__ = ["Beginning", "Experiment", "Fitted", "Outcome", "TrainConfig", "fit"]
