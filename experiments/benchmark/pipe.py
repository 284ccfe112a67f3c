"""A training step in stages beside that of one device, by schedule: time, and temporary bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.benchmark.timing import Quantity, Rows, medians, ratio
from gam_jax.layers import GAM, Block
from gam_jax.models.language import LanguageModel
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.training.order import moves
from gam_jax.training.state import init_state
from gam_jax.training.step import make_train_step, put_batch
from sharding.layout import Layout
from sharding.mesh import make_mesh
from sharding.parallel import Parallel
from sharding.pipeline.tables import GPIPE, INTERLEAVED, ONE_F_ONE_B, make_table

MODEL = LanguageModel(Block(GAM(slots=128, kernel=4)), width=128, depth=8, vocab=256)
ROWS, TOKENS, PARTS = 2, 256, 8
"""Of a part, and parts of a batch."""
AGAIN = 4 / 3
"""Work of a backward pass that computes its forward again, over one that does not."""
SCHEDULES = ((GPIPE, 1), (ONE_F_ONE_B, 1), (INTERLEAVED, 2))


def run(repeats: int, short: bool = False) -> Rows:
    """Whole steps of a model of 8 layers, 8 parts of 2 x 256 tokens, AdamW.

    Emulated devices share this machine's cores, and a stage with nothing of its own to do computes
    all the same. So the time of one device is to grow by (v m + p - 1) / (v m), of p stages, m
    parts and v turns, and by 4/3 for what is computed again.

    Returns:
      A row each: time, over that of one device, over that and the predicted work, and temporary
      bytes of a device for as many and for twice as many parts.
    """
    calls: dict[str, Callable[[], Any]] = {}
    rows: Rows = {}
    cases = [(1, ONE_F_ONE_B, 1), *((p, *how) for p in (2, 4) for how in SCHEDULES)]
    for stages, schedule, turns in cases[:: len(cases) - 1] if short else cases:
        layout = Layout(make_mesh(pipe=stages), Parallel(schedule=schedule, turns=turns))
        name = "one device" if stages == 1 else f"pipe={stages} {schedule}"
        calls[name], compiled = _step(layout, PARTS)
        again = compiled if short else _step(layout, 2 * PARTS)[1]
        rows[name] = {
            "work": Quantity.exactly(_work(stages, schedule, turns)),
            f"temporary, {PARTS} parts": _temporary(compiled),
            f"temporary, {PARTS if short else 2 * PARTS} parts": _temporary(again),
        }
    times = medians(calls, repeats, warmup=1)
    one = times["one device"]
    for name, found in times.items():
        over = ratio(found, one)
        work = rows[name]["work"].median
        rows[name] |= {
            "time": found,
            "over one device": over,
            "over the work": Quantity(over.median / work, over.low / work, over.high / work),
        }
    return rows


def _work(stages: int, schedule: str, turns: int) -> float:
    """What a step takes, over one device's: masked ticks, and forward passes computed again."""
    if stages == 1:
        return 1.0
    table = make_table(schedule, stages, PARTS, turns)
    return AGAIN * table.forward_ticks / (turns * PARTS)


def _temporary(compiled: Any) -> Quantity:
    return Quantity.exactly(compiled.memory_analysis().temp_size_in_bytes, "B")


def _step(layout: Layout, parts: int) -> tuple[Callable[[], Any], Any]:
    """A call that takes one step, and the step compiled."""
    optimizer = make_optimizer(OptimizerConfig(), 1000, MODEL.table())
    to_stages, _ = moves(MODEL, optimizer, layout)
    holder = [to_stages(init_state(MODEL, optimizer, layout, seed=0))]
    random = np.random.default_rng(0)
    tokens = random.integers(0, MODEL.vocab or 0, (parts, ROWS, TOKENS + 1)).astype(np.int32)
    weights = np.ones((parts, ROWS, TOKENS), np.float32)
    given = {"inputs": tokens[..., :-1], "targets": tokens[..., 1:], "weights": weights}
    batch = put_batch(MODEL, layout, given, parts)
    step = make_train_step(MODEL, optimizer, layout, parts)
    compiled = step.trace(holder[0], batch).lower().compile()  # type: ignore[attr-defined]

    def call() -> Any:
        holder[0], metrics = compiled(holder[0], batch)
        return metrics

    return call, compiled
