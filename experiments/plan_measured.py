"""Predicted seconds of a step beside measured ones, on eight emulated devices of this machine."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from experiments.planned import run_of
from gam_jax.data.text import Text
from gam_jax.layers import GAM, Block
from gam_jax.models.language import LanguageModel
from gam_jax.optimizer import make_optimizer
from gam_jax.planning.cluster import Cluster
from gam_jax.planning.cost import cost
from gam_jax.planning.traces import trace
from gam_jax.planning.work import Candidate, work_of
from gam_jax.training.experiment import Experiment, TrainConfig
from gam_jax.training.state import init_state
from gam_jax.training.step import make_train_step, put_batch
from sharding.layout import Layout
from sharding.mesh import AXIS_NAMES, mesh_from_text
from sharding.parallel import Parallel

DEVICES = 8
MODEL = LanguageModel(Block(GAM(slots=128, kernel=8)), width=128, depth=2, vocab=256)
EXPERIMENT = Experiment(MODEL, Text(window=128), TrainConfig(batch=16))

MESHES = (
    ("data=8", "data", 1),
    ("data=8", "zero1", 1),
    ("data=8", "fully_sharded", 1),
    ("data=8", "fully_sharded", 2),
    ("data=2,tensor=4", "data+tensor", 1),
    ("tensor=8", "data+tensor", 1),
    ("data=2,seq=4", "data+sequence", 1),
    ("data=2,seq=2,tensor=2", "data+sequence+tensor_tokens", 1),
)
"""Mesh, preset and parts of a batch: little to send first, much last."""


@dataclasses.dataclass(frozen=True)
class Timed:
    """A step on one mesh.

    Attributes:
      mesh, preset: in words.
      parts: of a batch.
      predicted, measured: seconds.
    """

    mesh: str
    preset: str
    parts: int
    predicted: float
    measured: float


def timed(machines: Cluster, repeats: int) -> Iterator[Timed]:
    """Each mesh of eight devices; the median of so many steps after two."""
    run = run_of(EXPERIMENT)
    for text, preset, parts in MESHES:
        layout = Layout(mesh_from_text(text), Parallel(preset))
        sizes = tuple((name, layout.mesh.shape.get(name, 1)) for name in AXIS_NAMES)
        one = Candidate(sizes, preset, parts, MODEL.remat)
        traced = trace(run, one.kind, {name: (size,) for name, size in sizes})
        predicted = cost(work_of(run, one, traced), machines).seconds
        yield Timed(text, preset, parts, predicted, _measured(layout, parts, repeats))


def correlation(rows: Sequence[Timed]) -> float:
    """Spearman's, between predicted and measured seconds: 1 where both rank meshes alike."""
    both = ([row.predicted for row in rows], [row.measured for row in rows])
    first, second = (np.argsort(np.argsort(seconds)) for seconds in both)
    count = len(rows)
    return 1 - 6 * float(np.sum((first - second) ** 2)) / (count * (count**2 - 1))


def _measured(layout: Layout, parts: int, repeats: int) -> float:
    """Seconds of a step."""
    model, rows, window = MODEL, EXPERIMENT.train.batch, run_of(EXPERIMENT).window
    optimizer = make_optimizer(EXPERIMENT.optimizer, 1000, model.table())
    state = init_state(model, optimizer, layout, seed=0)
    shape = (rows, window) if parts == 1 else (parts, rows // parts, window)
    tokens = np.random.default_rng(0).integers(0, 256, shape).astype(np.int32)
    weights = np.ones(shape, np.float32)
    arrays: dict[str, Any] = {"inputs": tokens, "targets": tokens, "weights": weights}
    batch = put_batch(model, layout, arrays, parts)
    step = make_train_step(model, optimizer, layout, parts)
    took = []
    for _ in range(2 + repeats):
        begun = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        took.append(time.perf_counter() - begun)
    return statistics.median(took[2:])
