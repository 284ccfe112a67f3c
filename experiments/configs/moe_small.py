"""A small GAM with eight experts of which a byte takes two: minutes on a laptop, no download.

  gam train --config=moe_small --run=runs/moe

The setting of `gam_small`; two experts have about the parameters of its feed-forward. The loads
of experts are in the run's load.png.
"""

from ml_collections import ConfigDict

from experiments.config_flags import config
from experiments.configs import gam_small
from gam_jax.config import from_dict, to_dict
from gam_jax.layers import GAM, MLP, Block, MoE
from gam_jax.training.experiment import Experiment

EXPERTS = MoE(experts=8, chosen=2, ffn=MLP(hidden=176, activation="swiglu", bias=False))


def experiment() -> Experiment:
    """The default of `experiments.balance` too."""
    dense = gam_small.get_config().to_dict()
    values = to_dict(Block(GAM(slots=128, kernel=8), EXPERTS))
    return from_dict(Experiment, {**dense, "model": {**dense["model"], "block": values}})


def get_config() -> ConfigDict:
    """`gam_small` with experts."""
    return config(experiment())
