"""The smallest run: a matrix that is learned, which compiles in a moment."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from gam_jax.data import arrays
from gam_jax.models import Model
from gam_jax.optimizer import OptimizerConfig
from gam_jax.params import Param, fan_in
from gam_jax.registry import register
from gam_jax.training import Experiment, TrainConfig
from sharding.checkpoint import CheckpointConfig

ROWS, WIDE, OUT = 8, 4, 2
FLOPS = 2 * (2 * ROWS * WIDE * OUT)
"""Of a step: forward, and the gradient of the matrix."""

TRACED: list[str] = []
"""Grows by one whenever the objective is traced."""


@register
@dataclasses.dataclass(frozen=True)
class Line(Model):
    """y = x w, by squares."""

    def table(self):
        return {"w": Param((WIDE, OUT), (None, None), fan_in(WIDE))}

    def batch_axes(self):
        return {"x": ("batch", None), "y": ("batch", None), "weights": ("batch",)}

    def objective(self, params, batch, axes=None, *, key=None):
        TRACED.append("line")
        wrong = jnp.sum((batch["x"] @ params["w"] - batch["y"]) ** 2, axis=1)
        return jnp.sum(batch["weights"] * wrong), 0.0, {}


def data(rows=32):
    """Rows that a matrix explains."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(rows, WIDE)).astype(np.float32)
    given = {"x": x, "y": x @ draw.normal(size=(WIDE, OUT)).astype(np.float32)}
    return arrays(given, {name: array[:8] for name, array in given.items()})


def experiment(steps, **options):
    """Of so many steps; options are those of `TrainConfig`."""
    train = TrainConfig(steps=steps, batch=ROWS, log_every=1, **options)
    optimizer = OptimizerConfig(warmup=1, learning_rate=1e-2)
    return Experiment(Line(), data().config, train, optimizer, CheckpointConfig(every=3))
