"""What saving costs a run, and what restoring onto another mesh costs beside the same one."""

from __future__ import annotations

import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from experiments.benchmark.mesh import BATCH, MODEL, TOKENS
from experiments.benchmark.timing import medians
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.train import (
    abstract_state,
    batch_spec,
    init_state,
    make_train_step,
    state_shardings,
)
from sharding.checkpoint import Checkpoints
from sharding.layout import Layout, Parallel
from sharding.mesh import make_mesh

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


def run(repeats: int) -> dict[str, Any]:
    """The default model, 8 x 256 tokens on one device; its state on meshes of eight.

    Returns:
      Bytes of the arrays and on disk. Seconds until a save is on disk, and seconds that training
      waits for. Seconds of 20 steps without and with a save. Stall: the share of those 20 steps
      that a save adds: of what training waits for, of processor time (which other programs do
      not disturb), and of all seconds (median, least, most). Restore: a row a mesh.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        return {**_saving(path / "stall", repeats), "restore": _restoring(path / "r", repeats)}


def _saving(folder: pathlib.Path, repeats: int) -> dict[str, Any]:
    """Rounds of steps with and without a save at their beginning, in turn."""
    optimizer = make_optimizer(OptimizerConfig(), 1000, MODEL.table())
    layout = Layout(make_mesh(), Parallel("data"))
    state = init_state(MODEL, optimizer, layout, seed=0)
    tokens = np.random.default_rng(0).integers(0, MODEL.vocab or 0, (BATCH, TOKENS + 1), np.int32)
    weights = np.ones((BATCH, TOKENS), np.float32)
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}
    batch = jax.device_put(batch, NamedSharding(layout.mesh, batch_spec(layout)))
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
    without, with_save = (statistics.median(seconds[saves]) for saves in (False, True))
    ratios = [a / b for a, b in zip(seconds[True], seconds[False], strict=True)]
    return {
        "array_bytes": sum(x.nbytes for x in jax.tree.leaves((state.params, state.opt_state))),
        "disk_bytes": stored,
        "seconds_until_on_disk": statistics.median(on_disk),
        "seconds_blocked": statistics.median(blocked),
        f"seconds_of_{EVERY}_steps": {"without": without, "with_save": with_save},
        "processor_seconds": {"steps": cpu, "save": statistics.median(work)},
        "stall": {
            "processor_share": statistics.median(work) / cpu,
            "blocked_share": statistics.median(blocked) / without,
            "all": statistics.median(ratios) - 1,
            "least": min(ratios) - 1,
            "most": max(ratios) - 1,
        },
    }


def _restoring(folder: pathlib.Path, repeats: int) -> list[dict[str, Any]]:
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

    times = medians({name: restore(*target) for name, target in TARGETS.items()}, repeats, 1)
    same = times["same"]["median"]
    return [
        {"mesh": name, "seconds": found["median"], "over_same": found["median"] / same}
        for name, found in times.items()
    ]
