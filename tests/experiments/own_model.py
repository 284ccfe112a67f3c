"""A model that is no language model, on data that are no text: a file that --config names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.config_flags import config
from gam_jax.data import Data, Dataset, arrays
from gam_jax.layers import MLP, Residual, Stack
from gam_jax.layers.base import WHOLE
from gam_jax.models import Model
from gam_jax.optimizer import OptimizerConfig
from gam_jax.params import Param, fan_in, zeros
from gam_jax.registry import register
from gam_jax.training import Experiment, TrainConfig
from sharding.checkpoint import CheckpointConfig

SIDE, WIDTH = 4, 8


@register
@dataclasses.dataclass(frozen=True)
class Quarters(Data):
    """Images of noise in which one quarter is brighter, and which one."""

    NAMES: ClassVar[tuple[str, ...]] = ("quarters",)

    name: str = "quarters"
    rows: int = 256

    def open(self, files: Mapping[str, str] | None = None) -> Dataset:
        draw = np.random.default_rng(0)
        labels = draw.integers(0, 4, self.rows).astype(np.int32)
        images = draw.normal(size=(self.rows, SIDE, SIDE)).astype(np.float32)
        for image, label in zip(images, labels, strict=True):
            row, column = 2 * (label // 2), 2 * (label % 2)
            image[row : row + 2, column : column + 2] += 1.5
        cut = self.rows // 4
        own, held = (
            {"images": images[s], "labels": labels[s]} for s in (slice(cut, None), slice(cut))
        )
        given = arrays(own, held, sizes={"classes": 4}, unit="images")
        return dataclasses.replace(given, config=self)

    def batch(self, rows: int):
        return {
            "images": jax.ShapeDtypeStruct((rows, SIDE, SIDE), jnp.float32),
            "labels": jax.ShapeDtypeStruct((rows,), jnp.int32),
            "weights": jax.ShapeDtypeStruct((rows,), jnp.float32),
        }


@register
@dataclasses.dataclass(frozen=True)
class QuarterClassifier(Model):
    """Pixels, two residual blocks, a linear layer."""

    width: int = WIDTH
    classes: int | None = None

    @property
    def stack(self) -> Stack:
        return Stack(Residual(MLP(), width=self.width, dropout=0.0), depth=2)

    def table(self):
        return {
            "pixels": Param((SIDE**2, self.width), (None, "embed"), fan_in(SIDE**2)),
            "blocks": self.stack.table(),
            "head": Param((self.width, self.classes or 0), ("embed", None), fan_in(self.width)),
            "bias": Param((self.classes or 0,), (None,), zeros, decay=False),
        }

    def batch_axes(self):
        return {"images": ("batch", None, None), "labels": ("batch",), "weights": ("batch",)}

    def fitted(self, data: Dataset) -> QuarterClassifier:
        return dataclasses.replace(self, classes=data.sizes["classes"])

    def objective(self, params, batch, axes=WHOLE, *, key=None):
        x = batch["images"].reshape(len(batch["images"]), 1, -1) @ params["pixels"]
        x, _ = self.stack(params["blocks"], x, None, axes, key=key)
        logits = x[:, 0] @ params["head"] + params["bias"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
        right = jnp.argmax(logits, axis=-1) == batch["labels"]
        weights = batch["weights"]
        return (
            jnp.sum(losses * weights),
            0.0,
            {"accuracy": (jnp.sum(right * weights), weights.sum())},
        )


def get_config():
    return config(
        Experiment(
            QuarterClassifier(),
            Quarters(),
            TrainConfig(steps=60, batch=16, log_every=1, validate_every=20),
            OptimizerConfig(learning_rate=1e-2, warmup=5),
            CheckpointConfig(every=10),
        )
    )
