"""A small GAM with eight experts of which a byte takes two: minutes on a laptop, no download.

  python -m experiments.train --config=experiments/configs/moe_small.py --run=runs/moe

The setting of `gam_small`; two experts have about the parameters of its feed-forward. The loads
of experts are in the run's load.png.
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.config_flags import config
from experiments.configs import gam_small
from gam_jax.config import from_dict
from gam_jax.layers import GAM, MLP, Block, MoE
from gam_jax.training.experiment import Experiment

EXPERTS = MoE(experts=8, chosen=2, ffn=MLP(hidden=176, activation="swiglu", bias=False))


def experiment() -> Experiment:
    """The default of `experiments.balance` too."""
    dense = from_dict(Experiment, gam_small.get_config().to_dict())
    model = dataclasses.replace(dense.model, block=Block(GAM(slots=128, kernel=8), EXPERTS))
    return dataclasses.replace(dense, model=model)


def get_config() -> ConfigDict:
    """`gam_small` with experts."""
    return config(experiment())
