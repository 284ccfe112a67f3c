"""What saving costs a run, and what restoring onto another mesh costs beside the same one."""

from __future__ import annotations

import pathlib
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from experiments.benchmark.mesh import BATCH, MODEL, TOKENS
from experiments.benchmark.timing import Quantity, Rows, medians, ratio
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.training.state import abstract_state, init_state, state_shardings
from gam_jax.training.step import make_train_step, put_batch
from sharding.checkpoint import Checkpoints
from sharding.layout import Layout
from sharding.mesh import make_mesh
from sharding.parallel import Parallel

EVERY = 20
"""Steps between saves: ten times as often as the default."""
SHARDED = "fully_sharded+sequence+tensor"
SOURCE = (4, 1, 2), SHARDED
TARGETS = {
    "same": SOURCE,
    "2x1x4": ((2, 1, 4), SHARDED),
    "8x1x1": ((8, 1, 1), SHARDED),
    "1x1x8": ((1, 1, 8), SHARDED),
    "2x2x2 replicated over data": ((2, 2, 2), "data+sequence+tensor"),
    "one device": ((1, 1, 1), "data+sequence+tensor"),
}


def run(repeats: int, short: bool = False) -> Rows:
    """The default model, 8 x 256 tokens on one device; its state on meshes of eight.

    Returns:
      A save: bytes of the arrays and on disk, time until it is on disk, time that training waits
      for. 20 steps without a save and with one. The share that a save adds to them: of processor
      time (which other programs do not disturb), of what training waits for, and of all time. A
      row a mesh that is restored onto.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        targets = dict(list(TARGETS.items())[:2]) if short else TARGETS
        return {**_saving(path / "stall", repeats), **_restoring(path / "r", repeats, targets)}


def _saving(folder: pathlib.Path, repeats: int) -> Rows:
    """Rounds of steps with and without a save at their beginning, in turn."""
    optimizer = make_optimizer(OptimizerConfig(), 1000, MODEL.table())
    layout = Layout(make_mesh(), Parallel("data"))
    state = init_state(MODEL, optimizer, layout, seed=0)
    tokens = np.random.default_rng(0).integers(0, MODEL.vocab or 0, (BATCH, TOKENS + 1), np.int32)
    weights = np.ones((BATCH, TOKENS), np.float32)
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}
    batch = put_batch(MODEL, layout, batch)
    step = make_train_step(MODEL, optimizer, layout)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    blocked, on_disk, work = [], [], []
    cpu = 0.0
    with Checkpoints(folder) as checkpoints:
        for turn in range(2 * (repeats + 1)):
            saves, start, busy = turn % 2 == 0, time.perf_counter(), time.process_time()
            if saves:
                checkpoints.save(turn, state, {})
                blocked.append(time.perf_counter() - start)
            for _ in range(EVERY):
                state, metrics = step(state, batch)
                float(metrics["loss"])
            seconds[saves].append(time.perf_counter() - start)
            cpu = time.process_time() - busy  # of the last turn, which saves nothing
            checkpoints.wait()
            if turn == 1:
                seconds, blocked = {True: [], False: []}, []  # what compiles is not counted
        for turn in range(repeats):
            start, busy = time.perf_counter(), time.process_time()
            checkpoints.save(1000 + turn, state, {})
            checkpoints.wait()
            on_disk.append(time.perf_counter() - start)
            work.append(time.process_time() - busy)
        stored = checkpoints.manifest(checkpoints.choose("latest")).bytes
    without, with_save = (Quantity.of(seconds[saves], "s") for saves in (False, True))
    ratios = [a / b - 1 for a, b in zip(seconds[True], seconds[False], strict=True)]
    waited, busy = Quantity.of(blocked, "s"), Quantity.of(work, "s")
    held = sum(x.nbytes for x in jax.tree.leaves((state.params, state.opt_state)))
    return {
        "a save": {
            "arrays": Quantity.exactly(held, "B"),
            "on disk": Quantity.exactly(stored, "B"),
            "until on disk": Quantity.of(on_disk, "s"),
            "training waits": waited,
            "processor": busy,
        },
        f"{EVERY} steps": {
            "without a save": without,
            "with one": with_save,
            "processor": Quantity.exactly(cpu, "s"),
        },
        f"share that a save adds to {EVERY} steps": {
            "of processor time": busy.times(1 / cpu, ""),
            "waited for": waited.times(1 / without.median, ""),
            "of all time": Quantity.of(ratios, ""),
        },
    }


def _restoring(folder: pathlib.Path, repeats: int, targets: Mapping[str, Any]) -> Rows:
    """Restores one checkpoint onto each mesh, in turn; every byte is verified each time."""
    optimizer = make_optimizer(OptimizerConfig(), 1000, MODEL.table())

    def layout(shape: tuple[int, int, int], preset: str) -> Layout:
        return Layout(make_mesh(*shape), Parallel(preset))

    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, init_state(MODEL, optimizer, layout(*SOURCE), seed=0), {})
        checkpoints.wait()

    def restore(shape: tuple[int, int, int], preset: str) -> Callable[[], Any]:
        placed = state_shardings(MODEL, optimizer, layout(shape, preset))
        wanted = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            abstract_state(MODEL, optimizer),
            placed,
        )
        return lambda: Checkpoints(folder, read_only=True).restore(1, wanted)

    times = medians({name: restore(*target) for name, target in targets.items()}, repeats, 1)
    return {
        f"restoring onto {name}": {"time": found, "over same": ratio(found, times["same"])}
        for name, found in times.items()
    }
