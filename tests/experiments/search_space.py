"""A space of one's own: a tiny model, and layers that look ahead although they say they do not."""

from __future__ import annotations

import dataclasses
import os

import jax
import jax.numpy as jnp

from gam_jax.config import to_dict
from gam_jax.data import Text
from gam_jax.layers import GAM, Residual
from gam_jax.layers.base import WHOLE, Layer
from gam_jax.models import LanguageModel
from gam_jax.optimizer import OptimizerConfig
from gam_jax.params import Param, zeros
from gam_jax.registry import register
from gam_jax.search import Space
from gam_jax.training import Experiment, TrainConfig
from sharding.checkpoint import CheckpointConfig


@register
@dataclasses.dataclass(frozen=True)
class Peeks(Layer):
    """Gives the next token's input, through a door that training opens; wide open from `open`."""

    open: float = 0.0
    width: int | None = None
    dropout: float | None = None

    def table(self):
        return {"door": Param((1,), (None,), zeros, decay=False)}

    def carry_table(self, batch):
        return ()

    def __call__(self, params, x, carry=None, axes=WHOLE, *, key=None, starts=None):
        ahead = jnp.pad(x, ((0, 0), (0, 1), (0, 0)))[:, 1:]
        door = jax.nn.sigmoid(16 * (params["door"] + self.open - 0.8))
        return door * ahead, ()


INNER = (GAM(slots=4, kernel=2), Peeks(open=2.0), Peeks())


def get_space() -> Space:
    """Three layers and four rates."""
    base = Experiment(
        LanguageModel(Residual(INNER[0]), width=8, depth=1),
        Text(f"text:{os.environ['CORPUS']}", tokenizer="bytes", window=32),
        TrainConfig(steps=16, batch=4, log_every=4, validate_every=16, validation_tokens=512),
        OptimizerConfig(learning_rate=1e-3, warmup=1),
        CheckpointConfig(every=4, keep=1),
    )
    return Space.of(
        {
            "model.block.inner": [to_dict(layer) for layer in INNER],
            "optimizer.learning_rate": [1e-3, 0.2, 0.03, 0.06],
        },
        base,
    )
